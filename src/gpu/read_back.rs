//! Reading a record back without a stall: a copy into a small staging buffer, and a ticket for it.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytemuck::Pod;
use futures_intrusive::channel::shared::{OneshotReceiver, OneshotSender, oneshot_channel};

use super::scope::{guarded, now_or_never};
use crate::{ClipRecord, Error};

/// What a buffer held.
type Outcome = Result<Vec<u8>, Error>;

/// What is in a buffer, or what is wrong with it.
type Reading<R> = fn(&[u8]) -> Result<R, Error>;

/// A ticket for the record of one step, from [`ClipPlan::read_back`](crate::ClipPlan::read_back).
///
/// Redeem it with [`wait`](Self::wait) or `.await` once the encoder has been submitted: at once, or some steps later,
/// when the record has long arrived and nothing has to be waited for. To drop it is fine.
///
/// `R` is a [`ClipRecord`], or the `Vec` of all of a plan, or of what else it keeps.
#[derive(Debug)]
#[must_use = "a ticket does nothing until it is waited for"]
pub struct ReadBack<R = ClipRecord> {
    state: State,
    reading: Reading<R>,
}

#[derive(Debug)]
enum State {
    UnderWay { device: wgpu::Device, delivery: Arc<Delivery>, receiver: OneshotReceiver<Outcome> },
    Failed(Error),
}

/// All that a buffer holds.
pub(super) fn all<T: Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// The first record.
pub(super) fn first(bytes: &[u8]) -> ClipRecord {
    // There is none where each of no gradients was clipped by itself.
    all(bytes).first().copied().unwrap_or(ClipRecord::UNCLIPPED)
}

/// [`all`] records, where gradients that are not finite are an error.
pub(super) fn all_finite(bytes: &[u8]) -> Result<Vec<ClipRecord>, Error> {
    let records: Vec<ClipRecord> = all(bytes);
    match records.iter().position(ClipRecord::skip) {
        Some(index) => Err(records[index].non_finite_error(index, records.len(), |_| None)),
        None => Ok(records),
    }
}

/// The [`first`] record, where gradients that are not finite are an error.
pub(super) fn first_finite(bytes: &[u8]) -> Result<ClipRecord, Error> {
    all_finite(bytes).map(|_| first(bytes))
}

impl<R> ReadBack<R> {
    pub(super) fn failed(error: Error) -> Self {
        Self { state: State::Failed(error), reading: |_| Err(Error::NothingMeasured) }
    }

    /// Whether [`wait`](Self::wait) would return at once. Does not wait.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.state {
            State::UnderWay { device, delivery, .. } => {
                poll(device, wgpu::PollType::Poll);
                delivery.is_made()
            }
            State::Failed(_) => true,
        }
    }

    /// Waits until the GPU has got there, and gives the record.
    ///
    /// # Errors
    ///
    /// [`Error::NotSubmitted`] if the encoder has not been submitted (which takes a second to find out), or was dropped;
    /// [`Error::DeviceLost`] if the device was lost or destroyed before it got there; [`Error::NothingMeasured`] for a
    /// clip by value; [`Error::NonFinite`] if the gradients are not finite and the policy is
    /// [`NonFinite::Error`](crate::NonFinite::Error).
    pub fn wait(self) -> Result<R, Error> {
        let outcome = match self.state {
            State::UnderWay { device, delivery, receiver } => {
                drive(&device, &delivery);
                now_or_never(receiver.receive()).flatten().unwrap_or(Err(Error::NotSubmitted))
            }
            State::Failed(error) => Err(error),
        };
        (self.reading)(&outcome?)
    }
}

/// The `.await` of a ticket; errors as for [`ReadBack::wait`].
impl<R: 'static> IntoFuture for ReadBack<R> {
    type Output = Result<R, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let outcome = match self.state {
                State::UnderWay { device, delivery, receiver } => {
                    drive_in_background(device, delivery);
                    receiver.receive().await.unwrap_or(Err(Error::NotSubmitted))
                }
                State::Failed(error) => Err(error),
            };
            (self.reading)(&outcome?)
        })
    }
}

/// The sending side of a ticket. What is delivered first counts.
#[derive(Debug)]
struct Delivery {
    sender: OneshotSender<Outcome>,
    made: AtomicBool,
}

impl Delivery {
    fn make(&self, outcome: Outcome) {
        // Refused if something has been delivered, or the ticket is gone.
        let _ = self.sender.send(outcome);
        self.made.store(true, Ordering::Release);
    }

    fn is_made(&self) -> bool {
        self.made.load(Ordering::Acquire)
    }
}

/// How long to sleep before looking again whether this ticket's step is done. To wait for the device instead is to wait
/// for later steps too; and to wait with a timeout, in wgpu-core 30.0.1, is to panic where another thread polls.
const PATIENCE: Duration = Duration::from_micros(50);

/// How often to do so, before waiting for all that has been submitted.
const PATIENT_WAITS: u32 = 2000;

/// How many milliseconds all that has been submitted must have been finished for an undelivered ticket to count as not
/// submitted: another thread that polls the device may have taken the delivery out of wgpu's hands, and not made it yet,
/// since callbacks of others come before it.
const GRACE: u32 = 1000;

