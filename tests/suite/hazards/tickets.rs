//! Tickets in every state, threads, and devices that go away.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{mem, panic, thread};

use gradclip::wgpu::{self, CommandEncoderDescriptor};
use gradclip::{Clip, ClipPlan, ClipRecord, DType, Error, Gradient, NonFinite, ReadBack};

use crate::common::{Gpu, noise};
use crate::{gpu, gpu_with};

const HALVE: Clip = Clip::by_global_norm(2.5);
const MEASURE: Clip = Clip::by_global_norm(1.0).coefficient_only();

fn plan(gpu: &Gpu, gradient: &[f32], clip: Clip) -> ClipPlan {
    gpu.clipper.prepare(&[Gradient::new(&gpu.buffer(gradient), DType::F32)], clip).unwrap()
}

fn step(gpu: &Gpu, plan: &ClipPlan) -> ReadBack {
    gpu.submit(|encoder| {
        plan.encode(encoder);
        plan.read_back(encoder)
    })
}

fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device.create_command_encoder(&CommandEncoderDescriptor::default())
}

/// After so long nothing more is to be expected.
const HANGING: Duration = Duration::from_secs(60);

/// Runs what must not hang; none if it does.
fn in_time<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, is_done) = mpsc::channel();
    let thread = thread::spawn(move || done.send(run()));
    match is_done.recv_timeout(HANGING) {
        Ok(outcome) => Some(outcome),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => panic::resume_unwind(thread.join().unwrap_err()),
    }
}

fn awaited(ticket: ReadBack) -> Result<ClipRecord, Error> {
    pollster::block_on(async { ticket.await })
}

#[test]
fn tickets_are_redeemed_in_any_order() {
    let gpu = gpu();
    let plan = plan(gpu, &[3.0, 4.0], HALVE);
    let mut tickets: Vec<_> = (0..5).map(|_| step(gpu, &plan)).collect();
    drop(tickets.remove(3));
    let norms: Vec<_> = tickets.into_iter().rev().map(|ticket| ticket.wait().unwrap().total_norm).collect();
    // The first step finds 5, the others the limit.
    assert_eq!(norms[3], 5.0);
    assert!(norms[..3].iter().all(|norm| (norm - 2.5).abs() < 1e-5), "{norms:?}");
}

#[test]
fn a_ticket_holds_the_record_of_its_place() {
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
fn a_ticket_can_be_looked_at_and_awaited() {
    let gpu = gpu();
    let plan = plan(gpu, &[3.0, 4.0], MEASURE);
    for _ in 0..20 {
        assert_eq!(awaited(step(gpu, &plan)).unwrap().total_norm, 5.0);
        let ticket = step(gpu, &plan);
        while !ticket.is_ready() {
            thread::yield_now();
        }
        assert_eq!(ticket.wait().unwrap().total_norm, 5.0);
    }
}

/// There is nothing to tell of before the first norm pass; what is counted over the steps is 0.
#[test]
fn nothing_is_told_of_what_was_not_measured() {
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

/// What a command buffer was to leave behind that wgpu has refused is not what the one before has left.
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
        let (mut encoder, source, target) = (encoder(&gpu), buffer(), buffer());
        encoder.copy_buffer_to_buffer(&source, 0, &target, 0, 4);
        with(&mut encoder);
        if !is_good {
            source.destroy();
        }
        encoder.finish()
    };
    // In all ways a staging buffer may have come about: new, used once, used twice, given up.
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
                // Here wgpu takes what is in order for done, until it finds what is not.
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
    let ticket = step(gpu, &plan(gpu, &[3.0, 4.0], MEASURE));
    assert_eq!(ticket.wait().unwrap().total_norm, 5.0);
}

/// Clippers and plans are shared between threads; what one thread polls must not be lost to another.
#[test]
fn threads_wait_at_the_same_time() {
    const THREADS: u32 = 4;
    let gpu = gpu_with(|_| {});
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let gpu = &gpu;
            scope.spawn(move || {
                let gradient = noise(seed, 1000);
                let plan = plan(gpu, &gradient, MEASURE);
                let expected = step(gpu, &plan).wait();
                assert!(expected.is_ok(), "{expected:?}");
                for round in 0..100 {
                    let (waited, polled) = (step(gpu, &plan), step(gpu, &plan));
                    assert_eq!(waited.wait(), expected, "round {round}");
                    assert_eq!(awaited(polled), expected, "round {round}");
                }
            });
        }
    });
}

/// Callbacks run one after the other on the thread that polls, so that of a ticket may never come. The ticket does not
/// depend on it: here the callback before it goes on until the ticket has been redeemed.
#[test]
fn a_callback_on_another_thread_does_not_hold_up_a_ticket() {
    let gpu = gpu_with(|_| {});
    let plan = plan(&gpu, &[3.0, 4.0], MEASURE);
    for redeem in [ReadBack::wait, awaited, looked_at] {
        // Callbacks of mappings come first, in the order in which the buffers were mapped.
        for maps in [false, true] {
            let (started, is_started) = mpsc::channel();
            let (redeemed, is_redeemed) = mpsc::channel::<()>();
            let slow = move || {
                started.send(()).unwrap();
                is_redeemed.recv().unwrap_err();
            };
            let mapped = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 4,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let ticket = gpu.submit(|encoder| {
                if maps {
                    encoder.map_buffer_on_submit(&mapped, wgpu::MapMode::Read, .., move |_| slow());
                } else {
                    encoder.on_submitted_work_done(slow);
                }
                plan.encode(encoder);
                plan.read_back(encoder)
            });
            thread::scope(|scope| {
                scope.spawn(|| gpu.device.poll(wgpu::PollType::wait_indefinitely()));
                is_started.recv().unwrap();
                assert_eq!(redeem(ticket).map(|record| record.total_norm), Ok(5.0));
                drop(redeemed);
            });
        }
    }
}

