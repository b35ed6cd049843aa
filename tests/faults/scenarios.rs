//! What happens in a process with a loader that fails on demand.

use std::path::Path;
use std::time::Duration;
use std::{env, fs, process, thread};

use gradclip::slices::{DeviceChoice, SliceClipper};
use gradclip::wgpu::{self, CommandEncoderDescriptor};
use gradclip::{Clip, ClipPlan, ClipRecord, Clipper, DType, Error, Gradient, ReadBack, ReadBackQueue};

/// The environment variable with the folder of the faults that are on.
pub(crate) const FOLDER: &str = "FAULTS";

/// After so long nothing more is to be expected.
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
    nothing_goes_wrong
    lost_before_wait
    lost_before_await
    lost_before_a_look
    lost_before_a_queue_looks
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

/// Lets calls fail from now on.
pub(crate) fn begin(fault: &str, folder: &Path) {
    fs::write(folder.join(fault), []).unwrap();
}

fn fault(fault: &str) {
    begin(fault, Path::new(&env::var_os(FOLDER).unwrap()));
}

fn mended(fault: &str) {
    fs::remove_file(Path::new(&env::var_os(FOLDER).unwrap()).join(fault)).unwrap();
}

struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    clipper: Clipper,
}

impl Gpu {
    fn open() -> Self {
        thread::spawn(|| {
            thread::sleep(HANGING);
            eprintln!("it hangs");
            process::exit(1);
        });
        let adapter = gradclip::adapters::enumerate().into_iter().next().unwrap();
        assert_eq!(adapter.get_info().backend, wgpu::Backend::Vulkan);
        let (device, queue) =
            pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
        let clipper = Clipper::new(&device).unwrap();
        Self { device, queue, clipper }
    }

