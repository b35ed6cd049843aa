//! Host slices, on the CPU path and through a GPU.

use gradclip::cpu::Gradient;
use gradclip::slices::{
    Clipped, DeviceChoice, SliceClipper, SliceDevice, clip_grad_norm, clip_grad_norm_async, clip_grad_value,
    clip_grad_value_async,
};
use gradclip::{Clip, Epsilon, Error, NonFinite, NormType, cpu, reference};
use half::{bf16, f16};

use crate::assert_near;
use crate::common::numbers::{bits, noise, scaled, slices};

fn gradients() -> Vec<Vec<f32>> {
    [1, 0, 255, 4097, 100_003, 3].iter().zip(0..).map(|(&len, seed)| noise(seed, len)).collect()
}

/// Clips gradients through slices. Returns the outcome, and the gradients afterwards.
fn clip<R>(
    mut gradients: Vec<Vec<f32>>,
    clip: impl FnOnce(&mut [&mut [f32]]) -> Result<Clipped<R>, Error>,
) -> (Result<Clipped<R>, Error>, Vec<Vec<f32>>) {
    let mut slices: Vec<&mut [f32]> = gradients.iter_mut().map(Vec::as_mut_slice).collect();
    let clipped = clip(&mut slices);
    (clipped, gradients)
}

fn as_gradients<'a>(slices: &'a mut [&mut [f32]]) -> Vec<Gradient<'a>> {
    slices.iter_mut().map(|slice| Gradient::f32(slice)).collect()
}

fn clamped(gradients: &[Vec<f32>], bound: f32) -> Vec<Vec<f32>> {
    let clamp = |g: &f32| reference::clamp(*g, -bound, bound);
    gradients.iter().map(|gradient| gradient.iter().map(clamp).collect()).collect()
}

#[test]
fn both_devices_agree_with_the_reference() {
    let expected = reference::total_norm(&slices(&gradients()));
    for (choice, is_gpu) in [(DeviceChoice::Cpu, false), (DeviceChoice::Gpu, true)] {
        let clipper = SliceClipper::new(&choice).unwrap();
        assert_eq!(matches!(clipper.device(), SliceDevice::Gpu(_)), is_gpu);
        // Clipped, within the limit, and only measured.
        for (max_norm, coefficient_only) in [(1.0, false), (1e3, false), (1.0, true)] {
            let by_norm = Clip::by_global_norm(max_norm);
            let options = if coefficient_only { by_norm.coefficient_only() } else { by_norm };
            let (outcome, after) =
                clip(gradients(), |slices| clipper.clip(&mut as_gradients(slices), options));
            let Clipped { record, device, .. } = outcome.unwrap();
            let [record] = record[..] else { panic!("{record:?}") };
            assert_eq!(matches!(device, SliceDevice::Gpu(_)), is_gpu);
            assert_near(record.total_norm, expected);
            assert_near(record.clip_coef, reference::clip_coef(expected, max_norm.into()));
            let coef = if coefficient_only { 1.0 } else { record.clip_coef };
            assert_eq!(bits(&after), bits(&scaled(&gradients(), coef)), "on {device}");
        }

        let (outcome, after) =
            clip(gradients(), |slices| clipper.clip(&mut as_gradients(slices), Clip::by_value(0.25)));
        assert!(outcome.unwrap().record.is_empty());
        assert_eq!(bits(&after), bits(&clamped(&gradients(), 0.25)));
    }
}

#[test]
fn empty_gradients_are_clipped() {
    for choice in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        let clipper = SliceClipper::new(&choice).unwrap();
        for nothing in [vec![], vec![vec![], vec![]]] {
            let (outcome, after) = clip(nothing.clone(), |slices| {
                clipper.clip(&mut as_gradients(slices), Clip::by_global_norm(1.0))
            });
            let record = outcome.unwrap().record[0];
            assert_eq!((record.total_norm, record.clip_coef, record.max_magnitude), (0.0, 1.0, 0.0));
            assert_eq!(after, nothing);
            let (outcome, _) =
                clip(nothing, |slices| clipper.clip(&mut as_gradients(slices), Clip::by_value(1.0)));
            assert!(outcome.unwrap().record.is_empty());
        }
    }
}

#[test]
fn an_error_leaves_the_slices_unchanged() {
    for choice in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        let clipper = SliceClipper::new(&choice).unwrap();
        let rows = [
            (Clip::by_global_norm(-1.0), Error::MaxNorm { given: -1.0 }),
            (Clip::by_value(-1.0), Error::ClipValue { given: -1.0 }),
            (Clip::by_value_range(1.0, -1.0), Error::ClipRange { low: 1.0, high: -1.0 }),
            (
                Clip::by_value(1.0).coefficient_only(),
                Error::NeedsNorm { what: "coefficient_only", clip: "Clip::by_value" },
            ),
        ];
        for (options, expected) in rows {
            let (outcome, after) =
                clip(gradients(), |slices| clipper.clip(&mut as_gradients(slices), options));
            assert_eq!(outcome.unwrap_err(), expected);
            assert_eq!(bits(&after), bits(&gradients()));
        }
    }
}

