// The statistics of one gradient, before clipping and without the loss scale. 16 bytes; `TensorStats` in Rust.
//
// provides: TensorStats

struct TensorStats {
    norm: f32,          // offset  0
    max_magnitude: f32, // offset  4: the largest |g|; NaN if an element is NaN
    non_finite: u32,    // offset  8: the number of elements that are infinite or NaN
    zeros: u32,         // offset 12: the number of elements that are 0
}
