//! The API for embedders: constructors, passes of the caller, pipeline caches, awaited tickets, and one check on every way in.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use gradclip::adapters::is_software;
use gradclip::slices::{DeviceChoice, SliceClipper, clip_grad_norm};
use gradclip::wgpu::{self, Features};
use gradclip::{Clip, ClipRecord, Clipper, DType, Error, Gradient, NormType, Parameter, ZClip, cpu};
use half::{bf16, f16};

use crate::common::{Gpu, adapters, bits, least_limits, noise};
use crate::gpu;

fn record_of(gpu: &Gpu, gradient: Gradient<'_>, clip: Clip) -> ClipRecord {
    let plan = gpu.clipper.prepare(&[gradient], clip).unwrap();
    let ticket = gpu.submit(|encoder| {
        plan.encode(encoder);
        plan.read_back(encoder)
    });
    ticket.wait().unwrap()
}

#[test]
fn gradients_are_constructed_from_buffers_and_slices() {
    let gpu = gpu();
    let measure = Clip::by_global_norm(1.0).coefficient_only();
    let norm = |gradient: Gradient<'_>| record_of(gpu, gradient, measure).total_norm;

    let singles = gpu.buffer_of(&[12.0_f32, 3.0, 4.0]);
    for gradient in [Gradient::f32(&singles), Gradient::from(&singles), Gradient::new(&singles, DType::F32)] {
        assert_eq!(norm(gradient), 13.0);
    }
    assert_eq!(norm(singles.slice(4..).into()), 5.0);
    assert_eq!(norm(singles.slice(..4).into()), 12.0);
    assert_eq!(norm(Gradient::from(singles.slice(4..)).elements(0..1)), 12.0, "a later range replaces it");

    let halves = gpu.buffer_of(&[3.0, 4.0].map(f16::from_f32));
    assert_eq!(norm(Gradient::f16(&halves)), 5.0);
    let brains = gpu.buffer_of(&[3.0, 4.0].map(bf16::from_f32));
    assert_eq!(norm(Gradient::bf16(&brains)), 5.0);

    let agc = Clip::by_parameter_norm(0.5, 1e-3).coefficient_only();
    let coef = |parameter: Parameter<'_>, gradient: Gradient<'_>| {
        record_of(gpu, gradient.parameter(parameter), agc).clip_coef
    };
    let pair = || Gradient::from(singles.slice(4..));
    for (parameter, expected) in [
        (Parameter::from(singles.slice(4..)), 0.5),
        (Parameter::f16(&halves), 0.5),
        (Parameter::bf16(&brains), 0.5),
    ] {
        assert_eq!(coef(parameter, pair()), expected);
    }
    for parameter in [Parameter::f32(&singles), Parameter::from(&singles)] {
        assert_eq!(coef(parameter, Gradient::f32(&singles)), 0.5);
    }
}

#[test]
fn host_slices_are_vectors_or_slices() {
    let expected = [vec![0.6, 0.0], vec![0.8]];
    let near = |gradients: &[&[f32]]| {
        let pairs = gradients.concat().into_iter().zip(expected.concat());
        assert!(pairs.into_iter().all(|(x, y)| (x - y).abs() < 1e-6), "{gradients:?}");
    };
    let (mut w, mut b) = ([3.0, 0.0], [4.0]);
    clip_grad_norm(&mut [&mut w[..], &mut b], 1.0).unwrap();
    near(&[&w, &b]);

    let mut vectors = vec![vec![3.0, 0.0], vec![4.0]];
    assert_eq!(clip_grad_norm(&mut vectors, 1.0).unwrap().record.total_norm, 5.0);
    near(&[&vectors[0], &vectors[1]]);

    let clipper = SliceClipper::new(&DeviceChoice::Cpu).unwrap();
    let mut arrays = [[3.0, 0.0], [4.0, 0.0]];
    clipper.clip_grad_norm(&mut arrays, 1.0).unwrap();
    near(&[&arrays[0], &arrays[1][..1]]);
}

