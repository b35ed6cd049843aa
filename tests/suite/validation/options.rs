//! Options of clips, alone and in groups.

use gradclip::loss_scale::LossScale;
use gradclip::slices::{DeviceChoice, SliceClipper};
use gradclip::{AutoClip, Clip, Epsilon, Error, Gradient, NonFinite, NormType, Parameter, ZClip, cpu, wgpu};

use super::{NORM, Noop, f32s};
use crate::gpu;

#[test]
fn invalid_options_are_errors() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let given = NormType::P(f32::NAN);
    let rows = [
        (Clip::by_global_norm(-1.0), "MaxNorm { given: -1.0 }"),
        (Clip::by_norm(-1.0), "MaxNorm { given: -1.0 }"),
        (Clip::by_rms(f32::NAN), "MaxNorm { given: NaN }"),
        (Clip::by_supplied_norm(-1.0), "MaxNorm { given: -1.0 }"),
        (NORM.norm_type(given), "NormType { given: P(NaN) }"),
        (Clip::by_rms(1.0).norm_type(NormType::Inf), "NormType { given: Inf }"),
        (NORM.loss_scale(0.0), "LossScale { given: 0.0 }"),
        (NORM.loss_scale(1e-40), "LossScale { given: 1e-40 }"),
        (NORM.loss_scale(-2.0), "LossScale { given: -2.0 }"),
        (NORM.skip_above(-1.0), "SkipAbove { given: -1.0 }"),
        (NORM.skip_above(f32::NAN), "SkipAbove { given: NaN }"),
        (NORM.max_consecutive_skips(3), "MaxConsecutiveSkips { given: 3, skips: false }"),
        (NORM.skip_above(1.0).max_consecutive_skips(0), "MaxConsecutiveSkips { given: 0, skips: true }"),
        (Clip::by_rms(1.0).skip_above(1.0), "NeedsNorm { what: \"skip_above\", clip: \"Clip::by_rms\""),
        (
            Clip::by_parameter_norm(0.1, 0.0).skip_above(1.0),
            "NeedsNorm { what: \"skip_above\", clip: \"Clip::by_parameter_norm\"",
        ),
        (
            Clip::by_value(1.0).dynamic_loss_scale(LossScale::default()),
            "NeedsNorm { what: \"dynamic_loss_scale\", clip: \"Clip::by_value\"",
        ),
        (Clip::by_value(1.0).skip_above(1.0), "NeedsNorm { what: \"skip_above\", clip: \"Clip::by_value\""),
        (NORM.epsilon(Epsilon::Value(-1e-6)), "Epsilon { given: -1e-6 }"),
        (NORM.epsilon(Epsilon::Value(f32::INFINITY)), "Epsilon { given: inf }"),
        (
            Clip::by_value(1.0).coefficient_only(),
            "NeedsNorm { what: \"coefficient_only\", clip: \"Clip::by_value",
        ),
        (
            Clip::by_value_range(0.0, 1.0).coefficient_only(),
            "NeedsNorm { what: \"coefficient_only\", clip: \"Clip::by_value",
        ),
        (
            Clip::by_value(1.0).norm_type(NormType::L1),
            "NeedsNorm { what: \"norm_type\", clip: \"Clip::by_value",
        ),
        (
            Clip::by_value(1.0).non_finite(NonFinite::Skip),
            "NeedsNorm { what: \"non_finite\", clip: \"Clip::by_value",
        ),
        (Clip::by_value(1.0).loss_scale(0.0), "LossScale { given: 0.0 }"),
        (Clip::by_value(1.0).loss_scale(1e-40), "LossScale { given: 1e-40 }"),
        (Clip::by_value(1.0).epsilon(Epsilon::None), "NeedsNorm { what: \"epsilon\", clip: \"Clip::by_value"),
    ];
    for (clip, expected) in rows {
        // Compared as text, because NaN is not equal to itself.
        for error in [clipper.prepare(&[], clip).unwrap_err(), cpu::clip(&mut [], clip).unwrap_err()] {
            assert!(format!("{error:?}").starts_with(expected), "{error:?}, not {expected}");
        }
    }
}

