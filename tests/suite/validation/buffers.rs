//! Buffers of gradients and of parameters, and ranges in them.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use gradclip::wgpu::{self, BufferUsages};
use gradclip::{Clip, DType, Error, Gradient, GradientId, Parameter};

use super::{NORM, Noop, f32s};
use crate::gpu_with;

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "this test needs them")]
fn a_gradient_must_be_within_its_buffer() {
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
        // Four times this number wraps to 4 in 64 bits.
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
fn a_parameter_must_be_within_its_buffer() {
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
        // A parameter that a clip does not use is not checked.
        noop.clipper().prepare(&[gradient], NORM).unwrap();
    }
    // Two gradients share a parameter, which is in the buffer of one of them.
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
        // Enough to reveal an unstable sort.
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
fn empty_and_adjacent_ranges_are_valid() {
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
fn a_buffer_must_be_alive_and_of_the_same_device() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let (good, empty) = (noop.storage(64), noop.storage(0));
    let foreign = noop.sibling().storage(64);
    let dead = noop.storage(64);
    dead.destroy();
    let is_rejected = |error: &Error, index| {
        let Error::BufferRejected { gradient: Some(gradient), message } = error else { return false };
        gradient.index == index && !message.is_empty()
    };
    for bad in [&foreign, &dead] {
        for clip in [NORM, NORM.coefficient_only(), Clip::by_value(1.0)] {
            let gradients = [f32s(&empty), f32s(&good).elements(0..4), f32s(bad), f32s(&good).elements(4..8)];
            let error = clipper.prepare(&gradients, clip).unwrap_err();
            assert!(is_rejected(&error, 2), "{error:?}");
        }
        let parameters = [&good, bad].map(|buffer| Parameter::new(buffer, DType::F32).elements(0..4));
        let gradients = parameters.map(|parameter| (f32s(&good), parameter));
        let gradients: Vec<_> = (0..)
            .zip(gradients)
            .map(|(at, (gradient, parameter))| gradient.elements(4 * at..4 * at + 4).parameter(parameter))
            .collect();
        match clipper.prepare(&gradients, Clip::by_parameter_norm(0.1, 1e-3)).unwrap_err() {
            Error::InParameter { error } => assert!(is_rejected(&error, 1), "{error:?}"),
            error => panic!("{error:?}"),
        }
    }
    // The clipper is still usable.
    clipper.prepare(&[f32s(&good)], NORM).unwrap();
}

fn ready<T>(polled: Poll<T>) -> T {
    match polled {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("the future is not ready"),
    }
}

/// Outside a browser, error scopes are ready at once.
#[test]
fn async_calls_have_the_same_errors_at_their_first_poll() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let (good, foreign) = (noop.storage(64), noop.sibling().storage(64));
    let mut context = Context::from_waker(Waker::noop());
    let gradients = [f32s(&good), f32s(&foreign).label("head").group(1)];
    let expected = clipper.prepare_groups(&gradients, &[NORM; 2]).unwrap_err();
    let error = ready(pin!(clipper.prepare_groups_async(&gradients, &[NORM; 2])).poll(&mut context));
    let error = error.unwrap_err();
    let Error::BufferRejected { gradient, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*gradient, Some(GradientId { index: 1, label: Some("head".into()) }));
    assert_eq!(error, expected);
    let mut plan = ready(pin!(clipper.prepare_async(&gradients[..1], NORM)).poll(&mut context)).unwrap();
    let error = ready(pin!(plan.rebind_async(&[f32s(&foreign)])).poll(&mut context)).unwrap_err();
    assert!(matches!(error, Error::BufferRejected { gradient: Some(_), .. }), "{error:?}");
    ready(pin!(plan.rebind_async(&[f32s(&good)])).poll(&mut context)).unwrap();
}

/// wgpu would report this only at the submission, and name no gradient.
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

/// Two devices of two instances. If wgpu confused their buffers, it would scale the wrong one.
#[test]
fn a_buffer_of_another_instance_is_rejected() {
    let [one, other] = [(); 2].map(|()| gpu_with(|_| {}));
    let [own, foreign] = [&one, &other].map(|gpu| gpu.buffer(&[3.0, 4.0]));
    let gradients = [&own, &foreign].map(|buffer| Gradient::new(buffer, DType::F32));
    let error = one.clipper.prepare(&gradients, Clip::by_global_norm(1.0)).unwrap_err();
    let names_it =
        |error: &Error| matches!(error, Error::BufferRejected { gradient: Some(id), .. } if id.index == 1);
    assert!(names_it(&error), "{error:?}");
    let plan = one.clipper.prepare(&gradients[..1], Clip::by_supplied_norm(1.0)).unwrap();
    let mut encoder = one.encoder();
    let source = other.buffer(&[5.0]);
    let error = plan.copy_norm(&mut encoder, &source, 0).unwrap_err();
    assert!(matches!(error, Error::BufferRejected { gradient: None, .. }), "{error:?}");
    assert_eq!(plan.supply_norm(&other.queue, 5.0), Err(Error::ForeignQueue));
    assert_eq!(one.read::<f32>(&own), [3.0, 4.0]);
    assert_eq!(other.read::<f32>(&foreign), [3.0, 4.0]);
}
