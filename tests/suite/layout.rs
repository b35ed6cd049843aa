//! The layout of a plan: tiles, windows, batches and grids, and many tensors.

use gradclip::adapters::is_software;
use gradclip::wgpu::Limits;
use gradclip::{Clip, ClipRecord, reference};

use crate::common::clip::clip_on_cpu;
use crate::common::gpu::{Gpu, adapters, least_limits};
use crate::common::numbers::{bits, noise, slices};
use crate::common::placement::{Placement, extents};
use crate::{gpu, gpu_with};

const NORM: Clip = Clip::by_global_norm(1.0);

/// Returns the number of dispatches of a plan for gradients of f32.
fn dispatches(gpu: &Gpu, placement: &Placement, clip: Clip) -> usize {
    let gradients: Vec<_> = placement.spans.iter().map(|(_, units)| vec![0.0; units.len() / 2]).collect();
    gpu.clipper.prepare(&gpu.place(placement, &gradients).gradients(), clip).unwrap().dispatches()
}

/// Returns the number of slots of a device. The plan itself uses two storage buffers per stage, and wgpu also limits the total
/// of all kinds of buffers.
fn slots(gpu: &Gpu) -> usize {
    let limits = gpu.device.limits();
    let allowed = limits
        .max_storage_buffers_per_shader_stage
        .min(limits.max_buffers_and_acceleration_structures_per_shader_stage);
    let most = if is_software(&gpu.device.adapter_info()) { 32 } else { 64 };
    (allowed as usize - 2).min(most)
}

/// Clips to the norm 1, checks the outcome against the reference, and returns the record.
fn check(gpu: &Gpu, placement: &Placement, gradients: &[Vec<f32>]) -> ClipRecord {
    let outcome = gpu.clip(placement, gradients, NORM);
    let record = outcome.record();
    let expected = reference::total_norm(&slices(gradients));
    assert!((f64::from(record.total_norm) - expected).abs() <= 1e-6 * expected, "{record:?}, not {expected}");
    for (index, (before, after)) in gradients.iter().zip(&outcome.gradients).enumerate() {
        let wrong = before.iter().zip(after).position(|(before, after)| *after != before * record.clip_coef);
        assert_eq!(wrong, None, "the first wrong element of gradient {index}");
    }
    record
}

#[test]
fn more_workgroups_than_a_grid_is_wide() {
    // Each element is a tile, because none has a neighbour.
    let gradients: Vec<_> = noise(1, 70_000).into_iter().map(|g| vec![g]).collect();
    let placement = Placement::spaced(&extents(&gradients));
    check(gpu(), &placement, &gradients);
    // Small elements are scaled, and their partials take another code path.
    let tiny: Vec<_> = gradients.iter().map(|gradient| vec![gradient[0] * 1e-20]).collect();
    check(gpu(), &placement, &tiny);
    let narrow = gpu_with(|limits| limits.max_compute_workgroups_per_dimension = 256);
    check(&narrow, &Placement::spaced(&extents(&gradients[..3000])), &gradients[..3000]);
    let clip = Clip::by_value(0.1);
    let clamped = gpu().clip(&placement, &gradients, clip);
    assert_eq!(bits(&clamped.gradients), bits(&clip_on_cpu(&gradients, clip).gradients));
}

#[test]
fn gradients_that_cross_windows() {
    let cramped = gpu_with(|limits| limits.max_storage_buffer_binding_size = 1 << 20);
    let gradients: Vec<_> = [600_001, 1, 3, 262_144, 500_003, 65_537]
        .iter()
        .zip(0..)
        .map(|(&len, seed)| noise(seed, len))
        .collect();
    for layout in [Placement::separate, Placement::arena, Placement::packed, Placement::spaced] {
        let placement = layout(&extents(&gradients));
        let record = check(&cramped, &placement, &gradients);
        assert_eq!(record, check(gpu(), &placement, &gradients));
        let clip = Clip::by_value(0.1);
        let clamped = cramped.clip(&placement, &gradients, clip);
        assert_eq!(bits(&clamped.gradients), bits(&clip_on_cpu(&gradients, clip).gradients));
        assert!(dispatches(&cramped, &placement, NORM) > dispatches(gpu(), &placement, NORM));
    }
}

/// 160 MiB, with a limit of 128 MiB for a binding.
#[test]
fn a_buffer_above_one_binding() {
    let gradients = [noise(1, 40 << 20)];
    let placement = Placement::spaced(&extents(&gradients));
    assert!(2 * placement.buffers[0] as u64 > Limits::default().max_storage_buffer_binding_size);
    check(gpu(), &placement, &gradients);
}

