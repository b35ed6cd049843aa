//! Gradients that are measured and scaled in parts.

use half::{bf16, f16};

use super::*;
use crate::cpu::parallel::CHUNK_LEN;
use crate::{AutoClip, GradientId, NonFinite, NormType, ZClip};

enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Values {
    fn gradient(&mut self) -> Gradient<'_> {
        match self {
            Self::F32(values) => Gradient::f32(values),
            Self::F16(values) => Gradient::f16(values),
            Self::Bf16(values) => Gradient::bf16(values),
        }
    }

    /// Adds all elements in parts of `len` elements.
    fn add_to(&self, measurement: &mut Measurement, len: usize) -> Result<(), Error> {
        match self {
            Self::F32(values) => values.chunks(len).try_for_each(|part| measurement.add_f32(part)),
            Self::F16(values) => values.chunks(len).try_for_each(|part| measurement.add_f16(part)),
            Self::Bf16(values) => values.chunks(len).try_for_each(|part| measurement.add_bf16(part)),
        }
    }

    fn scale(&mut self, len: usize, record: &ClipRecord) {
        match self {
            Self::F32(values) => {
                values.chunks_mut(len).for_each(|part| scale(&mut [Gradient::f32(part)], record));
            }
            Self::F16(values) => {
                values.chunks_mut(len).for_each(|part| scale(&mut [Gradient::f16(part)], record));
            }
            Self::Bf16(values) => {
                values.chunks_mut(len).for_each(|part| scale(&mut [Gradient::bf16(part)], record));
            }
        }
    }

    fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(values) => values.iter().map(|x| x.to_bits()).collect(),
            Self::F16(values) => values.iter().map(|x| x.to_bits().into()).collect(),
            Self::Bf16(values) => values.iter().map(|x| x.to_bits().into()).collect(),
        }
    }
}

/// Lists gradients of every type, with lengths around multiples of a chunk. Their sum depends on the order of addition.
fn gradients() -> Vec<Values> {
    let mut state = 1_u32;
    let mut number = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        (f32::from((state >> 16) as u16) - 32768.0) / 1e3
    };
    let lens = [
        5 * CHUNK_LEN,
        0,
        1,
        CHUNK_LEN - 1,
        (1 << 18) + 3 * CHUNK_LEN + 5,
        CHUNK_LEN,
        700,
        2 * CHUNK_LEN + 1,
        3,
        90_000,
    ];
    let mut values = |(index, len): (usize, usize)| {
        let values = (0..len).map(|_| number());
        match index % 3 {
            0 => Values::F32(values.collect()),
            1 => Values::F16(values.map(f16::from_f32).collect()),
            _ => Values::Bf16(values.map(bf16::from_f32).collect()),
        }
    };
    lens.into_iter().enumerate().map(&mut values).collect()
}

fn clips() -> Vec<Clip> {
    let p = NormType::P;
    let norm_types =
        [NormType::L1, NormType::L2, NormType::Inf, p(3.0), p(-1.5), p(0.0), p(f32::NEG_INFINITY)];
    let by_type = norm_types.map(|norm_type| Clip::by_global_norm(1.0).norm_type(norm_type));
    let z_clip = ZClip { warm_up: 1, ..ZClip::default() };
    by_type
        .into_iter()
        .chain([
            Clip::by_norm(2.0),
            Clip::by_norm(2.0).norm_type(p(0.0)),
            Clip::by_rms(0.5),
            Clip::by_global_norm(1e9).loss_scale(64.0),
            Clip::by_global_norm(f32::INFINITY).z_clip(z_clip),
            Clip::by_global_norm(f32::INFINITY).auto_clip(AutoClip::default()),
        ])
        .collect()
}

