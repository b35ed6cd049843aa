// The outcome of a clip by global norm. 16 bytes; the Rust side is `ClipRecord`.
struct ClipRecord {
    total_norm: f32,    // offset  0: the L2 norm of all gradients before clipping
    clip_coef: f32,     // offset  4: the factor that clips them; exactly 1 where nothing is to be clipped
    max_magnitude: f32, // offset  8: the largest |g|; NaN if any element is NaN
    flags: u32,         // offset 12: the CLIP_RECORD_* bits below
}

const CLIP_RECORD_CLIPPED: u32 = 1u;    // the coefficient is not 1
const CLIP_RECORD_NON_FINITE: u32 = 2u; // the norm is infinite or NaN
