//! Loss of the device, at every point of a step.

use gradclip::wgpu;
use gradclip::{Clip, ClipRecord, DType, Error, Gradient, ReadBack};

use crate::gpu_with;
use crate::read_back::{awaited, in_time};

/// The parts of a step.
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
                // The GPU may have finished before the loss.
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
    let mut encoder = gpu.encoder();
    plan.encode(&mut encoder);
    let ticket = plan.read_back(&mut encoder);
    now(Moment::Finishing);
    let commands = encoder.finish();
    now(Moment::Submitting);
    gpu.queue.submit([commands]);
    now(Moment::Waiting);
    redeem(ticket)
}

/// The loss of a device destroys all its buffers. The error must name the device, not the source of a copy.
#[test]
fn a_copy_on_a_lost_device_is_not_an_error_of_its_source() {
    let gpu = gpu_with(|_| {});
    let (buffer, norm) = (gpu.buffer(&[3.0, 4.0]), gpu.buffer(&[5.0]));
    let gradient = [Gradient::new(&buffer, DType::F32)];
    let plan = gpu.clipper.prepare(&gradient, Clip::by_supplied_norm(1.0)).unwrap();
    let mut encoder = gpu.encoder();
    gpu.device.destroy();
    gpu.device.poll(wgpu::PollType::Poll).ok();
    assert_eq!(plan.copy_norm(&mut encoder, &norm, 0), Err(Error::DeviceLost));
    assert_eq!(plan.copy_max_norm(&mut encoder, 0, &norm, 0), Err(Error::DeviceLost));
}
