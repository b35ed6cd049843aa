//! The tickets of many steps: each record once, in order, at any time.

use std::task::{Context, Poll, Waker};

use gradclip::{Clip, ClipPlan, DType, Error, Gradient, NonFinite, ReadBack, ReadBackQueue, wgpu};

use crate::common::gpu::Gpu;
use crate::{gpu, gpu_with};

/// A plan for gradients of one element each, which the host writes at every step.
pub(crate) struct Training<'a> {
    pub(crate) gpu: &'a Gpu,
    buffers: Vec<wgpu::Buffer>,
    pub(crate) plan: ClipPlan,
}

impl Training<'static> {
    /// Prepares a plan in which every gradient is a group.
    pub(crate) fn new(gradients: usize, clip: Clip) -> Self {
        Self::on(gpu(), gradients, clip)
    }
}

impl<'a> Training<'a> {
    fn on(gpu: &'a Gpu, gradients: usize, clip: Clip) -> Self {
        let buffers: Vec<_> = (0..gradients).map(|_| gpu.writable(4)).collect();
        let list: Vec<_> = buffers
            .iter()
            .enumerate()
            .map(|(group, buffer)| Gradient::new(buffer, DType::F32).group(group))
            .collect();
        let plan = gpu.clipper.prepare_groups(&list, &vec![clip; gradients]).unwrap();
        Self { gpu, buffers, plan }
    }

    /// Submits a step with these gradients.
    pub(crate) fn step<R>(
        &self,
        gradients: &[f32],
        read_back: impl FnOnce(&ClipPlan, &mut wgpu::CommandEncoder) -> ReadBack<R>,
    ) -> ReadBack<R> {
        for (buffer, gradient) in self.buffers.iter().zip(gradients) {
            self.gpu.queue.write_buffer(buffer, 0, &gradient.to_le_bytes());
        }
        self.gpu.submit(|encoder| {
            self.plan.encode(encoder);
            read_back(&self.plan, encoder)
        })
    }
}

fn norm_of(step: u64) -> f32 {
    f32::from(u16::try_from(step + 1).unwrap())
}

#[test]
fn every_step_is_logged_once_and_in_order() {
    let training = Training::new(1, Clip::by_global_norm(1.0));
    // A host that polls at every step, one that polls now and then, and one that polls only at the end.
    for polls_every in [1, 17, 1000] {
        let (mut log, mut logged) = (ReadBackQueue::new(), Vec::new());
        for step in 0..200 {
            log.push(step, training.step(&[norm_of(step)], ClipPlan::read_back));
            if (step + 1) % polls_every == 0 {
                logged.extend(log.arrived().unwrap());
            }
            assert_eq!(log.len() + logged.len(), usize::try_from(step).unwrap() + 1);
        }
        logged.extend(log.wait().unwrap());
        assert!(log.is_empty() && log.arrived().unwrap().is_empty(), "a record was returned twice");
        let logged: Vec<_> = logged.iter().map(|(step, record)| (*step, record.total_norm)).collect();
        let expected: Vec<_> = (0..200).map(|step| (step, norm_of(step))).collect();
        assert_eq!(logged, expected, "polled every {polls_every} steps");
    }
}

/// Polls alone are enough: no call waits.
#[test]
fn records_arrive_without_a_wait() {
    let training = Training::new(1, Clip::by_global_norm(1.0));
    let mut log = ReadBackQueue::new();
    for step in 0..20 {
        log.push(step, training.step(&[norm_of(step)], ClipPlan::read_back));
    }
    let mut steps = Vec::new();
    while steps.len() < 20 {
        steps.extend(log.arrived().unwrap().into_iter().map(|(step, _)| step));
        std::thread::yield_now();
    }
    assert!(steps.iter().copied().eq(0..20), "{steps:?}");
}

#[test]
fn a_queue_holds_records_of_groups_and_statistics() {
    let training = Training::new(3, Clip::by_global_norm(1.0).tensor_stats());
    let gradients = |step: u64| [norm_of(step), 2.0 * norm_of(step), 3.0 * norm_of(step)];
    let (mut groups, mut stats) = (ReadBackQueue::new(), ReadBackQueue::default());
    for step in 0..30 {
        groups.push(step, training.step(&gradients(step), ClipPlan::read_back_all));
        stats.push(step, training.step(&gradients(step), ClipPlan::read_back_tensor_stats));
    }
    let expected: Vec<_> = (0..30).map(|step| (step, gradients(step).to_vec())).collect();
    let norms = groups.wait().unwrap().into_iter();
    let norms: Vec<_> = norms
        .map(|(step, records)| (step, records.iter().map(|record| record.total_norm).collect()))
        .collect();
    assert_eq!(norms, expected);
    let norms = stats.wait().unwrap().into_iter();
    let norms: Vec<_> =
        norms.map(|(step, stats)| (step, stats.iter().map(|own| own.norm).collect())).collect();
    assert_eq!(norms, expected);
}

