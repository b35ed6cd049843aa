//! Every error, on wgpu's noop backend, which validates all and runs nothing. It must be ours: wgpu's own validation
//! may have nothing to say that nobody asks for.

use std::sync::{Arc, Mutex};

use gradclip::stats::StepCounts;
use gradclip::wgpu::{self, BufferUsages};
use gradclip::{Clip, Clipper, DType, Epsilon, Error, Gradient, NonFinite, NormType, Parameter, cpu};

use crate::common::least_limits;

const NORM: Clip = Clip::by_global_norm(1.0);

/// A device, and what wgpu told its handler of uncaptured errors.
struct Noop {
    adapter: wgpu::Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
    complaints: Arc<Mutex<Vec<String>>>,
}

impl Noop {
    fn new(limits: wgpu::Limits) -> Self {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::NOOP,
            backend_options: wgpu::BackendOptions {
                noop: wgpu::NoopBackendOptions::enabled(),
                ..Default::default()
            },
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapter =
            pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
        Self::open(adapter, limits)
    }

    fn open(adapter: wgpu::Adapter, limits: wgpu::Limits) -> Self {
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let complaints = Arc::<Mutex<Vec<String>>>::default();
        let told = complaints.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            told.lock().unwrap().push(error.to_string());
        }));
        Self { adapter, device, queue, complaints }
    }

    /// Another device of the same adapter.
    fn sibling(&self) -> Self {
        Self::open(self.adapter.clone(), wgpu::Limits::default())
    }

    fn clipper(&self) -> Clipper {
        Clipper::new(&self.device).unwrap()
    }

    fn buffer(&self, size: u64, usage: BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    fn storage(&self, size: u64) -> wgpu::Buffer {
        self.buffer(size, BufferUsages::STORAGE)
    }
}

impl Drop for Noop {
    fn drop(&mut self) {
        let complaints = self.complaints.lock().unwrap();
        assert!(complaints.is_empty() || std::thread::panicking(), "wgpu complains: {complaints:?}");
    }
}

fn f32s(buffer: &wgpu::Buffer) -> Gradient<'_> {
    Gradient::new(buffer, DType::F32)
}

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "they are what is tested")]
fn a_gradient_must_lie_in_its_buffer() {
    const MAX: u64 = u64::MAX;
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let (good, ragged) = (noop.storage(16), noop.storage(10));
    let outside = |start, end| Error::OutOfBounds { gradient: 1.into(), start, end, len: 16 };
    let misaligned = |what, given| Error::Misaligned { gradient: 1.into(), what, given, multiple: 4 };
    let rows = [
        (f32s(&good).elements(0..5), outside(0, 20)),
        (f32s(&good).elements(4..5), outside(16, 20)),
        (f32s(&good).elements(5..5), outside(20, 20)),
        (f32s(&good).elements(3..1), outside(12, 4)),
        (f32s(&good).elements(0..MAX), outside(0, MAX)),
        (f32s(&good).elements(MAX..MAX), outside(MAX, MAX)),
        // Times four, this is 4 in 64 bits.
        (f32s(&good).elements(0..MAX / 4 + 2), outside(0, MAX)),
        (f32s(&good).bytes(8..20), outside(8, 20)),
        (f32s(&good).bytes(8..4), outside(8, 4)),
        (f32s(&good).bytes(0..MAX), outside(0, MAX)),
        (f32s(&good).bytes(MAX..0), outside(MAX, 0)),
        (f32s(&good).bytes(2..8), misaligned("offset", 2)),
        (f32s(&good).bytes(1..1), misaligned("offset", 1)),
        (f32s(&good).bytes(4..10), misaligned("length", 6)),
        (f32s(&ragged), misaligned("length", 10)),
    ];
    for (gradient, expected) in rows {
        let described = format!("{gradient:?}");
        for clip in [NORM, Clip::by_value(1.0)] {
            let error = clipper.prepare(&[f32s(&good).elements(0..1), gradient.clone()], clip).unwrap_err();
            assert_eq!(error, expected, "{described}");
        }
    }
}

