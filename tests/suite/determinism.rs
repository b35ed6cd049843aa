//! Repeated measurements have the same bits.

use gradclip::Clip;

use crate::common::numbers::noise;
use crate::gpu;

#[test]
fn fifty_repeats_have_the_same_bits() {
    let gpu = gpu();
    let gradients: Vec<_> =
        [400_000, 3, 77_777].iter().zip(0..).map(|(&len, seed)| noise(seed, len)).collect();
    let placed = gpu.place_packed(&gradients);
    let measure = Clip::by_global_norm(1.0).coefficient_only();
    let plan = gpu.clipper.prepare(&placed.gradients(), measure).unwrap();
    let first = gpu.record(&plan);
    for _ in 1..50 {
        assert_eq!(gpu.record(&plan), first);
    }
    let again = gpu.clipper.prepare(&placed.gradients(), measure).unwrap();
    assert_eq!(gpu.record(&again), first);
}