/// A future has a thread of its own that polls, and so runs the callbacks of others.
#[test]
fn a_callback_that_panics_does_not_take_a_future_with_it() {
    let gpu = gpu_with(|_| {});
    let plan = plan(&gpu, &[3.0, 4.0], MEASURE);
    let ticket = gpu.submit(|encoder| {
        encoder.on_submitted_work_done(|| panic!("as the test wants it"));
        plan.encode(encoder);
        plan.read_back(encoder)
    });
    let norm = in_time(move || awaited(ticket)).map(|record| record.map(|record| record.total_norm));
    assert_eq!(norm, Some(Ok(5.0)));
}

fn looked_at(ticket: ReadBack) -> Result<ClipRecord, Error> {
    while !ticket.is_ready() {
        thread::yield_now();
    }
    ticket.wait()
}

#[test]
fn what_is_not_submitted_is_never_read_back() {
    let gpu = gpu_with(|_| {});
    let plan = plan(&gpu, &[3.0, 4.0], MEASURE);
    for redeem in [ReadBack::wait, awaited] {
        let mut alive = encoder(&gpu);
        let ticket = plan.read_back(&mut alive);
        assert!(!ticket.is_ready());
        assert_eq!(in_time(move || redeem(ticket)), Some(Err(Error::NotSubmitted)));

        let mut dropped = encoder(&gpu);
        let ticket = plan.read_back(&mut dropped);
        drop(dropped);
        assert_eq!(in_time(move || redeem(ticket)), Some(Err(Error::NotSubmitted)));

        let mut finished = encoder(&gpu);
        let ticket = plan.read_back(&mut finished);
        let _commands = finished.finish();
        assert_eq!(in_time(move || redeem(ticket)), Some(Err(Error::NotSubmitted)));

        // Too late is no harm.
        gpu.queue.submit([alive.finish()]);
        assert_eq!(step(&gpu, &plan).wait().unwrap().total_norm, 5.0);
    }
}

/// Nor does it help that another thread submits all the time.
#[test]
fn a_busy_device_does_not_hide_what_is_not_submitted() {
    let gpu = gpu_with(|_| {});
    let plan = plan(&gpu, &noise(1, 100_000), MEASURE);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Two steps under way at any time, so that the queue is never empty; longer than a hang takes to show.
            let (start, mut under_way) = (Instant::now(), step(&gpu, &plan));
            while !is_over.load(Ordering::Relaxed) && start.elapsed() < 2 * HANGING {
                mem::replace(&mut under_way, step(&gpu, &plan)).wait().unwrap();
            }
        });
        let mut encoder = encoder(&gpu);
        let ticket = plan.read_back(&mut encoder);
        let outcome = in_time(move || ticket.wait());
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(outcome, Some(Err(Error::NotSubmitted)));
    });
}

/// What a step consists of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    Preparing,
    Recording,
    Finishing,
    Submitting,
    Waiting,
}

#[test]
fn a_lost_device_is_an_error() {
    use Moment::{Finishing, Preparing, Recording, Submitting, Waiting};
    for redeem in [ReadBack::wait, awaited] {
        for moment in [Preparing, Recording, Finishing, Submitting, Waiting] {
            let outcome = in_time(move || lose_the_device_before(moment, redeem)).expect("no hang");
            let is_right = match (moment, &outcome) {
                (Preparing, outcome) => outcome.is_err(),
                // The GPU may have got there before.
                (Waiting, Ok(record)) => record.total_norm == 5.0,
                (_, outcome) => *outcome == Err(Error::DeviceLost),
            };
            assert!(is_right, "lost before {moment:?}: {outcome:?}");
        }
    }
}

fn lose_the_device_before(
    moment: Moment,
    redeem: fn(ReadBack) -> Result<ClipRecord, Error>,
) -> Result<ClipRecord, Error> {
    let gpu = gpu_with(|_| {});
    let buffer = gpu.buffer(&[3.0, 4.0]);
    let now = |now| {
        if now == moment {
            gpu.device.destroy();
        }
    };
    now(Moment::Preparing);
    let gradient = Gradient::new(&buffer, DType::F32);
    let plan = gpu.clipper.prepare(&[gradient], Clip::by_global_norm(1.0))?;
    now(Moment::Recording);
    let mut encoder = encoder(&gpu);
    plan.encode(&mut encoder);
    let ticket = plan.read_back(&mut encoder);
    now(Moment::Finishing);
    let commands = encoder.finish();
    now(Moment::Submitting);
    gpu.queue.submit([commands]);
    now(Moment::Waiting);
    redeem(ticket)
}

/// With the device every buffer is destroyed, which is no fault of the one that is copied from.
#[test]
fn a_lost_device_is_not_blamed_on_a_buffer() {
    let gpu = gpu_with(|_| {});
    let (buffer, norm) = (gpu.buffer(&[3.0, 4.0]), gpu.buffer(&[5.0]));
    let gradient = [Gradient::new(&buffer, DType::F32)];
    let plan = gpu.clipper.prepare(&gradient, Clip::by_supplied_norm(1.0)).unwrap();
    let mut encoder = encoder(&gpu);
    gpu.device.destroy();
    gpu.device.poll(wgpu::PollType::Poll).ok();
    assert_eq!(plan.copy_norm(&mut encoder, &norm, 0), Err(Error::DeviceLost));
    assert_eq!(plan.copy_max_norm(&mut encoder, 0, &norm, 0), Err(Error::DeviceLost));
}