/// On a device with few bindings, so that a plan has several dispatches of each kind.
#[test]
fn a_pass_of_the_caller_gives_the_same_bits() {
    let gpu = Gpu::open(&adapters()[0], least_limits());
    let gradients: Vec<_> =
        [5000, 33, 70_001, 4].iter().zip(1..).map(|(&len, seed)| noise(seed, len)).collect();
    let place = |gradients: &[Vec<f32>]| -> Vec<wgpu::Buffer> {
        gradients.iter().map(|gradient| gpu.buffer_of(gradient)).collect()
    };
    let read = |buffers: &[wgpu::Buffer]| -> Vec<Vec<f32>> {
        buffers.iter().map(|buffer| gpu.read(buffer)).collect()
    };
    let by_norm = Clip::by_global_norm(0.5);
    for clip in [by_norm, by_norm.coefficient_only(), Clip::by_norm(0.1), Clip::by_value(0.25)] {
        let run = |encode: &dyn Fn(&gradclip::ClipPlan, &mut wgpu::CommandEncoder)| {
            let buffers = place(&gradients);
            let list: Vec<_> = buffers.iter().map(Gradient::from).collect();
            let plan = gpu.clipper.prepare(&list, clip).unwrap();
            assert!(plan.dispatches() > 1);
            let ticket = gpu.submit(|encoder| {
                encode(&plan, encoder);
                plan.record_buffer().map(|_| plan.read_back_all(encoder))
            });
            (ticket.map(|ticket| ticket.wait().unwrap()), bits(&read(&buffers)))
        };
        let whole = run(&|plan, encoder| plan.encode(encoder));
        let in_pass = run(&|plan, encoder| {
            plan.encode_in_pass(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
        });
        assert_eq!(whole, in_pass, "{clip:?}");
        let halves = |plan: &gradclip::ClipPlan, encoder: &mut wgpu::CommandEncoder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            plan.encode_norm_in_pass(&mut pass);
            plan.encode_scale_in_pass(&mut pass);
        };
        let separate = run(&|plan, encoder| {
            plan.encode_norm(encoder);
            plan.encode_scale(encoder);
        });
        assert_eq!(run(&halves), separate, "{clip:?}");
    }
}

#[test]
fn a_pass_of_the_caller_has_its_timestamps() {
    let adapter = &adapters()[0];
    let required_features = adapter.features() & Features::TIMESTAMP_QUERY;
    if required_features.is_empty() {
        println!("not run: the adapter has no timestamps");
        return;
    }
    let descriptor = wgpu::DeviceDescriptor { required_features, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    let clipper = Clipper::new(&device).unwrap();
    let gpu = Gpu { device, queue, clipper };
    let gradient = gpu.buffer_of(&noise(1, 100_000));
    let plan = gpu.clipper.prepare(&[Gradient::f32(&gradient)], Clip::by_global_norm(0.5)).unwrap();
    let query_set = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
        label: None,
        ty: wgpu::QueryType::Timestamp,
        count: 2,
    });
    let times = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    gpu.submit(|encoder| {
        let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
            query_set: &query_set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
        plan.encode_in_pass(&mut encoder.begin_compute_pass(&descriptor));
        encoder.resolve_query_set(&query_set, 0..2, &times, 0);
    });
    let times: Vec<u64> = gpu.read(&times);
    assert!(times[1] > times[0], "{times:?}");
}