#[test]
fn the_clips_of_groups_must_agree() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let buffer = noop.storage(16);
    let in_group = |group| [f32s(&buffer).elements(0..1), f32s(&buffer).elements(1..2).group(group)];
    let group = |given, groups| Error::GroupWithoutClip { gradient: 1.into(), given, groups };
    assert_eq!(clipper.prepare(&in_group(1), NORM).unwrap_err(), group(1, 1));
    assert_eq!(clipper.prepare_groups(&in_group(9), &[NORM; 3]).unwrap_err(), group(9, 3));
    assert_eq!(clipper.prepare_groups(&[], &[]).unwrap_err(), Error::NoClip);
    let other = Clip::by_global_norm(2.0);
    for (odd, option, given) in [
        (other.norm_type(NormType::L1), "norm_type", ["l2", "l1"]),
        (other.non_finite(NonFinite::Zero), "non_finite", ["propagate", "zero"]),
        (other.loss_scale(2.0), "the inverse of loss_scale", ["1", "0.5"]),
        (other.epsilon(Epsilon::None), "epsilon", ["1e-6", "0"]),
        (other.coefficient_only(), "coefficient_only", ["false", "true"]),
        (other.tensor_stats(), "tensor_stats", ["false", "true"]),
        (other.count_steps(), "count_steps", ["false", "true"]),
        (
            other.auto_clip(AutoClip { percentile: 5.0, window: 9 }),
            "auto_clip",
            ["none", "percentile 5 and window 9"],
        ),
        (other.skip_above(3.0), "skip_above", ["none", "3"]),
        (Clip::by_norm(1.0), "the kind of clip", ["by_global_norm", "by_norm"]),
        (Clip::by_supplied_norm(1.0), "the kind of clip", ["by_global_norm", "by_supplied_norm"]),
        (Clip::by_value(1.0), "the kind of clip", ["by_global_norm", "by_value"]),
    ] {
        let error = clipper.prepare_groups(&in_group(2), &[NORM, other, odd]).unwrap_err();
        let given = given.map(String::from);
        assert_eq!(error, Error::GroupsDiffer { first: 0, second: 2, option, given }, "{odd:?}");
    }
    // Two names of the same p.
    clipper.prepare_groups(&in_group(1), &[NORM, other.norm_type(NormType::P(2.0))]).unwrap();
}

type SetOption = fn(Clip) -> Clip;

/// An option that does not apply to a clip causes the same error at every entry point.
#[test]
fn an_option_that_does_not_apply_is_an_error_at_every_entry_point() {
    let needs_norm = |what, clip| Error::NeedsNorm { what, clip };
    let norm_options: [(&str, SetOption); 8] = [
        ("norm_type", |clip| clip.norm_type(NormType::L1)),
        ("epsilon", |clip| clip.epsilon(Epsilon::None)),
        ("non_finite", |clip| clip.non_finite(NonFinite::Skip)),
        ("coefficient_only", Clip::coefficient_only),
        ("tensor_stats", Clip::tensor_stats),
        ("count_steps", Clip::count_steps),
        ("z_clip", |clip| clip.z_clip(ZClip::default())),
        ("auto_clip", |clip| clip.auto_clip(AutoClip::default())),
    ];
    let mut cases = vec![
        (Clip::by_supplied_norm(1.0).tensor_stats(), needs_norm("tensor_stats", "Clip::by_supplied_norm")),
        (Clip::by_rms(1.0).norm_type(NormType::Inf), Error::NormType { given: NormType::Inf }),
        (Clip::by_parameter_norm(1.0, 0.0).z_clip(ZClip::default()), Error::ConflictingLimits),
        (Clip::by_parameter_norm(1.0, 0.0).auto_clip(AutoClip::default()), Error::ConflictingLimits),
        (
            Clip::by_norm(1.0).z_clip(ZClip::default()).auto_clip(AutoClip::default()),
            Error::ConflictingLimits,
        ),
    ];
    for (name, option) in norm_options {
        cases.push((option(Clip::by_value(1.0)), needs_norm(name, "Clip::by_value")));
        cases.push((option(Clip::by_value_range(0.0, 1.0)), needs_norm(name, "Clip::by_value_range")));
    }
    let clippers = [DeviceChoice::Cpu, DeviceChoice::Gpu].map(|choice| SliceClipper::new(&choice).unwrap());
    for (clip, expected) in cases {
        let mut gradient = [1.0];
        assert_eq!(gpu().clipper.prepare(&[], clip).map(drop), Err(expected.clone()));
        assert_eq!(cpu::ClipPlan::new(&[clip]).map(drop), Err(expected.clone()));
        let mut gradients = [cpu::Gradient::f32(&mut gradient)];
        assert_eq!(cpu::clip_groups(&mut gradients, &[clip]), Err(expected.clone()));
        assert_eq!(cpu::clip_with_norm(&mut gradients, clip, 1.0), Err(expected.clone()));
        for clipper in &clippers {
            assert_eq!(clipper.clip_groups(&mut gradients, &[clip]).map(drop), Err(expected.clone()));
            assert_eq!(clipper.clip_with_norm(&mut gradients, clip, 1.0).map(drop), Err(expected.clone()));
            assert_eq!(clipper.clip(&mut gradients, clip).map(drop), Err(expected.clone()));
        }
    }
    // State and statistics need a plan. Every entry point without a plan returns an error.
    for (option, set) in norm_options.into_iter().skip(4) {
        let (clip, expected) = (set(Clip::by_global_norm(1.0)), Err(Error::NeedsPlan { option }));
        let mut gradient = [1.0];
        let mut gradients = [cpu::Gradient::f32(&mut gradient)];
        assert_eq!(cpu::clip_groups(&mut gradients, &[clip]).map(drop), expected);
        for clipper in &clippers {
            assert_eq!(clipper.clip_groups(&mut gradients, &[clip]).map(drop), expected);
            assert_eq!(clipper.clip(&mut gradients, clip).map(drop), expected);
        }
    }
}