/// A future that is dropped before its records have arrived loses none.
#[test]
fn a_queue_can_be_awaited() {
    let training = Training::new(1, Clip::by_global_norm(1.0).non_finite(NonFinite::Error));
    let (mut log, mut early) = (ReadBackQueue::new(), Vec::new());
    for step in 0..20 {
        let gradient = if step == 15 { f32::NAN } else { norm_of(step) };
        log.push(step, training.step(&[gradient], ClipPlan::read_back));
        if step == 10 {
            let mut future = Box::pin(log.wait_async());
            let mut context = Context::from_waker(Waker::noop());
            let polled = future.as_mut().poll(&mut context);
            drop(future);
            // All records may have arrived already.
            if let Poll::Ready(records) = polled {
                records.unwrap().into_iter().for_each(|record| early.push(record));
            }
        }
    }
    let mut next = || {
        let records = pollster::block_on(log.wait_async());
        let records = records.map(|records| early.drain(..).chain(records).collect::<Vec<_>>());
        records.map(|records| records.iter().map(|(step, record)| (*step, record.total_norm)).collect())
    };
    let expected = |steps: std::ops::Range<u64>| steps.map(|step| (step, norm_of(step))).collect::<Vec<_>>();
    assert_eq!(next(), Ok(expected(0..15)));
    let Err(Error::InStep { step: 15, error }) = next() else { panic!("step 15 is not finite") };
    assert!(matches!(*error, Error::NonFinite { .. }), "{error:?}");
    assert_eq!(next(), Ok(expected(16..20)));
    assert_eq!(next(), Ok(Vec::new()));
}

#[test]
fn an_error_names_its_step_and_loses_no_other_step() {
    let training = Training::new(1, Clip::by_global_norm(1.0).non_finite(NonFinite::Error));
    let mut log = ReadBackQueue::new();
    let gradients = [1.0, 2.0, f32::INFINITY, f32::NEG_INFINITY, 5.0];
    for (step, gradient) in (0..).zip(gradients) {
        log.push(step, training.step(&[gradient], ClipPlan::read_back));
    }
    let error = |step| {
        let error = Error::NonFinite { gradient: Some(0.into()), total_norm: f32::INFINITY, record: None };
        Err(Error::InStep { step, error: Box::new(error) })
    };
    let mut next = || log.wait().map(|records| records.iter().map(|(step, _)| *step).collect::<Vec<_>>());
    assert_eq!(next(), Ok(vec![0, 1]));
    assert_eq!(next(), error(2));
    assert_eq!(next(), error(3));
    assert_eq!(next(), Ok(vec![4]));
    assert_eq!(next(), Ok(Vec::new()));
    let message = error(2).unwrap_err().to_string();
    assert!(message.starts_with("step 2: ") && message.contains("gradient 0"), "{message}");
}

/// A dropped encoder does not block later steps.
#[test]
fn a_dropped_encoder_is_an_error_of_its_step() {
    let training = Training::new(1, Clip::by_global_norm(1.0));
    let mut log = ReadBackQueue::new();
    log.push(0, training.step(&[1.0], ClipPlan::read_back));
    let mut encoder = training.gpu.encoder();
    log.push(1, training.plan.read_back(&mut encoder));
    drop(encoder);
    log.push(2, training.step(&[3.0], ClipPlan::read_back));
    let mut outcomes = Vec::new();
    while !log.is_empty() {
        match log.arrived() {
            Ok(records) => {
                outcomes.extend(records.into_iter().map(|(step, record)| Ok((step, record.total_norm))));
            }
            Err(error) => outcomes.push(Err(error)),
        }
        std::thread::yield_now();
    }
    let dropped = Error::InStep { step: 1, error: Box::new(Error::NotSubmitted) };
    assert_eq!(outcomes, [Ok((0, 1.0)), Err(dropped), Ok((2, 3.0))]);
}

#[test]
fn a_lost_device_is_an_error_of_each_step() {
    let gpu = gpu_with(|_| {});
    let training = Training::on(&gpu, 1, Clip::by_global_norm(1.0));
    let mut log = ReadBackQueue::new();
    gpu.device.destroy();
    for step in 0..5 {
        let mut encoder = gpu.encoder();
        log.push(step, training.plan.read_back(&mut encoder));
        gpu.queue.submit([encoder.finish()]);
    }
    for step in 0..5 {
        let error = log.wait().unwrap_err();
        assert_eq!(error, Error::InStep { step, error: Box::new(Error::DeviceLost) });
    }
    assert_eq!(log.arrived(), Ok(Vec::new()));
}

#[test]
fn a_queue_may_be_dropped_with_steps_in_flight() {
    let training = Training::new(1, Clip::by_global_norm(1.0));
    let mut log = ReadBackQueue::new();
    for step in 0..10 {
        log.push(step, training.step(&[1.0], ClipPlan::read_back));
    }
    drop(log);
    assert_eq!(training.step(&[3.0], ClipPlan::read_back).wait().unwrap().total_norm, 3.0);
}