/// Kernels go to the cache, and a second device starts from its data. A software adapter may store nothing in a cache.
#[test]
fn kernels_go_to_a_pipeline_cache() {
    let adapter = &adapters()[0];
    let required_features = adapter.features() & Features::PIPELINE_CACHE;
    if required_features.is_empty() {
        println!("not run: the adapter has no pipeline caches");
        return;
    }
    let open = |data: Option<&[u8]>| {
        let descriptor = wgpu::DeviceDescriptor { required_features, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
        #[expect(unsafe_code, reason = "wgpu cannot check the data of a cache")]
        // SAFETY: the data, if there is any, comes from a cache of the same adapter.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        let clipper = Clipper::with_pipeline_cache(&device, &cache).unwrap();
        (Gpu { device, queue, clipper }, cache)
    };
    let clip = |gpu: &Gpu| {
        let gradient = gpu.buffer_of(&[3.0_f32, 4.0]);
        assert_eq!(record_of(gpu, Gradient::f32(&gradient), Clip::by_global_norm(1.0)).total_norm, 5.0);
        assert!(gpu.read::<f32>(&gradient)[0] < 0.61);
    };
    let (first, cache) = open(None);
    let empty = cache.get_data().map_or(0, |data| data.len());
    clip(&first);
    let data = cache.get_data().expect("a cache with data");
    assert!(
        data.len() > empty || is_software(&adapter.get_info()),
        "{empty} bytes before, {} after",
        data.len()
    );
    clip(&open(Some(&data)).0);

    // The cache of another device is rejected, so it is the one that kernels are compiled with.
    let (second, _) = open(None);
    let clipper = Clipper::with_pipeline_cache(&second.device, &cache).unwrap();
    let gradient = second.buffer_of(&[3.0_f32, 4.0]);
    let error = clipper.prepare(&[Gradient::f32(&gradient)], Clip::by_global_norm(1.0)).unwrap_err();
    assert!(matches!(error, Error::BufferRejected { gradient: None, .. }), "{error}");
}

/// The first poll of the future polls the device, so that a finished step needs no thread and is ready at once.
#[test]
fn a_finished_step_is_ready_at_the_first_poll_of_its_future() {
    let gpu = gpu();
    let gradient = gpu.buffer_of(&[3.0_f32, 4.0]);
    let plan = gpu.clipper.prepare(&[Gradient::f32(&gradient)], Clip::by_global_norm(10.0)).unwrap();
    // A busy machine may need longer for the step.
    let is_ready = (0..8).any(|attempt| {
        let ticket = gpu.submit(|encoder| {
            plan.encode(encoder);
            plan.read_back(encoder)
        });
        thread::sleep(Duration::from_millis(20 << attempt));
        let future = pin!(ticket.into_future());
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(record) => record.unwrap().total_norm == 5.0,
            Poll::Pending => false,
        }
    });
    assert!(is_ready);
}

type SetOption = fn(Clip) -> Clip;