#[test]
fn parts_give_the_bits_of_the_whole() {
    for clip in clips().into_iter().flat_map(|clip| [clip, clip.tensor_stats()]) {
        for len in [CHUNK_LEN, 3 * CHUNK_LEN, 1 << 20] {
            let clips = [clip, clip];
            let (mut plan, mut in_parts) = (ClipPlan::new(&clips).unwrap(), ClipPlan::new(&clips).unwrap());
            for step in 0..2 {
                let (mut whole, mut split) = (gradients(), gradients());
                let list = whole.iter_mut().map(Values::gradient);
                let mut list: Vec<_> = list.enumerate().map(|(i, gradient)| gradient.group(i % 2)).collect();
                let expected = plan.clip(&mut list).unwrap();

                let mut measurements = Vec::new();
                for (index, values) in split.iter().enumerate() {
                    let mut measurement = in_parts.begin_measurement().unwrap().group(index % 2);
                    values.add_to(&mut measurement, len).unwrap();
                    measurements.push(measurement);
                }
                let records = in_parts.finish_measurements(&measurements).unwrap();
                assert_eq!(records, expected, "{clip:?}, step {step}, parts of {len}");
                assert_eq!(in_parts.tensor_stats(), plan.tensor_stats(), "{clip:?}");
                assert_eq!(in_parts.step_counts(), plan.step_counts(), "{clip:?}");
                assert_eq!(in_parts.histories(), plan.histories(), "{clip:?}");
                assert_eq!(in_parts.norm_windows(), plan.norm_windows(), "{clip:?}");

                let per_gradient = records.len() == split.len();
                for (index, values) in split.iter_mut().enumerate() {
                    values.scale(len, &records[if per_gradient { index } else { index % 2 }]);
                }
                let same = split.iter().zip(&whole).all(|(split, whole)| split.bits() == whole.bits());
                assert!(same, "{clip:?}, parts of {len}");
            }
        }
    }
}

#[test]
fn non_finite_gradients_are_named_in_the_error() {
    let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Error);
    let mut plan = ClipPlan::new(&[clip, clip]).unwrap();
    let mut fine = plan.begin_measurement().unwrap();
    fine.add_f32(&[3.0]).unwrap();
    let mut broken = plan.begin_measurement().unwrap().group(1).label("broken");
    broken.add_bf16(&vec![bf16::ONE; CHUNK_LEN]).unwrap();
    broken.add_bf16(&[bf16::NEG_INFINITY]).unwrap();
    let gradient = Some(GradientId { index: 2, label: Some("broken".into()) });
    let error = Error::NonFinite { gradient, total_norm: f32::INFINITY, record: Some(1) };
    assert_eq!(plan.finish_measurements(&[fine.clone(), fine, broken]), Err(error));
}

#[test]
fn rejects_misuse() {
    let mut plan = ClipPlan::new(&[Clip::by_global_norm(1.0)]).unwrap();
    let mut odd = plan.begin_measurement().unwrap();
    odd.add_f32(&[1.0; 3]).unwrap();
    odd.add_f32(&[]).unwrap();
    let error = odd.clone().label("w").add_f32(&[1.0]).unwrap_err();
    assert_eq!(error, Error::MisalignedChunk { label: Some("w".into()), at: 3, multiple: CHUNK_LEN as u64 });
    assert!(error.to_string().starts_with("a chunk begins at element 3 of gradient \"w\", but"), "{error}");
    assert_eq!(
        plan.finish_measurements(&[odd.clone()]).unwrap()[0].total_norm,
        3.0_f32.sqrt(),
        "the rejected part is not counted"
    );

    let grouped = odd.clone().group(1);
    assert_eq!(
        plan.finish_measurements(&[odd.clone(), grouped]),
        Err(Error::GroupWithoutClip { gradient: 1.into(), given: 1, groups: 1 })
    );
    for other in [Clip::by_norm(1.0).norm_type(NormType::L1), Clip::by_norm(1.0).tensor_stats()] {
        let mut other = ClipPlan::new(&[other]).unwrap();
        assert_eq!(
            other.finish_measurements(&[odd.clone()]),
            Err(Error::MeasurementMismatch { gradient: 0.into() })
        );
    }
    let mut relative = ClipPlan::new(&[Clip::by_parameter_norm(0.1, 0.1)]).unwrap();
    assert_eq!(relative.finish_measurements(&[odd]), Err(Error::MissingParameter { gradient: 0.into() }));
    let mut supplied = ClipPlan::new(&[Clip::by_supplied_norm(1.0)]).unwrap();
    assert_eq!(supplied.begin_measurement().err(), Some(Error::NormNotSupplied));
    assert_eq!(supplied.finish_measurements(&[]), Err(Error::NormNotSupplied));
    let mut by_value = ClipPlan::new(&[Clip::by_value(1.0)]).unwrap();
    let needs_norm = |what| Error::NeedsNorm { what, clip: "a clip by value" };
    assert_eq!(by_value.begin_measurement().err(), Some(needs_norm("begin_measurement")));
    assert_eq!(by_value.finish_measurements(&[]), Err(needs_norm("finish_measurements")));
}

#[test]
fn unscaled_gradients_are_not_written() {
    let record = measure(&[&[3.0, 4.0]], 1.0).unwrap();
    let (mut scaled, mut kept) = ([5.0], [5.0]);
    scale(&mut [Gradient::f32(&mut scaled).group(9), Gradient::f32(&mut kept).unscaled()], &record);
    assert_eq!((scaled, kept), ([5.0 * record.factor], [5.0]));
}
