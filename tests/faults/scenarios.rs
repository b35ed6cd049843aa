//! The scenarios. Each runs in a process whose loader fails on demand.

use std::path::Path;
use std::time::Duration;
use std::{env, fs, process, thread};

use gradclip::slices::{DeviceChoice, SliceClipper};
use gradclip::wgpu;
use gradclip::{Clip, ClipPlan, ClipRecord, Clipper, DType, Error, Gradient, ReadBack, ReadBackQueue};

use crate::common::gpu::{Gpu, adapters};
use crate::loader::{FOLDER, begin};

/// The time after which a scenario counts as hanging.
const HANGING: Duration = Duration::from_secs(60);

const MEASURE: Clip = Clip::by_global_norm(1.0).coefficient_only();

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: fn(),
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        pub(crate) const ALL: &[Scenario] = &[$(Scenario { name: stringify!($name), run: $name }),*];
    };
}

scenarios! {
    no_fault
    lost_before_wait
    lost_before_await
    lost_before_a_poll
    lost_before_a_queue_polls
    lost_in_a_submission
    lost_for_several_threads
    lost_between_encode_and_read_back
    out_of_memory_for_a_pipeline
    out_of_memory_for_a_plan
    out_of_memory_for_a_read_back
    a_read_back_that_cannot_be_mapped
    slices_on_a_lost_device
    slices_without_memory
}

fn fault(fault: &str) {
    begin(fault, Path::new(&env::var_os(FOLDER).unwrap()));
}

fn mended(fault: &str) {
    fs::remove_file(Path::new(&env::var_os(FOLDER).unwrap()).join(fault)).unwrap();
}

/// Opens the first adapter, and ends the process if a scenario hangs.
fn open() -> Gpu {
    thread::spawn(|| {
        thread::sleep(HANGING);
        eprintln!("the scenario hangs");
        process::exit(1);
    });
    let adapter = &adapters()[0];
    assert_eq!(adapter.get_info().backend, wgpu::Backend::Vulkan);
    Gpu::open(adapter, wgpu::Limits::default())
}

/// Uploads a gradient of norm 5.
fn gradient(gpu: &Gpu) -> wgpu::Buffer {
    let buffer = gpu.writable(8);
    gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&[3.0_f32, 4.0]));
    buffer
}

fn plan(gpu: &Gpu) -> ClipPlan {
    gpu.clipper.prepare(&[Gradient::new(&gradient(gpu), DType::F32)], MEASURE).unwrap()
}

/// Checks that every entry point reports the loss, every time.
fn assert_lost(gpu: &Gpu, plan: &ClipPlan, buffer: &wgpu::Buffer) {
    for redeem in [ReadBack::wait, awaited, looked_at] {
        assert_eq!(Clipper::new(&gpu.device).unwrap_err(), Error::DeviceLost);
        // With compiled kernels, and with kernels that are not compiled yet.
        for clip in [MEASURE, Clip::by_value(1.0)] {
            let gradients = [Gradient::new(buffer, DType::F32)];
            assert_eq!(gpu.clipper.prepare(&gradients, clip).unwrap_err(), Error::DeviceLost);
        }
        assert_eq!(plan.set_max_norms(&gpu.queue, &[2.0]), Err(Error::DeviceLost));
        assert_eq!(plan.set_loss_scale(&gpu.queue, 2.0), Err(Error::DeviceLost));
        assert_eq!(redeem(gpu.step(plan)), Err(Error::DeviceLost));
    }
}

fn awaited(ticket: ReadBack) -> Result<ClipRecord, Error> {
    pollster::block_on(async { ticket.await })
}

fn looked_at(ticket: ReadBack) -> Result<ClipRecord, Error> {
    while !ticket.is_ready() {
        thread::yield_now();
    }
    ticket.wait()
}

