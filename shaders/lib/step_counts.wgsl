// Counts over the steps of a training run, for one record. 24 bytes; `StepCounts` in Rust. Callers include this file in their
// shaders (`STEP_COUNTS_WGSL`), so its names start with `StepCounts` or `step_counts`, and it requires nothing.
//
// provides: StepCounts, step_counts_taken

struct StepCounts {
    steps: u32,             // offset  0: the number of norms that were measured or supplied
    clipped: u32,           // offset  4: steps whose coefficient was not 1
    non_finite: u32,        // offset  8: steps whose gradients were not finite
    skipped: u32,           // offset 12: steps that were skipped
    consecutive_skips: u32, // offset 16: steps in a row that skip_above skipped
    largest_norm: f32,      // offset 20: the largest finite norm
}

// Returns the number of steps that the optimizer has taken, including the step of the current record unless it is skipped.
fn step_counts_taken(counts: StepCounts) -> u32 {
    return counts.steps - counts.skipped;
}
