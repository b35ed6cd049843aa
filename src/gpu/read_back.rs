//! Reading a record back without a stall: a copy into a small staging buffer, and a ticket for it.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_intrusive::channel::shared::{OneshotReceiver, OneshotSender, oneshot_channel};

use super::scope::{guarded, now_or_never};
use crate::{ClipRecord, Error};

type Outcome = Result<ClipRecord, Error>;

/// A ticket for the record of one step, from [`ClipPlan::read_back`](crate::ClipPlan::read_back).
///
/// Redeem it with [`wait`](Self::wait) or `.await` once the encoder has been submitted; at once, or some steps later,
/// when the record has long arrived and nothing has to be waited for. To drop it is fine.
#[derive(Debug)]
#[must_use = "a ticket does nothing until it is waited for"]
pub struct ReadBack(State);

#[derive(Debug)]
enum State {
    UnderWay { device: wgpu::Device, sender: Arc<OneshotSender<Outcome>>, receiver: OneshotReceiver<Outcome> },
    Failed(Error),
}

impl ReadBack {
    pub(super) fn failed(error: Error) -> Self {
        Self(State::Failed(error))
    }

    /// Waits until the GPU has got there, and gives the record.
    ///
    /// # Errors
    ///
    /// [`Error::NotSubmitted`] if the encoder has not been submitted, or was dropped; [`Error::DeviceLost`] if the
    /// device was lost or destroyed before it got there; [`Error::NothingMeasured`] for a clip by value.
    pub fn wait(self) -> Outcome {
        match self.0 {
            State::UnderWay { device, sender, receiver } => {
                drive(&device, &sender);
                now_or_never(receiver.receive()).flatten().unwrap_or(Err(Error::NotSubmitted))
            }
            State::Failed(error) => Err(error),
        }
    }
}

/// The `.await` of a ticket; errors as for [`ReadBack::wait`].
impl IntoFuture for ReadBack {
    type Output = Outcome;
    type IntoFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            match self.0 {
                State::UnderWay { device, sender, receiver } => {
                    drive_in_background(device, sender);
                    receiver.receive().await.unwrap_or(Err(Error::NotSubmitted))
                }
                State::Failed(error) => Err(error),
            }
        })
    }
}

/// Sees to it that the outcome has been sent: what has been submitted is finished, what has not never will be.
fn drive(device: &wgpu::Device, sender: &OneshotSender<Outcome>) {
    // The first poll ends when the copy is done, whose callback maps the staging buffer; the second maps it.
    for _ in 0..2 {
        if let Err(error) = device.poll(wgpu::PollType::wait_indefinitely()) {
            log::warn!("waiting for the device: {error}");
        }
    }
    // Refused if there is an outcome already.
    let _ = sender.send(Err(Error::NotSubmitted));
}

/// Natively nothing happens unless somebody polls the device, and a future must not block its executor.
#[cfg(not(target_arch = "wasm32"))]
fn drive_in_background(device: wgpu::Device, sender: Arc<OneshotSender<Outcome>>) {
    let thread = std::thread::Builder::new().name("gradclip.read_back".into());
    let in_background = {
        let (device, sender) = (device.clone(), sender.clone());
        move || drive(&device, &sender)
    };
    if thread.spawn(in_background).is_err() {
        drive(&device, &sender);
    }
}

/// In a browser the page's event loop does it.
#[cfg(target_arch = "wasm32")]
fn drive_in_background(_: wgpu::Device, _: Arc<OneshotSender<Outcome>>) {}

/// The staging buffers of a plan. A ticket takes one and gives it back when its record has arrived.
#[derive(Debug)]
pub(super) struct Staging {
    device: wgpu::Device,
    free: Mutex<Vec<wgpu::Buffer>>,
}

impl Staging {
    pub(super) fn new(device: &wgpu::Device) -> Self {
        Self { device: device.clone(), free: Mutex::default() }
    }

    pub(super) fn read_back(
        self: &Arc<Self>,
        encoder: &mut wgpu::CommandEncoder,
        record: &wgpu::Buffer,
    ) -> ReadBack {
        let buffer = match self.take() {
            Ok(buffer) => buffer,
            Err(error) => return ReadBack::failed(error),
        };
        encoder.copy_buffer_to_buffer(record, 0, &buffer, 0, buffer.size());
        let (sender, receiver) = oneshot_channel();
        let sender = Arc::new(sender);
        let (staging, to_ticket) = (self.clone(), sender.clone());
        // Mapping on submit would be shorter, but where the device has been lost in between it fails inside the
        // caller's `submit`, outside of any error scope of ours, and panics there.
        encoder.on_submitted_work_done(move || staging.map(buffer, to_ticket));
        ReadBack(State::UnderWay { device: self.device.clone(), sender, receiver })
    }

    fn take(&self) -> Result<wgpu::Buffer, Error> {
        if let Some(buffer) = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(buffer);
        }
        let size = size_of::<ClipRecord>() as u64;
        guarded(&self.device, "a read-back", size, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("gradclip.read_back"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })
    }

    /// Maps a buffer that the GPU has written, and sends what is in it.
    fn map(self: Arc<Self>, buffer: wgpu::Buffer, sender: Arc<OneshotSender<Outcome>>) {
        let device = self.device.clone();
        let mapped = buffer.clone();
        let refused = guarded(&device, "a read-back", 0, || {
            buffer.map_async(wgpu::MapMode::Read, .., move |result| {
                let outcome = result.map_err(|_| Error::DeviceLost).and_then(|()| self.take_record(mapped));
                // The ticket may be gone.
                let _ = sender.send(outcome);
            });
        });
        if let Err(error) = refused {
            log::debug!("mapping the record: {error}");
        }
    }

    fn take_record(&self, buffer: wgpu::Buffer) -> Outcome {
        let record = {
            let range = buffer.get_mapped_range(..).map_err(|_| Error::DeviceLost)?;
            bytemuck::pod_read_unaligned(&range)
        };
        buffer.unmap();
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        Ok(record)
    }
}