#[test]
fn a_parameter_must_lie_in_its_buffer() {
    let noop = Noop::new(wgpu::Limits::default());
    let (good, long) = (noop.storage(16), noop.storage(64));
    let unbindable = noop.buffer(16, BufferUsages::COPY_SRC);
    let parameter = |buffer| Parameter::new(buffer, DType::F32);
    let clip = Clip::by_parameter_norm(0.01, 1e-3);
    let of_parameter = |error| Error::InParameter { error: Box::new(error) };
    let usage =
        Error::BufferUsage { gradient: 0.into(), given: "BufferUsages(COPY_SRC)".into(), needed: "STORAGE" };
    for (parameter, expected) in [
        (parameter(&long).elements(13..17), {
            of_parameter(Error::OutOfBounds { gradient: 0.into(), start: 52, end: 68, len: 64 })
        }),
        (parameter(&long).bytes(2..18), {
            of_parameter(Error::Misaligned { gradient: 0.into(), what: "offset", given: 2, multiple: 4 })
        }),
        (parameter(&unbindable), of_parameter(usage)),
        (parameter(&long), Error::ParameterLength { gradient: 0.into(), given: 16, needed: 4 }),
    ] {
        let gradient = f32s(&good).parameter(parameter);
        assert_eq!(noop.clipper().prepare(std::slice::from_ref(&gradient), clip).unwrap_err(), expected);
        // Nobody looks at it where it is not needed.
        noop.clipper().prepare(&[gradient], NORM).unwrap();
    }
    // One parameter of two gradients, and one in the same buffer as its gradient.
    let shared = [f32s(&good), f32s(&long).elements(0..4)];
    let shared = shared.map(|gradient| gradient.parameter(parameter(&long).elements(8..12)));
    noop.clipper().prepare(&shared, clip).unwrap();
}

#[test]
fn a_buffer_must_be_storage() {
    let noop = Noop::new(wgpu::Limits::default());
    let (good, bad) = (noop.storage(16), noop.buffer(16, BufferUsages::COPY_SRC | BufferUsages::UNIFORM));
    let error = noop.clipper().prepare(&[f32s(&good), f32s(&bad)], NORM).unwrap_err();
    let expected = Error::BufferUsage {
        gradient: 1.into(),
        given: "BufferUsages(COPY_SRC | UNIFORM)".into(),
        needed: "STORAGE",
    };
    assert_eq!(error, expected);
}

#[test]
fn gradients_must_not_overlap() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let (a, b) = (noop.storage(64), noop.storage(64));
    let part = |range| f32s(&a).elements(range);
    let rows = [
        (vec![part(0..4), part(3..5)], (0, 1, 12, 16)),
        (vec![part(3..5), part(0..4)], (1, 0, 12, 16)),
        (vec![part(0..8), f32s(&b), part(2..4)], (0, 2, 8, 16)),
        (vec![part(0..9), part(12..16), part(10..11), part(8..10)], (0, 3, 32, 36)),
        (vec![part(0..2), part(1..1), part(1..3)], (0, 2, 4, 8)),
        (vec![f32s(&a), f32s(&a)], (0, 1, 0, 64)),
        (vec![f32s(&b), f32s(&a), part(15..16)], (1, 2, 60, 64)),
        // Too many for a sort that keeps equals in their order by chance.
        ((0..60).map(|at| f32s(&b).elements(at % 15..at % 15 + 1)).collect(), (0, 15, 0, 4)),
    ];
    for (gradients, (first, second, start, end)) in rows {
        let error = clipper.prepare(&gradients, NORM).unwrap_err();
        assert_eq!(
            error,
            Error::Overlap { first: first.into(), second: second.into(), start, end },
            "{gradients:?}"
        );
    }
}

#[test]
fn what_only_looks_wrong_is_fine() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let (a, b, empty, ragged) = (noop.storage(64), noop.storage(64), noop.storage(0), noop.storage(10));
    let part = |range| f32s(&a).elements(range);
    let rows = [
        vec![],
        vec![f32s(&empty), f32s(&empty)],
        vec![part(0..0), part(16..16)],
        vec![part(0..4), part(4..8)],
        vec![part(4..8), part(2..2), part(6..6), part(0..4)],
        vec![f32s(&a), f32s(&b), f32s(&empty)],
        vec![f32s(&a).bytes(4..8), f32s(&b).bytes(4..8)],
        vec![f32s(&ragged).elements(0..2)],
    ];
    for gradients in rows {
        for clip in [NORM, Clip::by_value(1.0)] {
            let plan =
                clipper.prepare(&gradients, clip).unwrap_or_else(|error| panic!("{gradients:?}: {error}"));
            let mut encoder = noop.encoder();
            plan.encode(&mut encoder);
            plan.encode_norm(&mut encoder);
            plan.encode_scale(&mut encoder);
            noop.queue.submit([encoder.finish()]);
        }
    }
}