/// Every option that a clip cannot honour, and the same error on every way in.
#[test]
fn an_option_that_a_clip_cannot_honour_is_an_error_on_every_way_in() {
    let needs_norm = |what, clip| Error::NeedsNorm { what, clip };
    let norm_options: [(&str, SetOption); 8] = [
        ("norm_type", |clip| clip.norm_type(NormType::L1)),
        ("epsilon", |clip| clip.epsilon(gradclip::Epsilon::None)),
        ("non_finite", |clip| clip.non_finite(gradclip::NonFinite::Skip)),
        ("loss_scale", |clip| clip.loss_scale(1.0)),
        ("coefficient_only", Clip::coefficient_only),
        ("tensor_stats", Clip::tensor_stats),
        ("count_steps", Clip::count_steps),
        ("z_clip", |clip| clip.z_clip(ZClip::default())),
    ];
    let mut cases = vec![
        (Clip::by_supplied_norm(1.0).tensor_stats(), needs_norm("tensor_stats", "Clip::by_supplied_norm")),
        (Clip::by_rms(1.0).norm_type(NormType::Inf), Error::NormType { given: NormType::Inf }),
        (Clip::by_parameter_norm(1.0, 0.0).z_clip(ZClip::default()), Error::ConflictingLimits),
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
    // State and statistics need a plan, on every way in without one.
    for (option, set) in norm_options.into_iter().skip(5) {
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

/// What a checkpoint or a configuration file holds.
#[cfg(feature = "serde")]
mod serialized {
    use std::fmt::Debug;

    use gradclip::loss_scale::{LossScale, LossScaleState};
    use gradclip::stats::{NormHistory, StepCounts, TensorStats};
    use gradclip::{Epsilon, NonFinite};
    use serde::{Serialize, de::DeserializeOwned};

    use super::*;

    #[track_caller]
    fn round_trip<T: Serialize + DeserializeOwned>(value: &T) -> (String, T) {
        let text = serde_json::to_string(value).unwrap();
        let read = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        (text, read)
    }

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "most callers have a value")]
    fn is_kept<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
        assert_eq!(round_trip(&value).1, value);
    }

    #[test]
    fn options_are_kept() {
        let all = Clip::by_global_norm(0.1)
            .norm_type(NormType::P(-2.5))
            .epsilon(Epsilon::Value(1e-8))
            .non_finite(NonFinite::Zero)
            .loss_scale(1024.0)
            .coefficient_only()
            .tensor_stats()
            .count_steps()
            .z_clip(ZClip { alpha: 0.9, z_threshold: 3.0, warm_up: 7 });
        let clips = [
            all,
            Clip::by_global_norm(f32::INFINITY),
            Clip::by_norm(1.0).norm_type(NormType::P(f32::NEG_INFINITY)),
            Clip::by_rms(0.5),
            Clip::by_parameter_norm(0.01, 1e-3),
            Clip::by_supplied_norm(1.0).norm_type(NormType::L1),
            Clip::by_value(0.5),
            Clip::by_value_range(f32::NEG_INFINITY, 0.25),
        ];
        clips.into_iter().for_each(is_kept);
        [DType::F32, DType::F16, DType::BF16].into_iter().for_each(is_kept);
        [DeviceChoice::Auto, DeviceChoice::Named("A100".into())].into_iter().for_each(is_kept);
    }

    #[test]
    fn a_configuration_names_only_what_it_changes() {
        let read = |text: &str| serde_json::from_str::<Clip>(text);
        assert_eq!(
            read(
                r#"{"method": {"by_global_norm": {"max_norm": 1}}, "norm_type": "inf", "non_finite": "skip"}"#
            )
            .unwrap(),
            Clip::by_global_norm(1.0).norm_type(NormType::Inf).non_finite(NonFinite::Skip)
        );
        // The default epsilon is that of the method.
        assert_eq!(read(r#"{"method": {"by_rms": {"threshold": 0.5}}}"#).unwrap(), Clip::by_rms(0.5));
        assert!(
            read(r#"{"method": {"by_value": {"clip_value": 1}}, "max_norm": 2}"#).is_err(),
            "an unknown option"
        );
        // An invalid value is refused where the clip is used, like any other.
        let invalid = read(r#"{"method": {"by_norm": {"max_norm": -1}}}"#).unwrap();
        assert_eq!(invalid.checked(), Err(Error::MaxNorm { given: -1.0 }));
    }

    #[test]
    fn records_are_kept_bit_for_bit() {
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
    fn state_and_statistics_are_kept() {
        is_kept(TensorStats { norm: f32::INFINITY, max_magnitude: f32::MAX, non_finite: 0, zeros: 3 });
        let with_nan = TensorStats { norm: f32::NAN, max_magnitude: f32::NAN, non_finite: 1, zeros: 0 };
        assert!(round_trip(&with_nan).1.norm.is_nan());
        is_kept(StepCounts { steps: 4, clipped: 3, non_finite: 1, largest_norm: 0.1 });
        is_kept(NormHistory { steps: 25, mean: 1.1, deviation: 0.3 });
        is_kept(LossScale::new(1024.0).unwrap().growth(1.5, 7).unwrap());
        is_kept(LossScaleState::default());
        let damaged = LossScaleState { backoff: 2.0, ..LossScaleState::default() };
        let text = serde_json::to_string(&damaged).unwrap();
        let error = serde_json::from_str::<LossScale>(&text).unwrap_err();
        assert!(error.to_string().contains("backoff factor of the loss scale is 2"), "{error}");
    }
}
