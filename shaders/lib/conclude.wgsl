// The rules that keep state between steps: skip_above, the step counts, and the loss scale.
//
// provides: is_overflow, conclude_record, update_loss_scale
// requires: segment, clip_coef, clip_record, step_counts, float_bits, extended, correctly_rounded
// binds: norm_params

// Returns whether the step is an overflow for the loss scale. Finite elements whose norm exceeds f32 are not an overflow.
fn is_overflow(record: ClipRecord) -> bool {
    let is_unknown = (bitcast<u32>(record.norm_significand) & MAGNITUDE) >= INFINITY;
    return is_unknown || record.first_non_finite != CLIP_RECORD_NO_GRADIENT;
}

// Applies skip_above, marks an overflow at the floor of the loss scale, and counts the step.
fn conclude_record(record: ptr<function, ClipRecord>, counts: ptr<function, StepCounts>) {
    let is_finite = ((*record).flags & CLIP_RECORD_NON_FINITE) == 0u;
    if (is_finite && exceeds(norm_of_record(*record), extended(bitcast<u32>(norm_params.skip_above)))) {
        if ((*counts).consecutive_skips < norm_params.max_consecutive_skips) {
            (*record).flags |= CLIP_RECORD_SKIP;
            set_factor(record, Extended(ONE, 0));
            (*counts).consecutive_skips += 1u;
        } else {
            (*counts).consecutive_skips = 0u;
        }
    } else if (is_finite) {
        (*counts).consecutive_skips = 0u;
    }
    if (norm_params.interval != 0u && is_overflow(*record) && backed_off_scale() == bitcast<u32>(norm_params.scale_floor)) {
        (*record).flags |= CLIP_RECORD_SCALE_AT_FLOOR;
    }

    let flags = (*record).flags;
    (*counts).steps += 1u;
    (*counts).clipped += select(0u, 1u, (flags & CLIP_RECORD_CLIPPED) != 0u);
    (*counts).non_finite += select(0u, 1u, (flags & CLIP_RECORD_NON_FINITE) != 0u);
    (*counts).skipped += select(0u, 1u, (flags & CLIP_RECORD_SKIP) != 0u);
    // Magnitudes have the order of their bits.
    let norm = bitcast<u32>((*record).total_norm);
    if (norm < INFINITY) {
        (*counts).largest_norm = bitcast<f32>(max(bitcast<u32>((*counts).largest_norm), norm));
    }
}

// Updates a dynamic loss scale by the rule of torch.amp.GradScaler; see `LossScale` in Rust. One invocation calls it, once a step.
fn update_loss_scale(is_overflow: bool) {
    if (norm_params.interval == 0u) {
        return;
    }
    if (is_overflow) {
        norm_params.good_steps = 0u;
        set_scale(backed_off_scale());
        return;
    }
    // A saturating increment.
    let good_steps = norm_params.good_steps + min(1u, ~norm_params.good_steps);
    norm_params.good_steps = good_steps;
    if (good_steps < norm_params.interval) {
        return;
    }
    norm_params.good_steps = 0u;
    let grown = nearest_f32(scaled_by(norm_params.growth));
    // An infinite scale would be invalid.
    if (grown < INFINITY) {
        set_scale(grown);
    }
}

// Returns the bits of the scale after an overflow.
fn backed_off_scale() -> u32 {
    return max(nearest_f32(scaled_by(norm_params.backoff)), bitcast<u32>(norm_params.scale_floor));
}

fn scaled_by(factor: f32) -> Extended {
    return extended_product(extended(bitcast<u32>(norm_params.scale)), extended(bitcast<u32>(factor)));
}

// Sets the scale, and its inverse rounded to f32, as the host does.
fn set_scale(bits: u32) {
    let scale = extended(bits);
    let inverse = normalized(reciprocal(bitcast<f32>(scale.significand)), -scale.exponent);
    norm_params.scale = bitcast<f32>(bits);
    norm_params.inverse_scale = bitcast<f32>(nearest_f32(inverse));
}
