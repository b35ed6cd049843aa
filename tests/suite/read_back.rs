//! Tickets: when a record arrives, what it holds, and when there is none.

use std::cell::RefCell;
use std::pin::pin;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::{panic, thread};

use gradclip::wgpu;
use gradclip::{
    Clip, ClipPlan, ClipRecord, Clipper, DType, Error, Gradient, GradientId, NonFinite, ReadBack, cpu,
};

use crate::common::gpu::Gpu;
use crate::{gpu, gpu_with};

const HALVE: Clip = Clip::by_global_norm(2.5);

pub(crate) const MEASURE: Clip = Clip::by_global_norm(1.0).coefficient_only();

pub(crate) fn plan(gpu: &Gpu, gradient: &[f32], clip: Clip) -> ClipPlan {
    gpu.clipper.prepare(&[Gradient::new(&gpu.buffer(gradient), DType::F32)], clip).unwrap()
}

/// The time after which a call counts as hanging.
pub(crate) const HANGING: Duration = Duration::from_secs(60);

/// Runs a function on another thread. Returns `None` if it hangs.
pub(crate) fn in_time<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, is_done) = mpsc::channel();
    let thread = thread::spawn(move || done.send(run()));
    match is_done.recv_timeout(HANGING) {
        Ok(outcome) => Some(outcome),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => panic::resume_unwind(thread.join().unwrap_err()),
    }
}

/// Waits through the future.
pub(crate) fn awaited(ticket: ReadBack) -> Result<ClipRecord, Error> {
    pollster::block_on(async { ticket.await })
}

/// Waits through `is_ready`.
pub(crate) fn looked_at(ticket: ReadBack) -> Result<ClipRecord, Error> {
    while !ticket.is_ready() {
        thread::yield_now();
    }
    ticket.wait()
}

#[test]
fn tickets_are_redeemed_in_any_order() {
    let gpu = gpu();
    let plan = plan(gpu, &[3.0, 4.0], HALVE);
    let mut tickets: Vec<_> = (0..5).map(|_| gpu.step(&plan)).collect();
    drop(tickets.remove(3));
    let norms: Vec<_> = tickets.into_iter().rev().map(|ticket| ticket.wait().unwrap().total_norm).collect();
    // The first step measures 5, the others the limit.
    assert_eq!(norms[3], 5.0);
    assert!(norms[..3].iter().all(|norm| (norm - 2.5).abs() < 1e-5), "{norms:?}");
}

#[test]
fn a_ticket_holds_the_record_at_its_place_in_the_encoder() {
    let gpu = gpu();
    let plan = plan(gpu, &[3.0, 4.0], HALVE);
    let (before, first, second) = gpu.submit(|encoder| {
        let before = plan.read_back(encoder);
        plan.encode(encoder);
        let first = plan.read_back(encoder);
        plan.encode(encoder);
        (before, first, plan.read_back(encoder))
    });
    assert_eq!(before.wait(), Err(Error::NothingMeasured));
    let [first, second] = [first, second].map(|ticket| ticket.wait().unwrap());
    assert_eq!(first.total_norm, 5.0);
    assert!((second.total_norm - 2.5).abs() < 1e-5);
}

#[test]
fn a_ticket_can_be_polled_and_awaited() {
    let gpu = gpu();
    let plan = plan(gpu, &[3.0, 4.0], MEASURE);
    for _ in 0..20 {
        assert_eq!(awaited(gpu.step(&plan)).unwrap().total_norm, 5.0);
        let ticket = gpu.step(&plan);
        while !ticket.is_ready() {
            thread::yield_now();
        }
        assert_eq!(ticket.wait().unwrap().total_norm, 5.0);
    }
}

/// The first poll of the future polls the device: a finished step is ready at once, without a thread.
#[test]
fn a_finished_step_is_ready_at_the_first_poll_of_its_future() {
    let gpu = gpu();
    let gradient = gpu.buffer_of(&[3.0_f32, 4.0]);
    let plan = gpu.clipper.prepare(&[Gradient::f32(&gradient)], Clip::by_global_norm(10.0)).unwrap();
    // A busy machine may need longer for the step.
    let is_ready = (0..8).any(|attempt| {
        let ticket = gpu.step(&plan);
        thread::sleep(Duration::from_millis(20 << attempt));
        let future = pin!(ticket.into_future());
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(record) => record.unwrap().total_norm == 5.0,
            Poll::Pending => false,
        }
    });
    assert!(is_ready);
}