#[test]
fn invalid_auto_clips_are_errors() {
    let good = AutoClip::default();
    for given in [
        AutoClip { percentile: -0.5, ..good },
        AutoClip { percentile: 100.1, ..good },
        AutoClip { percentile: f32::INFINITY, ..good },
        AutoClip { percentile: f32::NAN, ..good },
        AutoClip { window: 0, ..good },
        AutoClip { window: 1025, ..good },
        AutoClip { window: u32::MAX, ..good },
    ] {
        for clip in [Clip::by_global_norm(1.0).auto_clip(given), Clip::by_supplied_norm(1.0).auto_clip(given)]
        {
            let message = format!("{:?}", Error::AutoClip { given });
            assert_eq!(format!("{:?}", cpu::ClipPlan::new(&[clip]).unwrap_err()), message);
            assert_eq!(format!("{:?}", gpu().clipper.prepare(&[], clip).unwrap_err()), message);
        }
    }
    for percentile in [0.0, -0.0, f32::from_bits(1), 100.0] {
        for window in [1, 1024] {
            Clip::by_norm(1.0).auto_clip(AutoClip { percentile, window }).checked().unwrap();
        }
    }
}

#[test]
fn invalid_z_clips_and_options_without_a_plan_are_errors() {
    let good = ZClip::default();
    for given in [
        ZClip { alpha: 1.0, ..good },
        ZClip { alpha: -0.1, ..good },
        ZClip { alpha: f32::NAN, ..good },
        ZClip { z_threshold: 0.0, ..good },
        ZClip { z_threshold: f32::INFINITY, ..good },
        ZClip { z_threshold: f32::NAN, ..good },
        ZClip { warm_up: 0, ..good },
    ] {
        let clip = Clip::by_global_norm(1.0).z_clip(given);
        let message = format!("{:?}", Error::ZClip { given });
        assert_eq!(format!("{:?}", cpu::ClipPlan::new(&[clip]).unwrap_err()), message);
        assert_eq!(format!("{:?}", gpu().clipper.prepare(&[], clip).unwrap_err()), message);
    }
    let relative = Clip::by_parameter_norm(0.1, 1e-3).z_clip(good);
    assert_eq!(cpu::ClipPlan::new(&[relative]).unwrap_err(), Error::ConflictingLimits);
    let by_value = Clip::by_value(1.0);
    for (clip, what) in [
        (by_value.z_clip(good), "z_clip"),
        (by_value.count_steps(), "count_steps"),
        (by_value.tensor_stats(), "tensor_stats"),
    ] {
        let error = Error::NeedsNorm { what, clip: "Clip::by_value" };
        assert_eq!(cpu::ClipPlan::new(&[clip]).unwrap_err(), error);
    }
    // A call without a plan keeps no state.
    for (clip, option) in [
        (Clip::by_global_norm(1.0).z_clip(good), "z_clip"),
        (Clip::by_global_norm(1.0).auto_clip(AutoClip::default()), "auto_clip"),
        (Clip::by_global_norm(1.0).tensor_stats(), "tensor_stats"),
        (Clip::by_norm(1.0).count_steps(), "count_steps"),
    ] {
        let mut gradient = [3.0];
        let error = Error::NeedsPlan { option };
        assert_eq!(cpu::clip(&mut [cpu::Gradient::f32(&mut gradient)], clip).unwrap_err(), error);
        for choice in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
            let clipper = SliceClipper::new(&choice).unwrap();
            let mut gradients = [cpu::Gradient::f32(&mut gradient)];
            assert_eq!(clipper.clip(&mut gradients, clip).unwrap_err(), error);
        }
        assert_eq!(gradient, [3.0], "an error must not clip");
    }
    let counted = Clip::by_supplied_norm(1.0).count_steps();
    assert_eq!(cpu::clip_with_norm(&mut [], counted, 1.0), Err(Error::NeedsPlan { option: "count_steps" }));
    assert_eq!(
        cpu::tensor_stats(&[], Clip::by_norm(1.0).z_clip(good)),
        Err(Error::NeedsPlan { option: "z_clip" })
    );
}

/// The kernels compare numbers as bits, in which -0 is not 0.
#[test]
fn a_negative_zero_is_zero() {
    let gpu = gpu();
    let parameter = gpu.buffer(&[0.3, 0.4]);
    let clips = |zero: f32| {
        [
            Clip::by_global_norm(1.0).skip_above(zero),
            Clip::by_global_norm(1.0).epsilon(Epsilon::Value(zero)),
            Clip::by_parameter_norm(0.01, zero),
        ]
    };
    for (minus, plus) in clips(-0.0).into_iter().zip(clips(0.0)) {
        for numbers in [[3.0, 4.0], [0.0, 0.0]] {
            let buffer = gpu.buffer(&numbers);
            let gradient = || Gradient::f32(&buffer).parameter(Parameter::f32(&parameter));
            let record = |clip: Clip| {
                gpu.record(&gpu.clipper.prepare(&[gradient()], clip.coefficient_only()).unwrap())
            };
            assert_eq!(record(minus), record(plus), "{numbers:?}, {minus:?}");
        }
    }
}