#[test]
fn options_must_make_sense() {
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
        (Clip::by_value(1.0).loss_scale(2.0), "NeedsNorm { what: \"loss_scale\", clip: \"Clip::by_value"),
        (Clip::by_value(1.0).epsilon(Epsilon::None), "NeedsNorm { what: \"epsilon\", clip: \"Clip::by_value"),
    ];
    for (clip, expected) in rows {
        // As text: NaN is not equal to itself.
        for error in [clipper.prepare(&[], clip).unwrap_err(), cpu::clip(&mut [], clip).unwrap_err()] {
            assert!(format!("{error:?}").starts_with(expected), "{error:?}, not {expected}");
        }
    }
}

#[test]
fn groups_must_have_clips_of_one_kind() {
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
        (other.norm_type(NormType::L1), "norm_type", ["L2", "L1"]),
        (other.non_finite(NonFinite::Zero), "non_finite", ["Propagate", "Zero"]),
        (other.loss_scale(2.0), "the inverse of loss_scale", ["1.0", "0.5"]),
        (other.epsilon(Epsilon::None), "epsilon", ["1e-6", "0.0"]),
        (other.coefficient_only(), "coefficient_only", ["false", "true"]),
        (other.tensor_stats(), "tensor_stats", ["false", "true"]),
        (other.count_steps(), "count_steps", ["false", "true"]),
        (Clip::by_norm(1.0), "scope", ["Global", "Tensor"]),
        (Clip::by_supplied_norm(1.0), "scope", ["Global", "Supplied"]),
        (Clip::by_value(1.0), "kind", ["by norm", "by value"]),
    ] {
        let error = clipper.prepare_groups(&in_group(2), &[NORM, other, odd]).unwrap_err();
        let given = given.map(String::from);
        assert_eq!(error, Error::GroupsDiffer { first: 0, second: 2, option, given }, "{odd:?}");
    }
    // The same p by two names.
    clipper.prepare_groups(&in_group(1), &[NORM, other.norm_type(NormType::P(2.0))]).unwrap();
}