#[test]
fn all_records_are_read_back_in_order() {
    let gpu = gpu();
    let buffers: Vec<_> = (1..=300_u16).map(|n| gpu.buffer(&[f32::from(n), 0.0])).collect();
    let gradients: Vec<_> = buffers.iter().map(|buffer| Gradient::new(buffer, DType::F32)).collect();
    let each = gpu.clipper.prepare(&gradients, Clip::by_norm(150.5).coefficient_only()).unwrap();
    assert_eq!(each.records(), 300);
    let [first, all] = {
        let (first, all) = gpu.submit(|encoder| {
            each.encode(encoder);
            (each.read_back(encoder), each.read_back_all(encoder))
        });
        [vec![first.wait().unwrap()], pollster::block_on(async { all.await }).unwrap()]
    };
    assert_eq!(
        all.iter().map(|record| record.total_norm).collect::<Vec<_>>(),
        (1..=300_u16).map(f32::from).collect::<Vec<_>>()
    );
    assert_eq!(first, all[..1]);
    assert!(all.iter().enumerate().all(|(index, record)| record.clipped() == (index >= 150)));
}

/// The ticket of all records returns the error of the first non-finite gradient, and no record.
#[test]
fn one_non_finite_gradient_is_an_error_of_all_records() {
    let gpu = gpu();
    let buffers = [gpu.buffer(&[1.0]), gpu.buffer(&[f32::INFINITY]), gpu.buffer(&[f32::NAN])];
    let mut gradients = buffers.each_ref().map(|buffer| Gradient::new(buffer, DType::F32));
    gradients[1] = gradients[1].clone().label("head");
    let clipper: &Clipper = &gpu.clipper;
    let plan = clipper.prepare(&gradients, Clip::by_norm(2.0).non_finite(NonFinite::Error)).unwrap();
    assert_eq!([plan.label(0), plan.label(1), plan.label(3)], [None, Some("head"), None]);
    let (one, all) = gpu.submit(|encoder| {
        plan.encode(encoder);
        (plan.read_back(encoder), plan.read_back_all(encoder))
    });
    let gradient = Some(GradientId { index: 1, label: Some("head".into()) });
    let expected = Error::NonFinite { gradient, total_norm: f32::INFINITY, record: Some(1) };
    assert_eq!((one.wait().unwrap_err(), all.wait().unwrap_err()), (expected.clone(), expected));
}

#[test]
fn without_gradients_only_groups_have_records() {
    let gpu = gpu();
    for (clip, expected) in [(Clip::by_norm(1.0), 0), (Clip::by_rms(1.0), 0), (Clip::by_global_norm(1.0), 1)]
    {
        let plan = gpu.clipper.prepare(&[], clip).unwrap();
        assert_eq!((gpu.records(&plan).len(), plan.records()), (expected, expected), "{clip:?}");
        assert_eq!(cpu::clip(&mut [], clip).unwrap().len(), expected);
    }
}

/// Before the first norm pass there are no records and no statistics, and the step counts are 0.
#[test]
fn tickets_before_the_first_norm_pass_are_errors() {
    let gpu = gpu();
    let buffer = gpu.buffer(&[3.0, 4.0]);
    let gradients = [Gradient::new(&buffer, DType::F32), Gradient::new(&buffer, DType::F32).elements(0..0)];
    for clip in [MEASURE, Clip::by_norm(1.0), MEASURE.non_finite(NonFinite::Error)] {
        let plan = gpu.clipper.prepare(&gradients, clip.tensor_stats().count_steps()).unwrap();
        let tickets = |encoder: &mut wgpu::CommandEncoder| {
            let records = (plan.read_back(encoder), plan.read_back_all(encoder));
            (records, plan.read_back_tensor_stats(encoder), plan.read_back_step_counts(encoder))
        };
        let ((first, all), stats, counts) = gpu.submit(tickets);
        assert_eq!(first.wait(), Err(Error::NothingMeasured));
        assert_eq!(all.wait(), Err(Error::NothingMeasured));
        assert_eq!(stats.wait(), Err(Error::NothingMeasured));
        assert!(counts.wait().unwrap().iter().all(|counts| counts.steps == 0));
        let ((first, all), stats, counts) = gpu.submit(|encoder| {
            plan.encode_norm(encoder);
            tickets(encoder)
        });
        assert_eq!(first.wait().unwrap().total_norm, 5.0);
        assert_eq!(all.wait().unwrap().len(), plan.records());
        assert_eq!(stats.wait().unwrap().len(), 2);
        assert!(counts.wait().unwrap().iter().all(|counts| counts.steps == 1));
    }
}

