//! Tickets of several threads, and callbacks on the thread that polls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;
use std::{mem, thread};

use gradclip::wgpu;
use gradclip::{Error, ReadBack};

use crate::common::numbers::noise;
use crate::gpu_with;
use crate::read_back::{HANGING, MEASURE, awaited, in_time, looked_at, plan};

/// Threads share clippers and plans. A record that arrives in one thread's poll must reach the thread that waits for
/// it.
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
                let expected = gpu.step(&plan).wait();
                assert!(expected.is_ok(), "{expected:?}");
                for round in 0..100 {
                    let (waited, polled) = (gpu.step(&plan), gpu.step(&plan));
                    assert_eq!(waited.wait(), expected, "round {round}");
                    assert_eq!(awaited(polled), expected, "round {round}");
                }
            });
        }
    });
}

/// Callbacks run one after the other on the thread that polls, so that the callback of a ticket may never run. Here the
/// callback before it blocks until the ticket has been redeemed.
#[test]
fn a_blocked_callback_on_another_thread_does_not_block_a_ticket() {
    let gpu = gpu_with(|_| {});
    let plan = plan(&gpu, &[3.0, 4.0], MEASURE);
    for redeem in [ReadBack::wait, awaited, looked_at] {
        // Callbacks of mappings run first, in the order of the mappings.
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

/// A future polls on its own thread, which also runs callbacks of the caller.
#[test]
fn a_callback_that_panics_does_not_break_a_future() {
    let gpu = gpu_with(|_| {});
    let plan = plan(&gpu, &[3.0, 4.0], MEASURE);
    let ticket = gpu.submit(|encoder| {
        encoder.on_submitted_work_done(|| panic!("this panic is part of the test"));
        plan.encode(encoder);
        plan.read_back(encoder)
    });
    let norm = in_time(move || awaited(ticket)).map(|record| record.map(|record| record.total_norm));
    assert_eq!(norm, Some(Ok(5.0)));
}

/// Another thread keeps the device busy.
#[test]
fn a_missing_submission_is_an_error_on_a_busy_device() {
    let gpu = gpu_with(|_| {});
    let plan = plan(&gpu, &noise(1, 100_000), MEASURE);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Keeps two steps in flight, so that the queue is never empty, for longer than the time limit of a hang.
            let (start, mut under_way) = (Instant::now(), gpu.step(&plan));
            while !is_over.load(Ordering::Relaxed) && start.elapsed() < 2 * HANGING {
                mem::replace(&mut under_way, gpu.step(&plan)).wait().unwrap();
            }
        });
        let mut encoder = gpu.encoder();
        let ticket = plan.read_back(&mut encoder);
        let outcome = in_time(move || ticket.wait());
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(outcome, Some(Err(Error::NotSubmitted)));
    });
}