#[test]
fn changes_must_make_sense() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let (buffer, numbers) = (noop.storage(16), noop.buffer(16, BufferUsages::COPY_SRC));
    let plan = |clips: &[Clip]| {
        let gradients = [f32s(&buffer).elements(0..1), f32s(&buffer).elements(1..2).group(clips.len() - 1)];
        clipper.prepare_groups(&gradients, clips).unwrap()
    };
    let (norms, each, clamp) = (plan(&[NORM; 2]), plan(&[Clip::by_norm(1.0)]), plan(&[Clip::by_value(1.0)]));
    let supplied = plan(&[Clip::by_supplied_norm(1.0)]);
    let (queue, mut encoder) = (&noop.queue, noop.encoder());

    let limits = |given| Err(Error::LimitCount { given, groups: 2 });
    assert_eq!(norms.set_max_norms(queue, &[]), limits(0));
    assert_eq!(norms.set_max_norms(queue, &[1.0; 3]), limits(3));
    assert_eq!(
        norms.copy_max_norm(&mut encoder, 2, &numbers, 0),
        Err(Error::NoSuchGroup { given: 2, groups: 2 })
    );
    assert_eq!(each.set_max_norms(queue, &[1.0; 2]), Err(Error::LimitCount { given: 2, groups: 1 }));
    for given in [-1.0, -1e-45] {
        let error = Error::InGroup { group: 1, error: Box::new(Error::MaxNorm { given }) };
        assert_eq!(norms.set_max_norms(queue, &[1.0, given]), Err(error));
        assert_eq!(each.set_max_norms(queue, &[given]), Err(Error::MaxNorm { given }));
    }
    assert!(matches!(norms.set_max_norms(queue, &[f32::NAN, 1.0]), Err(Error::InGroup { group: 0, .. })));
    for given in [0.0, -1.0, f32::INFINITY, 1e-45] {
        assert_eq!(norms.set_loss_scale(queue, given), Err(Error::LossScale { given }));
    }

    let needs_norm = |what| Err(Error::NeedsNorm { what, clip: "a clip by value" });
    assert_eq!(clamp.set_max_norms(queue, &[1.0]), needs_norm("set_max_norms"));
    assert_eq!(clamp.set_loss_scale(queue, 2.0), needs_norm("set_loss_scale"));
    assert_eq!(clamp.copy_max_norm(&mut encoder, 0, &numbers, 0), needs_norm("copy_max_norm"));
    assert_eq!(
        clamp.copy_inverse_loss_scale(&mut encoder, &numbers, 0),
        needs_norm("copy_inverse_loss_scale")
    );
    let not_by_group = Error::NoGroupLimit { what: "copy_max_norm" };
    assert_eq!(each.copy_max_norm(&mut encoder, 0, &numbers, 0), Err(not_by_group));
    for measures in [&norms, &each, &clamp] {
        assert_eq!(measures.supply_norm(queue, 1.0), Err(Error::UnexpectedNorm));
        assert_eq!(measures.copy_norm(&mut encoder, &numbers, 0), Err(Error::UnexpectedNorm));
    }

    let storage = noop.storage(16);
    for (source, usage, offset) in [
        (&numbers, "BufferUsages(COPY_SRC)", 2),
        (&numbers, "BufferUsages(COPY_SRC)", 16),
        (&numbers, "BufferUsages(COPY_SRC)", u64::MAX - 3),
        (&storage, "BufferUsages(STORAGE)", 0),
    ] {
        let expected = Err(Error::CopySource { offset, len: 16, usage: usage.into() });
        assert_eq!(norms.copy_max_norm(&mut encoder, 1, source, offset), expected);
        assert_eq!(norms.copy_inverse_loss_scale(&mut encoder, source, offset), expected);
        assert_eq!(supplied.copy_norm(&mut encoder, source, offset), expected);
    }
    // What makes sense is fine to the end of the buffer, and of the groups.
    norms.copy_max_norm(&mut encoder, 1, &numbers, 12).unwrap();
    norms.copy_inverse_loss_scale(&mut encoder, &numbers, 12).unwrap();
    supplied.copy_norm(&mut encoder, &numbers, 12).unwrap();
    noop.queue.submit([encoder.finish()]);
}

#[test]
fn a_norm_is_supplied_to_those_who_need_it() {
    let supplied = Clip::by_supplied_norm(1.0);
    assert_eq!(cpu::clip(&mut [], supplied), Err(Error::NormNotSupplied));
    for measures in [NORM, Clip::by_norm(1.0), Clip::by_rms(1.0), Clip::by_value(1.0)] {
        assert_eq!(cpu::clip_with_norm(&mut [], measures, 1.0), Err(Error::UnexpectedNorm));
    }
    let error = Error::NonFinite { gradient: None, total_norm: f32::INFINITY, record: None };
    let clip = supplied.non_finite(NonFinite::Error);
    assert_eq!(cpu::clip_with_norm(&mut [], clip, f32::INFINITY), Err(error));
}