fn queued(ticket: ReadBack) -> Result<ClipRecord, Error> {
    let mut queue = ReadBackQueue::new();
    queue.push(1, ticket);
    loop {
        match queue.arrived() {
            Ok(records) if records.is_empty() => {}
            Ok(records) => return Ok(records[0].1),
            Err(Error::InStep { error, .. }) => return Err(*error),
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Without a fault the shim changes nothing.
fn no_fault() {
    let gpu = open();
    let plan = plan(&gpu);
    for redeem in [ReadBack::wait, awaited, looked_at, queued] {
        assert_eq!(redeem(gpu.step(&plan)).unwrap().total_norm, 5.0);
    }
    let clipper = SliceClipper::new(&DeviceChoice::Gpu).unwrap();
    let mut slice = [3.0, 4.0];
    clipper.clip_grad_value(&mut [&mut slice], 2.5).unwrap();
    assert_eq!(slice, [2.5, 2.5]);
}

fn lost_before(redeem: fn(ReadBack) -> Result<ClipRecord, Error>) {
    let gpu = open();
    let (plan, buffer) = (plan(&gpu), gradient(&gpu));
    assert_eq!(redeem(gpu.step(&plan)).unwrap().total_norm, 5.0);
    let (first, second) = (gpu.step(&plan), gpu.step(&plan));
    fault("lost");
    assert_eq!(redeem(second), Err(Error::DeviceLost));
    // The first record may have arrived during the submission of the second step.
    assert_right_or_lost(&redeem(first));
    assert_lost(&gpu, &plan, &buffer);
    // The device stays lost even if the driver works again.
    mended("lost");
    assert_lost(&gpu, &plan, &buffer);
}

fn assert_right_or_lost(outcome: &Result<ClipRecord, Error>) {
    match outcome {
        Ok(record) => assert_eq!(record.total_norm, 5.0),
        Err(error) => assert_eq!(*error, Error::DeviceLost),
    }
}

fn lost_before_wait() {
    lost_before(ReadBack::wait);
}

fn lost_before_await() {
    lost_before(awaited);
}

fn lost_before_a_poll() {
    lost_before(looked_at);
}

fn lost_before_a_queue_polls() {
    lost_before(queued);
}

fn lost_in_a_submission() {
    let gpu = open();
    let (plan, buffer) = (plan(&gpu), gradient(&gpu));
    let before = gpu.step(&plan);
    fault("submit");
    assert_eq!(gpu.step(&plan).wait(), Err(Error::DeviceLost));
    assert_lost(&gpu, &plan, &buffer);
    // This step was submitted before the loss.
    assert_right_or_lost(&before.wait());
}

/// Only the threads that wait for tickets poll, and all of them must report the loss.
fn lost_for_several_threads() {
    let gpu = open();
    let plan = plan(&gpu);
    assert_eq!(gpu.step(&plan).wait().unwrap().total_norm, 5.0);
    let mut encoder = gpu.encoder();
    let tickets = [(); 4].map(|()| plan.read_back(&mut encoder));
    fault("lost");
    thread::scope(|scope| {
        let threads = tickets.map(|ticket| scope.spawn(|| awaited(ticket)));
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Err(Error::DeviceLost));
        }
    });
}

/// If the staging buffer cannot be created, no copy to it must be recorded: `finish` would panic.
fn lost_between_encode_and_read_back() {
    let gpu = open();
    let (plan, other, buffer) = (plan(&gpu), plan(&gpu), gradient(&gpu));
    let mut encoder = gpu.encoder();
    plan.encode(&mut encoder);
    let ticket = gpu.step(&other);
    fault("lost");
    assert_eq!(ticket.wait(), Err(Error::DeviceLost));
    let ticket = plan.read_back(&mut encoder);
    gpu.queue.submit([encoder.finish()]);
    assert_eq!(ticket.wait(), Err(Error::DeviceLost));
    assert_lost(&gpu, &plan, &buffer);
}

fn out_of_memory<T>(outcome: Result<T, Error>) {
    let error = outcome.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error:?}");
}

/// wgpu treats the device as lost if there is no memory for a pipeline.
fn out_of_memory_for_a_pipeline() {
    let gpu = open();
    let (plan, buffer) = (plan(&gpu), gradient(&gpu));
    fault("pipeline");
    out_of_memory(gpu.clipper.prepare(
        &[Gradient::new(&buffer, DType::F32)],
        Clip::by_norm(1.0).norm_type(gradclip::NormType::L1),
    ));
    assert_lost(&gpu, &plan, &buffer);
}

fn out_of_memory_for_a_plan() {
    let gpu = open();
    let (plan, buffer) = (plan(&gpu), gradient(&gpu));
    let prepare = || gpu.clipper.prepare(&[Gradient::new(&buffer, DType::F32)], MEASURE);
    fault("buffer");
    out_of_memory(prepare());
    out_of_memory(Clipper::new(&gpu.device));
    mended("buffer");
    prepare().unwrap();
    assert_eq!(gpu.step(&plan).wait().unwrap().total_norm, 5.0);
}

fn out_of_memory_for_a_read_back() {
    let gpu = open();
    let plan = plan(&gpu);
    fault("buffer");
    out_of_memory(gpu.step(&plan).wait());
    out_of_memory(awaited(gpu.step(&plan)));
    mended("buffer");
    assert_eq!(gpu.step(&plan).wait().unwrap().total_norm, 5.0);
}

fn a_read_back_that_cannot_be_mapped() {
    let gpu = open();
    let plan = plan(&gpu);
    for what in ["map", "memory"] {
        fault(what);
    }
    for redeem in [ReadBack::wait, awaited, looked_at] {
        match redeem(gpu.step(&plan)) {
            Ok(record) => assert_eq!(record.total_norm, 5.0),
            Err(Error::DeviceLost | Error::OutOfMemory { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn slices_on_a_lost_device() {
    for what in ["lost", "submit"] {
        let clipper = SliceClipper::new(&DeviceChoice::Gpu).unwrap();
        let mut slice = [3.0, 4.0];
        fault(what);
        for _ in 0..2 {
            let outcome = clipper.clip_grad_norm(&mut [&mut slice], 1.0);
            assert_eq!(outcome.map(|_| ()).unwrap_err(), Error::DeviceLost);
        }
        assert_eq!(slice, [3.0, 4.0]);
        mended(what);
    }
}

fn slices_without_memory() {
    // wgpu itself panics if there is no memory for its own pipelines.
    fault("pipeline");
    let error = SliceClipper::new(&DeviceChoice::Gpu).unwrap_err();
    assert!(matches!(error, Error::NoDevice { .. }), "{error:?}");
    mended("pipeline");
    for what in ["pipeline", "buffer", "descriptors"] {
        let clipper = SliceClipper::new(&DeviceChoice::Gpu).unwrap();
        let mut slice = [3.0, 4.0];
        fault(what);
        out_of_memory(clipper.clip_grad_norm(&mut [&mut slice], 1.0));
        assert_eq!(slice, [3.0, 4.0]);
        mended(what);
    }
}