/// Clips gradients of every type, both measured and unmeasured, scaled and unscaled, and returns them.
fn with_parts(clip: impl FnOnce(&mut [Gradient<'_>])) -> (Vec<f32>, Vec<f16>, Vec<bf16>, Vec<f32>) {
    let mut f32s = noise(1, 4099);
    let mut f16s: Vec<_> = noise(2, 1001).into_iter().map(f16::from_f32).collect();
    let mut bf16s: Vec<_> = noise(3, 33).into_iter().map(bf16::from_f32).collect();
    let mut unscaled = noise(4, 77);
    clip(&mut [
        Gradient::f16(&mut f16s),
        Gradient::f32(&mut []),
        Gradient::bf16(&mut bf16s).unmeasured().group(1),
        Gradient::f32(&mut f32s).group(1),
        Gradient::f32(&mut unscaled).unscaled().group(1),
    ]);
    (f32s, f16s, bf16s, unscaled)
}

#[test]
fn groups_of_every_type_are_clipped_alike_on_both_devices() {
    let gpu = SliceClipper::new(&DeviceChoice::Gpu).unwrap();
    let inf = |max_norm| Clip::by_global_norm(max_norm).norm_type(NormType::Inf);
    let rows: [fn(f32) -> Clip; 5] = [
        |max_norm| Clip::by_global_norm(max_norm).loss_scale(2.0),
        |max_norm| Clip::by_norm(max_norm).epsilon(Epsilon::None),
        |threshold| Clip::by_rms(threshold / 100.0),
        |max_norm| Clip::by_global_norm(max_norm).coefficient_only(),
        |value| Clip::by_value(value / 10.0),
    ];
    for clip in rows.into_iter().chain([inf as fn(f32) -> Clip]) {
        let clips = [clip(0.5), clip(2.0)];
        let mut records = [vec![], vec![]];
        let expected = with_parts(|gradients| records[0] = cpu::clip_groups(gradients, &clips).unwrap());
        let after = with_parts(|gradients| records[1] = gpu.clip_groups(gradients, &clips).unwrap().record);
        assert_eq!(records[0].len(), records[1].len(), "{clips:?}");
        for (cpu, gpu) in records[0].iter().zip(&records[1]) {
            assert!((cpu.total_norm - gpu.total_norm).abs() <= 1e-6 * cpu.total_norm, "{cpu:?}, {gpu:?}");
            assert!((cpu.factor - gpu.factor).abs() <= 1e-6 * cpu.factor, "{cpu:?}, {gpu:?}");
        }
        let near = |x: f32, y: f32, ulp: f32| (x - y).abs() <= ulp * y.abs() + f32::MIN_POSITIVE;
        assert!(after.0.iter().zip(&expected.0).all(|(x, y)| near(*x, *y, 1e-6)), "{clips:?}: f32");
        // If the factors differ in the last bit, an element can be rounded the other way.
        let mut pairs = after.1.iter().zip(&expected.1);
        assert!(pairs.all(|(x, y)| near(x.to_f32(), y.to_f32(), 1e-3)), "{clips:?}: f16");
        let mut pairs = after.2.iter().zip(&expected.2);
        assert!(pairs.all(|(x, y)| near(x.to_f32(), y.to_f32(), 8e-3)), "{clips:?}: bf16");
        assert_eq!(after.3, noise(4, 77), "{clips:?}: an unscaled gradient");
        assert_eq!(after.3, expected.3);
    }
}

#[test]
fn without_gradients_only_groups_have_records() {
    for choice in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        let clipper = SliceClipper::new(&choice).unwrap();
        let records = |clip| clipper.clip_groups(&mut [], &[clip, clip]).unwrap().record.len();
        let numbers = [Clip::by_global_norm(1.0), Clip::by_norm(1.0), Clip::by_value(1.0)].map(records);
        assert_eq!(numbers, [2, 0, 0]);
        let supplied = clipper.clip_groups(&mut [], &[Clip::by_supplied_norm(1.0)]);
        assert_eq!(supplied.unwrap_err(), Error::NormNotSupplied);
    }
}

#[test]
fn only_non_finite_gradients_are_skipped() {
    for choice in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        let clipper = SliceClipper::new(&choice).unwrap();
        let clip = |policy| [Clip::by_norm(1.0).non_finite(policy)];
        let (mut a, mut b) = ([3.0, 4.0], [bf16::INFINITY, bf16::ONE, bf16::ONE]);
        let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut []), Gradient::bf16(&mut b)];
        let error = clipper.clip_groups(&mut gradients, &clip(NonFinite::Error)).unwrap_err();
        assert_eq!(
            error,
            Error::NonFinite { gradient: Some(2.into()), total_norm: f32::INFINITY, record: Some(2) }
        );

        let records = clipper.clip_groups(&mut gradients, &clip(NonFinite::Skip)).unwrap().record;
        assert_eq!([0, 1, 2].map(|index: usize| records[index].skip()), [false, false, true]);
        assert_eq!(records[2].first_non_finite(), Some(2));
        let coef = records[0].factor;
        assert_eq!((a, b), ([3.0 * coef, 4.0 * coef], [bf16::INFINITY, bf16::ONE, bf16::ONE]));
        assert!(coef < 0.21);
    }
}

