//! Norm histories and step counts that a caller sets.

use gradclip::stats::{NormHistory, StepCounts};
use gradclip::{Clip, DType, Error, Gradient, ZClip, cpu};

use crate::gpu;

#[test]
fn state_that_is_invalid_or_not_enabled_is_an_error() {
    let gpu = gpu();
    let buffer = gpu.writable(8);
    let gradients = [Gradient::new(&buffer, DType::F32)];
    let plan = gpu.clipper.prepare(&gradients, Clip::by_global_norm(1.0)).unwrap();
    let (histories, counts) =
        gpu.submit(|encoder| (plan.read_back_histories(encoder), plan.read_back_step_counts(encoder)));
    let no_history = Error::NotEnabled { what: "norm histories", with: "z_clip" };
    assert_eq!(histories.wait(), Err(no_history.clone()));
    assert_eq!(plan.set_histories(&gpu.queue, &[]), Err(no_history.clone()));
    assert!(matches!(counts.wait(), Err(Error::NotEnabled { with: "count_steps", .. })));
    assert!(matches!(plan.set_step_counts(&gpu.queue, &[]), Err(Error::NotEnabled { .. })));

    let z_clip = Clip::by_global_norm(1.0).z_clip(ZClip::default());
    let plan = gpu.clipper.prepare(&gradients, z_clip.count_steps()).unwrap();
    let two = [NormHistory::default(); 2];
    let error = Error::StateCount { what: "norm histories", given: 2, records: 1 };
    assert_eq!(plan.set_histories(&gpu.queue, &two), Err(error.clone()));
    let given = NormHistory { mean: f32::NAN, ..NormHistory::default() };
    assert!(matches!(plan.set_histories(&gpu.queue, &[given]), Err(Error::NormHistory { record: 0, .. })));
    for largest_norm in [f32::NAN, f32::INFINITY, -1.0] {
        let given = [StepCounts { largest_norm, ..StepCounts::default() }];
        let is_rejected = |result| matches!(result, Err(Error::StepCounts { record: 0, .. }));
        assert!(is_rejected(plan.set_step_counts(&gpu.queue, &given)));
        assert!(is_rejected(cpu::ClipPlan::new(&[z_clip]).unwrap().set_step_counts(&given)));
    }
    let mut on_cpu = cpu::ClipPlan::new(&[z_clip]).unwrap();
    on_cpu.set_histories(&two).unwrap();
    let mut element = [3.0];
    assert_eq!(on_cpu.clip(&mut [cpu::Gradient::f32(&mut element)]), Err(error));
    assert_eq!(element, [3.0]);
    let mut without = cpu::ClipPlan::new(&[Clip::by_global_norm(1.0)]).unwrap();
    assert_eq!(without.set_histories(&two), Err(no_history));
}
