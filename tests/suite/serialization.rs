//! Serialization of options, records, statistics and state, for checkpoints and configuration files.

use std::fmt::Debug;

use gradclip::loss_scale::{LossScale, LossScaleState};
use gradclip::slices::DeviceChoice;
use gradclip::stats::{NormHistory, NormWindow, StepCounts, TensorStats};
use gradclip::{AutoClip, Clip, ClipRecord, DType, Epsilon, Error, NonFinite, NormType, ZClip, cpu};
use serde::{Serialize, de::DeserializeOwned};

#[track_caller]
fn round_trip<T: Serialize + DeserializeOwned>(value: &T) -> (String, T) {
    let text = serde_json::to_string(value).unwrap();
    let read = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    (text, read)
}

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "most callers have a value")]
fn check_round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
    assert_eq!(round_trip(&value).1, value);
}

#[test]
fn options_survive_a_round_trip() {
    let all = Clip::by_global_norm(0.1)
        .norm_type(NormType::P(-2.5))
        .epsilon(Epsilon::Value(1e-8))
        .non_finite(NonFinite::Zero)
        .loss_scale(1024.0)
        .coefficient_only()
        .tensor_stats()
        .count_steps()
        .z_clip(ZClip { alpha: 0.9, z_threshold: 3.0, warm_up: 7 })
        .skip_above(1e4)
        .max_consecutive_skips(5);
    let clips = [
        all,
        Clip::by_global_norm(f32::INFINITY),
        Clip::by_global_norm(1.0).skip_above(f32::INFINITY).max_consecutive_skips(2),
        Clip::by_norm(2.0).auto_clip(AutoClip { percentile: 12.5, window: 77 }),
        Clip::by_norm(1.0).norm_type(NormType::P(f32::NEG_INFINITY)),
        Clip::by_rms(0.5),
        Clip::by_parameter_norm(0.01, 1e-3),
        Clip::by_supplied_norm(1.0).norm_type(NormType::L1),
        Clip::by_value(0.5),
        Clip::by_value_range(f32::NEG_INFINITY, 0.25),
        Clip::by_norm(1.0).dynamic_loss_scale(LossScale::new(0.1).unwrap()).non_finite(NonFinite::Zero),
    ];
    clips.into_iter().for_each(check_round_trip);
    [DType::F32, DType::F16, DType::BF16].into_iter().for_each(check_round_trip);
    [DeviceChoice::Auto, DeviceChoice::Named("A100".into())].into_iter().for_each(check_round_trip);
}

#[test]
fn a_configuration_contains_only_changed_options() {
    let read = |text: &str| serde_json::from_str::<Clip>(text);
    assert_eq!(
        read(r#"{"method": {"by_global_norm": {"max_norm": 1}}, "norm_type": "inf", "non_finite": "skip"}"#)
            .unwrap(),
        Clip::by_global_norm(1.0).norm_type(NormType::Inf).non_finite(NonFinite::Skip)
    );
    // The default epsilon depends on the method.
    assert_eq!(read(r#"{"method": {"by_rms": {"threshold": 0.5}}}"#).unwrap(), Clip::by_rms(0.5));
    assert!(
        read(r#"{"method": {"by_value": {"clip_value": 1}}, "max_norm": 2}"#).is_err(),
        "an unknown option is an error"
    );
    assert_eq!(
        read(r#"{"method": {"by_norm": {"max_norm": 1}}, "auto_clip": {"percentile": 5}}"#).unwrap(),
        Clip::by_norm(1.0).auto_clip(AutoClip { percentile: 5.0, ..AutoClip::default() })
    );
    // An invalid value is an error when the clip is used.
    let invalid = read(r#"{"method": {"by_norm": {"max_norm": -1}}}"#).unwrap();
    assert_eq!(invalid.checked(), Err(Error::MaxNorm { given: -1.0 }));
}

#[test]
fn records_keep_their_bits() {
    let record =
        |gradient: &mut [f32], clip| cpu::clip(&mut [cpu::Gradient::f32(gradient)], clip).unwrap()[0];
    let clip = Clip::by_global_norm(1.0);
    for record in [
        ClipRecord::UNCLIPPED,
        ClipRecord::FAILED,
        record(&mut [0.1, 0.2, 0.3], clip),
        record(&mut [f32::INFINITY, 1.0], clip.non_finite(NonFinite::Skip)),
        record(&mut [f32::MAX; 9], Clip::by_global_norm(1e-30)),
    ] {
        let (text, read) = round_trip(&record);
        assert_eq!(bytemuck::bytes_of(&read), bytemuck::bytes_of(&record), "{text}");
    }
}

#[test]
fn state_and_statistics_survive_a_round_trip() {
    check_round_trip(TensorStats { norm: f32::INFINITY, max_magnitude: f32::MAX, non_finite: 0, zeros: 3 });
    let with_nan = TensorStats { norm: f32::NAN, max_magnitude: f32::NAN, non_finite: 1, zeros: 0 };
    assert!(round_trip(&with_nan).1.norm.is_nan());
    check_round_trip(StepCounts {
        steps: 4,
        clipped: 3,
        non_finite: 1,
        skipped: 2,
        consecutive_skips: 1,
        largest_norm: 0.1,
    });
    check_round_trip(NormHistory { steps: 25, mean: 1.1, deviation: 0.3 });
    check_round_trip(NormWindow::default());
    check_round_trip(NormWindow { norms: vec![0.1, 1e-40, f32::MAX] });
    check_round_trip(LossScale::new(1024.0).unwrap().growth(1.5, 7).unwrap());
    check_round_trip(LossScaleState::default());
    let damaged = LossScaleState { backoff: 2.0, ..LossScaleState::default() };
    let text = serde_json::to_string(&damaged).unwrap();
    let error = serde_json::from_str::<LossScale>(&text).unwrap_err();
    assert!(error.to_string().contains("backoff factor of the loss scale is 2"), "{error}");
}