#[test]
fn thousands_of_tensors() {
    let gradients: Vec<_> = (0..2000).map(|seed| noise(seed, 1 + seed as usize * 7919 % 613)).collect();
    let layouts = [Placement::separate, Placement::arena, Placement::packed];
    let records = layouts.map(|layout| check(gpu(), &layout(&extents(&gradients)), &gradients));
    assert_eq!(records, [records[0]; 3]);
}

#[test]
fn more_slots_take_fewer_dispatches_to_the_same_bits() {
    let full = Gpu::open(&adapters()[0], adapters()[0].limits());
    let gradients: Vec<_> = (0..100).map(|seed| noise(seed, 400)).collect();
    let placement = Placement::separate(&extents(&gradients));
    let expected = check(gpu(), &placement, &gradients);
    assert_eq!(check(&full, &placement, &gradients), expected);
    // Here all dispatches share one bank of partials; the other devices have several banks.
    let least = Gpu::open(&adapters()[0], least_limits());
    assert_eq!(check(&least, &placement, &gradients), expected);
    for gpu in [gpu(), &full] {
        let slots = slots(gpu);
        assert_eq!(dispatches(gpu, &placement, NORM), 2 * 100_usize.div_ceil(slots) + 1);
        assert_eq!(dispatches(gpu, &placement, Clip::by_value(1.0)), 100_usize.div_ceil(slots));
    }
}

#[test]
fn a_thousand_buffers_in_an_array_take_the_dispatches_of_one_arena() {
    // With default limits, so that the sixteen or more batches of separate bindings are one.
    let Some(arrays) = Gpu::with_binding_arrays(&adapters()[0], Limits::default()) else { return };
    let gradients: Vec<_> = (0..1000).map(|seed| noise(seed, 4096)).collect();
    let [separate, arena] =
        [Placement::separate, Placement::arena].map(|layout| layout(&extents(&gradients)));
    assert_eq!(check(&arrays, &separate, &gradients), check(gpu(), &arena, &gradients));
    for (clip, expected) in [(NORM, 3), (Clip::by_value(1.0), 1)] {
        assert_eq!(dispatches(&arrays, &separate, clip), expected);
        assert_eq!(dispatches(gpu(), &arena, clip), expected);
        assert!(dispatches(gpu(), &separate, clip) > 16, "more buffers than a dispatch binds");
    }
}

#[test]
fn more_buffers_than_an_array_has() {
    let Some(arrays) = Gpu::with_binding_arrays(&adapters()[0], least_limits()) else { return };
    let gradients: Vec<_> = (0..1500).map(|seed| noise(seed, 3 + seed as usize % 7)).collect();
    let placement = Placement::separate(&extents(&gradients));
    assert_eq!(check(&arrays, &placement, &gradients), check(gpu(), &placement, &gradients));
}

#[test]
fn adjacent_gradients_are_clamped_as_one() {
    // Adjacent gradients together fill whole vectors; spaced ones each have edges.
    let lens = [1, 2, 3, 5, 6, 7, 4096, 4];
    let gradients: Vec<_> = lens.iter().zip(0..).map(|(&len, seed)| noise(seed, len)).collect();
    let [adjacent, spaced] =
        [Placement::adjacent, Placement::spaced].map(|layout| layout(&extents(&gradients)));
    let clamp = Clip::by_value(0.5);
    assert_eq!(dispatches(gpu(), &adjacent, clamp), 1);
    assert_eq!(dispatches(gpu(), &spaced, clamp), 2);
    assert_eq!(check(gpu(), &adjacent, &gradients), check(gpu(), &spaced, &gradients));
}

#[test]
fn recommended_limits_bind_more_buffers_at_once() {
    let adapter = &adapters()[0];
    let base = Limits { max_storage_buffers_per_shader_stage: 8, ..Limits::default() };
    let recommended = gradclip::Clipper::recommended_limits(adapter, &base);
    assert!(recommended.check_limits(&adapter.limits()), "the adapter does not allow {recommended:?}");
    assert!(
        base.check_limits(&recommended),
        "the recommended limits are below the given ones: {recommended:?}"
    );
    let gradients: Vec<_> = (0..60).map(|seed| noise(seed, 100)).collect();
    let placement = Placement::separate(&extents(&gradients));
    // wgpu also limits the total of all kinds of buffers, which is low on Metal.
    let narrow =
        Limits { max_buffers_and_acceleration_structures_per_shader_stage: 12, ..recommended.clone() };
    let [few, some, many] = [base, narrow, recommended].map(|limits| {
        let gpu = Gpu::open(adapter, limits);
        check(&gpu, &placement, &gradients);
        let batches = 60_usize.div_ceil(slots(&gpu));
        assert_eq!(dispatches(&gpu, &placement, NORM), batches + 1 + batches);
        batches
    });
    assert_eq!((few, some), (10, 6));
    let allowed = adapter.limits().max_storage_buffers_per_shader_stage;
    assert!(if allowed > 12 { many < some } else { many == some }, "{many} batches");
}
