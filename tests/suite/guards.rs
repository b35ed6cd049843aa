//! Memory beside the gradients is neither measured nor changed.

use gradclip::{Clip, DType, Gradient};

use crate::common::numbers::{bits, noise};
use crate::common::placement::Placement;
use crate::gpu;

#[test]
fn non_finite_numbers_beside_a_gradient_have_no_effect() {
    // Quiet and signalling NaNs of both signs, and an infinity.
    let strange = [0x7fc0_1234_u32, 0x7f80_0001, 0xffc0_0001, 0xff80_0001, 0x7f80_0000];
    let guards: &[u16] = bytemuck::cast_slice(&strange);
    let gpu = gpu();
    for len in [1, 2, 3, 4, 5, 7, 8, 4097] {
        let gradient = [noise(7, len)];
        for before in 1..5 {
            let mut placement = Placement::empty(1);
            let span = placement.extend(0, 2 * before, (DType::F32, len));
            placement.spans.push(span);
            let placement = placement.padded(guards.len());
            for clip in [Clip::by_global_norm(0.01), Clip::by_value(0.1)] {
                let placed = gpu.place_beside(guards, &placement, &[DType::F32], &gradient);
                let plan = gpu.clipper.prepare(&placed.gradients(), clip).unwrap();
                gpu.submit(|encoder| plan.encode(encoder));
                let alone = gpu.clip(&Placement::separate(&[(DType::F32, len)]), &gradient, clip);
                let after = placed.read(gpu);
                assert_eq!(bits(&after), bits(&alone.gradients), "{len} elements behind {before}, {clip:?}");
            }
        }
    }
}

/// Tests the harness: a clip of the whole buffer changes the guards.
#[test]
#[should_panic(expected = "is outside all gradients")]
fn a_changed_guard_fails_a_test() {
    let gpu = gpu();
    let placed = gpu.place_packed(&[noise(1, 5)]);
    let (buffer, _) = placed.elements_of(0);
    let plan = gpu.clipper.prepare(&[Gradient::f32(buffer)], Clip::by_value(1.0)).unwrap();
    gpu.submit(|encoder| plan.encode(encoder));
    placed.read(gpu);
}