#[test]
fn a_buffer_must_be_of_this_device_and_alive() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let (good, empty) = (noop.storage(64), noop.storage(0));
    let foreign = noop.sibling().storage(64);
    let dead = noop.storage(64);
    dead.destroy();
    let is_refused = |error: &Error, index| matches!(error, Error::BufferRejected { gradient, message } if gradient.as_ref().is_some_and(|gradient| gradient.index == index) && !message.is_empty());
    for bad in [&foreign, &dead] {
        for clip in [NORM, NORM.coefficient_only(), Clip::by_value(1.0)] {
            let gradients = [f32s(&empty), f32s(&good).elements(0..4), f32s(bad), f32s(&good).elements(4..8)];
            let error = clipper.prepare(&gradients, clip).unwrap_err();
            assert!(is_refused(&error, 2), "{error:?}");
        }
        let parameters = [&good, bad].map(|buffer| Parameter::new(buffer, DType::F32).elements(0..4));
        let gradients = parameters.map(|parameter| (f32s(&good), parameter));
        let gradients: Vec<_> = (0..)
            .zip(gradients)
            .map(|(at, (gradient, parameter))| gradient.elements(4 * at..4 * at + 4).parameter(parameter))
            .collect();
        match clipper.prepare(&gradients, Clip::by_parameter_norm(0.1, 1e-3)).unwrap_err() {
            Error::InParameter { error } => assert!(is_refused(&error, 1), "{error:?}"),
            error => panic!("{error:?}"),
        }
    }
    // A failure leaves nothing behind.
    clipper.prepare(&[f32s(&good)], NORM).unwrap();
}

/// wgpu would say so when the plan is submitted, and name no gradient.
#[test]
fn a_buffer_must_not_be_mapped() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let good = noop.storage(64);
    let mapped = noop.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 64,
        usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    let error = Error::BufferMapped { gradient: 1.into() };
    assert_eq!(clipper.prepare(&[f32s(&good), f32s(&mapped)], NORM).unwrap_err(), error);
    let gradient = f32s(&good).parameter(Parameter::new(&mapped, DType::F32));
    let error = Error::InParameter { error: Box::new(Error::BufferMapped { gradient: 0.into() }) };
    assert_eq!(clipper.prepare(&[gradient], Clip::by_parameter_norm(0.1, 1e-3)).unwrap_err(), error);
    let plan = clipper.prepare(&[f32s(&good)], Clip::by_supplied_norm(1.0)).unwrap();
    let mut encoder = noop.encoder();
    let error = plan.copy_norm(&mut encoder, &mapped, 0).unwrap_err();
    assert!(matches!(error, Error::BufferRejected { gradient: None, .. }), "{error:?}");
    mapped.unmap();
    clipper.prepare(&[f32s(&good), f32s(&mapped)], NORM).unwrap();
    plan.copy_norm(&mut encoder, &mapped, 0).unwrap();
    noop.queue.submit([encoder.finish()]);
}

/// wgpu would say so when the encoder is finished, which cannot be submitted then.
#[test]
fn a_number_is_copied_from_a_buffer_of_this_device_that_is_alive() {
    let noop = Noop::new(wgpu::Limits::default());
    let buffer = noop.storage(16);
    let plan = |clip| noop.clipper().prepare(&[f32s(&buffer)], clip).unwrap();
    let (supplied, measures) = (plan(Clip::by_supplied_norm(1.0)), plan(NORM));
    let foreign = noop.sibling().buffer(16, BufferUsages::COPY_SRC);
    let dead = noop.buffer(16, BufferUsages::COPY_SRC);
    dead.destroy();
    let mut encoder = noop.encoder();
    for bad in [&foreign, &dead] {
        for outcome in [
            supplied.copy_norm(&mut encoder, bad, 0),
            measures.copy_max_norm(&mut encoder, 0, bad, 0),
            measures.copy_inverse_loss_scale(&mut encoder, bad, 0),
        ] {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::BufferRejected { gradient: None, .. }), "{error:?}");
        }
    }
    noop.queue.submit([encoder.finish()]);
}