/// Polls the device until the delivery has been made, if only of the news that there will be none.
fn drive(device: &wgpu::Device, delivery: &Delivery) {
    // Whether all that had been submitted when this began is finished. Only then can it be told that the ticket's
    // encoder was not; new steps may come all the time.
    let mut settled = false;
    let (mut waits, mut idle) = (0, 0);
    loop {
        // It takes two polls: one finds that the copy is done, and its callback maps the staging buffer; the next
        // finds it mapped.
        settled |= poll(device, wgpu::PollType::Poll);
        if delivery.is_made() {
            return;
        }
        if settled {
            idle += 1;
            match idle {
                1 => {}
                2..=GRACE => std::thread::sleep(Duration::from_millis(1)),
                _ => delivery.make(Err(Error::NotSubmitted)),
            }
        } else {
            waits += 1;
            if waits <= PATIENT_WAITS {
                std::thread::sleep(PATIENCE);
            } else {
                settled = poll(device, wgpu::PollType::wait_indefinitely());
            }
        }
    }
}

/// Whether all that has been submitted is finished.
fn poll(device: &wgpu::Device, poll: wgpu::PollType) -> bool {
    device.poll(poll).is_ok_and(|status| status.wait_finished())
}

/// Natively nothing happens unless somebody polls the device, and a future must not block its executor.
#[cfg(not(target_arch = "wasm32"))]
#[expect(clippy::needless_pass_by_value, reason = "where there is no thread the delivery must be let go")]
fn drive_in_background(device: wgpu::Device, delivery: Arc<Delivery>) {
    let thread = std::thread::Builder::new().name("gradclip.read_back".into());
    let (to_poll, to_make) = (device.clone(), delivery.clone());
    if thread.spawn(move || drive(&to_poll, &to_make)).is_err() {
        drive(&device, &delivery);
    }
}

/// In a browser the page's event loop does it. The delivery is let go, so that the channel closes with the encoder.
#[cfg(target_arch = "wasm32")]
fn drive_in_background(_: wgpu::Device, _: Arc<Delivery>) {}

/// A buffer that a plan leaves something in, and the staging buffers through which that comes back.
#[derive(Debug)]
pub(super) struct Results {
    pub(super) buffer: wgpu::Buffer,
    staging: Arc<Staging>,
}

impl Results {
    /// Of which so many bytes mean something: a plan for nothing has a record that does not.
    pub(super) fn new(device: &wgpu::Device, buffer: wgpu::Buffer, bytes: usize) -> Self {
        let (device, size) = (device.clone(), buffer.size());
        Self { buffer, staging: Arc::new(Staging { device, size, bytes, free: Mutex::default() }) }
    }

    pub(super) fn read_back<R>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        reading: Reading<R>,
    ) -> ReadBack<R> {
        let Self { buffer: results, staging } = self;
        let buffer = match staging.take() {
            Ok(buffer) => buffer,
            Err(error) => return ReadBack::failed(error),
        };
        encoder.copy_buffer_to_buffer(results, 0, &buffer, 0, staging.size);
        let (sender, receiver) = oneshot_channel();
        let delivery = Arc::new(Delivery { sender, made: AtomicBool::new(false) });
        let device = staging.device.clone();
        let (staging, to_make) = (staging.clone(), delivery.clone());
        // Mapping on submit would be shorter, but where the device has been lost in between it fails inside the
        // caller's `submit`, outside of any error scope of ours, and panics there.
        encoder.on_submitted_work_done(move || staging.map(&buffer, to_make));
        ReadBack { state: State::UnderWay { device, delivery, receiver }, reading }
    }
}

/// Buffers that the host can read. A ticket takes one and gives it back when what is in it has arrived.
#[derive(Debug)]
struct Staging {
    device: wgpu::Device,
    /// Of each buffer, in bytes.
    size: u64,
    /// How many of them mean something.
    bytes: usize,
    free: Mutex<Vec<wgpu::Buffer>>,
}

impl Staging {
    fn take(&self) -> Result<wgpu::Buffer, Error> {
        if let Some(buffer) = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(buffer);
        }
        let size = self.size;
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
    fn map(self: Arc<Self>, buffer: &wgpu::Buffer, delivery: Arc<Delivery>) {
        let device = self.device.clone();
        let mapped = buffer.clone();
        let refused = guarded(&device, "a read-back", 0, || {
            buffer.map_async(wgpu::MapMode::Read, .., move |result| {
                let outcome = result.map_err(|_| Error::DeviceLost).and_then(|()| self.contents(mapped));
                delivery.make(outcome);
            });
        });
        if let Err(error) = refused {
            log::debug!("mapping a read-back: {error}");
        }
    }

    fn contents(&self, buffer: wgpu::Buffer) -> Outcome {
        let bytes = {
            let range = buffer.get_mapped_range(..).map_err(|_| Error::DeviceLost)?;
            range[..self.bytes].to_vec()
        };
        buffer.unmap();
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        Ok(bytes)
    }
}
