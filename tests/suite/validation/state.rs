//! Norm histories, norm windows and step counts that a caller sets.

use gradclip::stats::{NormHistory, NormWindow, StepCounts};
use gradclip::{AutoClip, Clip, DType, Error, Gradient, ZClip, cpu};

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

#[test]
fn norm_windows_that_are_invalid_or_not_enabled_are_an_error() {
    let gpu = gpu();
    let buffer = gpu.writable(8);
    let gradients = [Gradient::f32(&buffer)];
    let z_clip = Clip::by_norm(1.0).z_clip(ZClip::default());
    let not_enabled = Error::NotEnabled { what: "norm windows", with: "auto_clip" };
    for clip in [z_clip, Clip::by_global_norm(1.0), Clip::by_value(1.0)] {
        let plan = gpu.clipper.prepare(&gradients, clip).unwrap();
        let windows = gpu.submit(|encoder| plan.read_back_norm_windows(encoder));
        assert_eq!(windows.wait(), Err(not_enabled.clone()));
        assert_eq!(plan.set_norm_windows(&gpu.queue, &[]), Err(not_enabled.clone()));
        assert_eq!(cpu::ClipPlan::new(&[clip]).unwrap().set_norm_windows(&[]), Err(not_enabled.clone()));
    }

    let auto_clip = AutoClip { percentile: 10.0, window: 3 };
    let clip = Clip::by_norm(1.0).auto_clip(auto_clip);
    let both = [gradients[0].clone().elements(0..1), gradients[0].clone().elements(1..2)];
    let plan = gpu.clipper.prepare(&both, clip).unwrap();
    let mut on_cpu = cpu::ClipPlan::new(&[clip]).unwrap();
    let window = |norms: &[f32]| NormWindow { norms: norms.to_vec() };
    let valid = [window(&[2.0, 3.0, f32::from_bits(1)]), window(&[])];
    plan.set_norm_windows(&gpu.queue, &valid).unwrap();
    on_cpu.set_norm_windows(&valid).unwrap();
    for norms in [&[1.0; 4][..], &[2.0, f32::NAN], &[f32::INFINITY], &[1.0, -1.0], &[0.0], &[-0.0]] {
        let given = [window(&[1.0]), window(norms)];
        for error in [
            plan.set_norm_windows(&gpu.queue, &given).unwrap_err(),
            on_cpu.set_norm_windows(&given).unwrap_err(),
        ] {
            let Error::NormWindow { record: 1, len, invalid, window: 3 } = error else { panic!("{error:?}") };
            let bad = norms.iter().find(|norm| !(norm.is_finite() && **norm > 0.0));
            let bits = |norm: f32| norm.to_bits();
            assert_eq!((len, invalid.map(bits)), (norms.len(), bad.copied().map(bits)));
        }
    }
    let error = Error::StateCount { what: "norm windows", given: 1, records: 2 };
    assert_eq!(plan.set_norm_windows(&gpu.queue, &valid[..1]), Err(error.clone()));
    // Nothing that was refused has replaced the state.
    let windows = gpu.submit(|encoder| plan.read_back_norm_windows(encoder));
    assert_eq!(windows.wait().as_deref(), Ok(&valid[..]));
    assert_eq!(on_cpu.norm_windows(), valid);
    on_cpu.set_norm_windows(&valid[..1]).unwrap();
    let (mut one, mut two) = ([3.0], [4.0]);
    let mut gradients = [cpu::Gradient::f32(&mut one), cpu::Gradient::f32(&mut two)];
    assert_eq!(on_cpu.clip(&mut gradients), Err(error));
    assert_eq!((one, two), ([3.0], [4.0]));
    // Other state is not confused with windows.
    assert!(matches!(plan.set_histories(&gpu.queue, &[]), Err(Error::NotEnabled { with: "z_clip", .. })));
}