#[test]
fn one_call_clips_without_a_clipper() {
    let (outcome, after) = clip(gradients(), |slices| clip_grad_norm(slices, 1.0));
    let record = outcome.unwrap().record;
    assert_eq!(bits(&after), bits(&scaled(&gradients(), record.clip_coef)));
    assert!((reference::total_norm(&slices(&after)) - 1.0).abs() < 1e-5);

    let (outcome, after) = clip(gradients(), |slices| clip_grad_value(slices, 0.5));
    outcome.unwrap();
    assert_eq!(bits(&after), bits(&clamped(&gradients(), 0.5)));

    assert_eq!(
        clip_grad_norm::<Vec<f32>>(&mut [], f32::NEG_INFINITY).unwrap_err(),
        Error::MaxNorm { given: f32::NEG_INFINITY }
    );
    assert_eq!(clip_grad_value::<Vec<f32>>(&mut [], -1.0).unwrap_err(), Error::ClipValue { given: -1.0 });
}

/// The async twins have the bits and the errors of the blocking calls.
#[test]
fn async_calls_clip_alike() {
    for choice in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        let clipper = pollster::block_on(SliceClipper::new_async(&choice)).unwrap();
        assert_eq!(clipper.device(), SliceClipper::new(&choice).unwrap().device());
        let (blocking, expected) = clip(gradients(), |slices| clipper.clip_grad_norm(slices, 1.0));
        let (found, after) =
            clip(gradients(), |slices| pollster::block_on(clipper.clip_grad_norm_async(slices, 1.0)));
        assert_eq!(found.unwrap().record, blocking.unwrap().record);
        assert_eq!(bits(&after), bits(&expected));

        let (_, after) =
            clip(gradients(), |slices| pollster::block_on(clipper.clip_grad_value_async(slices, 0.25)));
        assert_eq!(bits(&after), bits(&clamped(&gradients(), 0.25)));

        let supplied = Clip::by_supplied_norm(1.0);
        let (blocking, expected) =
            clip(gradients(), |slices| clipper.clip_with_norm(&mut as_gradients(slices), supplied, 8.0));
        let (found, after) = clip(gradients(), |slices| {
            pollster::block_on(clipper.clip_with_norm_async(&mut as_gradients(slices), supplied, 8.0))
        });
        assert_eq!(found.unwrap().record, blocking.unwrap().record);
        assert_eq!(bits(&after), bits(&expected));

        let by_norm = Clip::by_global_norm(1.0);
        let mut none: [Gradient<'_>; 0] = [];
        let error = pollster::block_on(clipper.clip_with_norm_async(&mut none, by_norm, 8.0));
        assert_eq!(error.unwrap_err(), Error::UnexpectedNorm);
        let error = pollster::block_on(clipper.clip_groups_async(&mut none, &[supplied]));
        assert_eq!(error.unwrap_err(), Error::NormNotSupplied);
        let (error, after) = clip(gradients(), |slices| {
            pollster::block_on(clipper.clip_async(&mut as_gradients(slices), Clip::by_value(-1.0)))
        });
        assert_eq!(error.unwrap_err(), Error::ClipValue { given: -1.0 });
        assert_eq!(bits(&after), bits(&gradients()));
    }
    let (outcome, after) = clip(gradients(), |slices| pollster::block_on(clip_grad_norm_async(slices, 1.0)));
    assert_eq!(bits(&after), bits(&scaled(&gradients(), outcome.unwrap().record.clip_coef)));
    let (outcome, after) = clip(gradients(), |slices| pollster::block_on(clip_grad_value_async(slices, 0.5)));
    outcome.unwrap();
    assert_eq!(bits(&after), bits(&clamped(&gradients(), 0.5)));
}

/// A future can move to another thread, as an executor's does.
#[test]
fn async_calls_run_on_any_thread() {
    let clipper = SliceClipper::new(&DeviceChoice::Gpu).unwrap();
    let mut slices = [vec![3.0, 4.0]];
    let future = clipper.clip_grad_norm_async(&mut slices, 1.0);
    let clipped = std::thread::scope(|scope| scope.spawn(|| pollster::block_on(future)).join().unwrap());
    assert_eq!(clipped.unwrap().record.total_norm, 5.0);
    assert!((slices[0][1] - 0.8).abs() < 1e-6);
}

/// The callback that announces the slices of one thread may run on another thread, which also waits.
#[test]
fn threads_share_a_clipper() {
    let clipper = SliceClipper::new(&DeviceChoice::Gpu).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let mut slice = [3.0, -4.0];
                    clipper.clip_grad_value(&mut [&mut slice], 2.5).unwrap();
                    assert_eq!(slice, [2.5, -2.5]);
                }
            });
        }
    });
}