    fn buffer(&self) -> wgpu::Buffer {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: None, size: 8, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&[3.0_f32, 4.0]));
        buffer
    }

    fn plan(&self) -> ClipPlan {
        self.clipper.prepare(&[Gradient::new(&self.buffer(), DType::F32)], MEASURE).unwrap()
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&CommandEncoderDescriptor::default())
    }

    fn step(&self, plan: &ClipPlan) -> ReadBack {
        let mut encoder = self.encoder();
        plan.encode(&mut encoder);
        let ticket = plan.read_back(&mut encoder);
        self.queue.submit([encoder.finish()]);
        ticket
    }

    /// Every way in says so, as often as it is asked.
    fn assert_lost(&self, plan: &ClipPlan, buffer: &wgpu::Buffer) {
        for redeem in [ReadBack::wait, awaited, looked_at] {
            assert_eq!(Clipper::new(&self.device).unwrap_err(), Error::DeviceLost);
            // With kernels that are compiled, and with others.
            for clip in [MEASURE, Clip::by_value(1.0)] {
                let gradients = [Gradient::new(buffer, DType::F32)];
                assert_eq!(self.clipper.prepare(&gradients, clip).unwrap_err(), Error::DeviceLost);
            }
            assert_eq!(plan.set_max_norms(&self.queue, &[2.0]), Err(Error::DeviceLost));
            assert_eq!(plan.set_loss_scale(&self.queue, 2.0), Err(Error::DeviceLost));
            assert_eq!(redeem(self.step(plan)), Err(Error::DeviceLost));
        }
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

/// The shim as such changes nothing, so that what the others see comes from its faults.
fn nothing_goes_wrong() {
    let gpu = Gpu::open();
    let plan = gpu.plan();
    for redeem in [ReadBack::wait, awaited, looked_at, queued] {
        assert_eq!(redeem(gpu.step(&plan)).unwrap().total_norm, 5.0);
    }
    let clipper = SliceClipper::new(&DeviceChoice::Gpu).unwrap();
    let mut slice = [3.0, 4.0];
    clipper.clip_grad_value(&mut [&mut slice], 2.5).unwrap();
    assert_eq!(slice, [2.5, 2.5]);
}

fn lost_before(redeem: fn(ReadBack) -> Result<ClipRecord, Error>) {
    let gpu = Gpu::open();
    let (plan, buffer) = (gpu.plan(), gpu.buffer());
    assert_eq!(redeem(gpu.step(&plan)).unwrap().total_norm, 5.0);
    let (first, second) = (gpu.step(&plan), gpu.step(&plan));
    fault("lost");
    assert_eq!(redeem(second), Err(Error::DeviceLost));
    // It may have arrived with the submission of the second.
    assert_right_or_lost(&redeem(first));
    gpu.assert_lost(&plan, &buffer);
    // Nor does it help that the driver answers again.
    mended("lost");
    gpu.assert_lost(&plan, &buffer);
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

fn lost_before_a_look() {
    lost_before(looked_at);
}

fn lost_before_a_queue_looks() {
    lost_before(queued);
}

fn lost_in_a_submission() {
    let gpu = Gpu::open();
    let (plan, buffer) = (gpu.plan(), gpu.buffer());
    let before = gpu.step(&plan);
    fault("submit");
    assert_eq!(gpu.step(&plan).wait(), Err(Error::DeviceLost));
    gpu.assert_lost(&plan, &buffer);
    // It had been submitted before.
    assert_right_or_lost(&before.wait());
}

/// Nobody polls but the tickets' own threads, all of which must hear of it.
fn lost_for_several_threads() {
    let gpu = Gpu::open();
    let plan = gpu.plan();
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

/// A staging buffer that cannot be made must not be recorded: `finish` would panic.
fn lost_between_encode_and_read_back() {
    let gpu = Gpu::open();
    let (plan, other, buffer) = (gpu.plan(), gpu.plan(), gpu.buffer());
    let mut encoder = gpu.encoder();
    plan.encode(&mut encoder);
    let ticket = gpu.step(&other);
    fault("lost");
    assert_eq!(ticket.wait(), Err(Error::DeviceLost));
    let ticket = plan.read_back(&mut encoder);
    gpu.queue.submit([encoder.finish()]);
    assert_eq!(ticket.wait(), Err(Error::DeviceLost));
    gpu.assert_lost(&plan, &buffer);
}

fn out_of_memory<T>(outcome: Result<T, Error>) {
    let error = outcome.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error:?}");
}

/// wgpu gives a device up that has no memory for a pipeline.
fn out_of_memory_for_a_pipeline() {
    let gpu = Gpu::open();
    let (plan, buffer) = (gpu.plan(), gpu.buffer());
    fault("pipeline");
    out_of_memory(gpu.clipper.prepare(
        &[Gradient::new(&buffer, DType::F32)],
        Clip::by_norm(1.0).norm_type(gradclip::NormType::L1),
    ));
    gpu.assert_lost(&plan, &buffer);
}

fn out_of_memory_for_a_plan() {
    let gpu = Gpu::open();
    let (plan, buffer) = (gpu.plan(), gpu.buffer());
    let prepare = || gpu.clipper.prepare(&[Gradient::new(&buffer, DType::F32)], MEASURE);
    fault("buffer");
    out_of_memory(prepare());
    out_of_memory(Clipper::new(&gpu.device));
    mended("buffer");
    prepare().unwrap();
    assert_eq!(gpu.step(&plan).wait().unwrap().total_norm, 5.0);
}

fn out_of_memory_for_a_read_back() {
    let gpu = Gpu::open();
    let plan = gpu.plan();
    fault("buffer");
    out_of_memory(gpu.step(&plan).wait());
    out_of_memory(awaited(gpu.step(&plan)));
    mended("buffer");
    assert_eq!(gpu.step(&plan).wait().unwrap().total_norm, 5.0);
}

fn a_read_back_that_cannot_be_mapped() {
    let gpu = Gpu::open();
    let plan = gpu.plan();
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
    // wgpu itself panics where there is no memory for the pipelines of its own.
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
