// The state of a dynamic loss scale. 24 bytes; `LossScaleState` in Rust. Callers include this file in their shaders
// (`LOSS_SCALE_WGSL`), so its name has a prefix, and it requires nothing.
//
// provides: LossScale

struct LossScale {
    scale: f32,      // offset  0: the factor to multiply the loss by
    growth: f32,     // offset  4: the factor by which the scale grows
    backoff: f32,    // offset  8: the factor by which the scale shrinks
    floor: f32,      // offset 12: the smallest scale
    interval: u32,   // offset 16: the number of good steps after which the scale grows; 0 for a fixed scale
    good_steps: u32, // offset 20: the number of good steps since the scale last changed
}
