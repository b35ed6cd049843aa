// One gradient by itself, before clipping and without the loss scale. 16 bytes; the Rust side is `TensorStats`.
struct TensorStats {
    norm: f32,          // offset  0
    max_magnitude: f32, // offset  4: the largest |g|; NaN if any element is NaN
    non_finite: u32,    // offset  8: how many elements are infinite or NaN
    zeros: u32,         // offset 12: how many elements are 0
}