/// The ticket of a command buffer that wgpu rejects must not return the record of an earlier one.
#[test]
fn a_rejected_submission_has_no_record() {
    let gpu = gpu_with(|_| {});
    let gradient = gpu.buffer(&[3.0, 4.0]);
    let clip = MEASURE.count_steps();
    let plan = gpu.clipper.prepare(&[Gradient::new(&gradient, DType::F32)], clip).unwrap();
    let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer = || {
        let descriptor = wgpu::BufferDescriptor { label: None, size: 4, usage, mapped_at_creation: false };
        gpu.device.create_buffer(&descriptor)
    };
    let commands = |is_good: bool, with: &dyn Fn(&mut wgpu::CommandEncoder)| {
        let (mut encoder, source, target) = (gpu.encoder(), buffer(), buffer());
        encoder.copy_buffer_to_buffer(&source, 0, &target, 0, 4);
        with(&mut encoder);
        if !is_good {
            source.destroy();
        }
        encoder.finish()
    };
    // Covers all states of a staging buffer: new, used once, used twice, discarded.
    for (step, is_good) in [false, true, false, true, true, false, false, true].into_iter().enumerate() {
        for in_one in [true, false] {
            let tickets = RefCell::new(None);
            let recorded = |encoder: &mut wgpu::CommandEncoder| {
                plan.encode(encoder);
                *tickets.borrow_mut() = Some((plan.read_back(encoder), plan.read_back_step_counts(encoder)));
            };
            let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
            if in_one {
                gpu.queue.submit([commands(is_good, &recorded)]);
            } else {
                // wgpu accepts the valid command buffer before it finds the invalid one.
                let good = commands(true, &recorded);
                gpu.queue.submit([good, commands(is_good, &|_| ())]);
            }
            assert_eq!(pollster::block_on(scope.pop()).is_none(), is_good, "step {step}");
            let (record, counts) = tickets.take().unwrap();
            let norm = record.wait().map(|record| record.total_norm);
            assert_eq!(norm, if is_good { Ok(5.0) } else { Err(Error::SubmissionRejected) }, "step {step}");
            let steps = pollster::block_on(async { counts.await }).map(|counts| counts.len());
            assert_eq!(steps, if is_good { Ok(1) } else { Err(Error::SubmissionRejected) }, "step {step}");
        }
    }
}

#[test]
fn a_ticket_outlives_its_plan() {
    let gpu = gpu();
    let ticket = gpu.step(&plan(gpu, &[3.0, 4.0], MEASURE));
    assert_eq!(ticket.wait().unwrap().total_norm, 5.0);
}

#[test]
fn a_ticket_of_an_encoder_that_is_not_submitted_is_an_error() {
    let gpu = gpu_with(|_| {});
    let plan = plan(&gpu, &[3.0, 4.0], MEASURE);
    for redeem in [ReadBack::wait, awaited] {
        let mut alive = gpu.encoder();
        let ticket = plan.read_back(&mut alive);
        assert!(!ticket.is_ready());
        assert_eq!(in_time(move || redeem(ticket)), Some(Err(Error::NotSubmitted)));

        let mut dropped = gpu.encoder();
        let ticket = plan.read_back(&mut dropped);
        drop(dropped);
        assert_eq!(in_time(move || redeem(ticket)), Some(Err(Error::NotSubmitted)));

        let mut finished = gpu.encoder();
        let ticket = plan.read_back(&mut finished);
        let _commands = finished.finish();
        assert_eq!(in_time(move || redeem(ticket)), Some(Err(Error::NotSubmitted)));

        // A later submission is valid.
        gpu.queue.submit([alive.finish()]);
        assert_eq!(gpu.step(&plan).wait().unwrap().total_norm, 5.0);
    }
}