/// Without a handler of uncaptured errors that device panics.
#[test]
fn a_queue_of_another_device_is_refused() {
    let noop = Noop::new(wgpu::Limits::default());
    let buffer = noop.storage(16);
    let plan = |clip| noop.clipper().prepare(&[f32s(&buffer)], clip).unwrap();
    let (supplied, measures) = (plan(Clip::by_supplied_norm(1.0)), plan(NORM.count_steps()));
    let (_device, queue) =
        pollster::block_on(noop.adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    for outcome in [
        measures.set_max_norms(&queue, &[1.0]),
        measures.set_loss_scale(&queue, 2.0),
        measures.set_step_counts(&queue, &[StepCounts::default()]),
        supplied.supply_norm(&queue, 1.0),
    ] {
        assert_eq!(outcome, Err(Error::ForeignQueue));
    }
    measures.set_max_norms(&noop.queue, &[1.0]).unwrap();
}

#[test]
fn a_device_must_allow_the_smallest_kernel() {
    type Lower = fn(&mut wgpu::Limits, u64);
    fn u32(limit: u64) -> u32 {
        limit.try_into().unwrap()
    }
    let rows: [(&str, u64, Lower); 10] = [
        ("max_compute_workgroup_size_x", 256, |limits, to| limits.max_compute_workgroup_size_x = u32(to)),
        ("max_compute_invocations_per_workgroup", 256, |limits, to| {
            limits.max_compute_invocations_per_workgroup = u32(to);
        }),
        ("max_compute_workgroup_storage_size", 5120, |limits, to| {
            limits.max_compute_workgroup_storage_size = u32(to);
        }),
        ("max_compute_workgroups_per_dimension", 256, |limits, to| {
            limits.max_compute_workgroups_per_dimension = u32(to);
        }),
        ("max_storage_buffers_per_shader_stage", 4, |limits, to| {
            limits.max_storage_buffers_per_shader_stage = u32(to);
        }),
        ("max_buffers_and_acceleration_structures_per_shader_stage", 5, |limits, to| {
            limits.max_buffers_and_acceleration_structures_per_shader_stage = u32(to);
        }),
        ("max_bindings_per_bind_group", 5, |limits, to| limits.max_bindings_per_bind_group = u32(to)),
        ("max_uniform_buffers_per_shader_stage", 1, |limits, to| {
            limits.max_uniform_buffers_per_shader_stage = u32(to);
        }),
        ("max_storage_buffer_binding_size", 4 * 65536 + 256, |limits, to| {
            limits.max_storage_buffer_binding_size = to;
        }),
        ("max_buffer_size", 4 * 65536 + 256, |limits, to| limits.max_buffer_size = to),
    ];
    for (name, needed, lower) in rows {
        let mut limits = wgpu::Limits::default();
        lower(&mut limits, needed);
        let enough = Noop::new(limits.clone());
        let gradients = [enough.storage(4 * 65536), enough.storage(20)];
        for clip in [NORM, Clip::by_value(1.0)] {
            enough.clipper().prepare(&gradients.each_ref().map(f32s), clip).unwrap();
        }

        lower(&mut limits, needed - 1);
        let error = Clipper::new(&Noop::new(limits).device).unwrap_err();
        assert_eq!(error, Error::DeviceLimit { what: "clipping", name, needed, allowed: needed - 1 });
    }
}

#[test]
fn tables_must_fit_into_a_binding() {
    let noop = Noop::new(least_limits());
    let buffer = noop.storage(4 * 70_000);
    let scalars: Vec<_> = (0..70_000).map(|at| f32s(&buffer).elements(at..at + 1)).collect();
    let error = noop.clipper().prepare(&scalars, NORM).unwrap_err();
    let Error::DeviceLimit { name, needed, allowed, .. } = error else { panic!("{error:?}") };
    assert!(name.contains("max_storage_buffer_binding_size"));
    assert!(needed > allowed && allowed == least_limits().max_storage_buffer_binding_size);
}

#[test]
fn a_grid_must_hold_the_tiles() {
    // As many tiles as two dimensions hold, and a row more; the tables are no obstacle.
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 256, ..Default::default() };
    let noop = Noop::new(limits);
    let buffer = noop.storage(4 * 256 * 257);
    let scalars = |count| (0..count).map(|at| f32s(&buffer).elements(at..at + 1)).collect::<Vec<_>>();
    let clipper = noop.clipper();
    let plan = clipper.prepare(&scalars(256 * 256), NORM).unwrap();
    let mut encoder = noop.encoder();
    plan.encode(&mut encoder);
    noop.queue.submit([encoder.finish()]);
    match clipper.prepare(&scalars(256 * 257), NORM) {
        Err(error) => assert!(matches!(error, Error::DeviceLimit { .. }), "{error:?}"),
        Ok(plan) => {
            let mut encoder = noop.encoder();
            plan.encode(&mut encoder);
            noop.queue.submit([encoder.finish()]);
        }
    }
}

#[test]
fn a_clip_by_value_has_nothing_to_read_back() {
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
