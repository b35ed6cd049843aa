//! Stage `clamp`: clips by value.

use gradclip::{Clip, Error, reference, wgpu};
use proptest::prelude::*;

use crate::common::numbers::{bits, noise};
use crate::gpu;
use crate::properties::{gradients, on_both_paths};
use crate::validation::{Noop, f32s};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_element_is_clamped(gradients in gradients(), low in -9.0_f32..9.0, width in 0.0_f32..9.0) {
        for after in on_both_paths(&gradients, Clip::by_value_range(low, low + width)) {
            for (&before, &after) in gradients.iter().flatten().zip(after.gradients.iter().flatten()) {
                let expected = reference::clamp(before, low, low + width);
                prop_assert_eq!(after.to_bits(), expected.to_bits());
            }
        }
    }
}

#[test]
fn the_norm_half_of_a_clip_by_value_is_empty() {
    let gpu = gpu();
    let gradients = vec![noise(1, 77)];
    let placed = gpu.place_packed(&gradients);
    let plan = gpu.clipper.prepare(&placed.gradients(), Clip::by_value(0.0)).unwrap();
    gpu.submit(|encoder| plan.encode_norm(encoder));
    assert_eq!(bits(&placed.read(gpu)), bits(&gradients));
    gpu.submit(|encoder| plan.encode_scale(encoder));
    assert!(placed.read(gpu).concat().iter().all(|&g| g == 0.0));
}

#[test]
fn a_clip_by_value_has_no_record() {
    let noop = Noop::new(wgpu::Limits::default());
    let buffer = noop.storage(64);
    let plan = noop.clipper().prepare(&[f32s(&buffer)], Clip::by_value(1.0)).unwrap();
    assert!(plan.record_buffer().is_none());
    let mut encoder = noop.encoder();
    let (waited, awaited) = (plan.read_back(&mut encoder), plan.read_back(&mut encoder));
    noop.queue.submit([encoder.finish()]);
    assert_eq!(waited.wait(), Err(Error::NothingMeasured));
    assert_eq!(pollster::block_on(async { awaited.await }), Err(Error::NothingMeasured));
}
