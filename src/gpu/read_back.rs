//! `ReadBack`: a ticket for a copy of a buffer to the host, without a stall.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
#[cfg(not(target_arch = "wasm32"))]
use std::time::Duration;

use futures_intrusive::channel::shared::{OneshotReceiver, OneshotSender, oneshot_channel};

use super::error_scope::{CheckedDevice, is_mapped, now_or_never};
#[cfg(not(target_arch = "wasm32"))]
use crate::panics;
use crate::plan::{MARK, Readout};
use crate::{ClipRecord, Error};

/// The contents of a buffer.
type Outcome = Result<Vec<u8>, Error>;

/// A ticket for the record of one step, from [`ClipPlan::read_back`](crate::ClipPlan::read_back).
///
/// Redeem it with [`wait`](Self::wait) or `.await` after the encoder was submitted: immediately, or some steps later, when the
/// record has arrived and the host need not wait. A ticket may be dropped at any time.
///
/// `R` is a [`ClipRecord`], or a `Vec` of all records, statistics, counts or histories of a plan.
///
/// # Who polls the device
///
/// Native wgpu completes a read-back only while some thread polls the device. A poll also runs the callbacks of your own
/// mappings and submissions, on that thread.
///
/// | call | polls | blocks | thread |
/// |---|---|---|---|
/// | [`is_ready`](Self::is_ready) | once, unless the record has arrived | never | none |
/// | [`wait`](Self::wait) | until the record arrives | yes | none |
/// | `.await` | once, then in a thread of its own | never | one until the record arrives, unless the first poll completes it |
///
/// An `.await` some steps after the submission therefore usually starts no thread. To rule the thread out, await tickets that
/// are [ready](Self::is_ready). If you poll the device yourself, tickets complete at your polls too.
///
/// In a browser, the event loop of the page does the polling, and there is no thread. The ticket of an encoder that is neither
/// submitted nor dropped stays pending there.
#[derive(Debug)]
#[must_use = "a ticket does nothing until it is waited for"]
pub struct ReadBack<R = ClipRecord> {
    state: State<R>,
}

#[derive(Debug)]
enum State<R> {
    UnderWay { delivery: Arc<Delivery>, receiver: OneshotReceiver<Outcome>, readout: Readout<R> },
    Arrived(Result<R, Error>),
}

impl<R> ReadBack<R> {
    pub(super) fn failed(error: Error) -> Self {
        Self { state: State::Arrived(Err(error)) }
    }

    /// Returns whether [`wait`](Self::wait) would return at once. Does not block: it polls the device once, or not at all if the
    /// record has arrived.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.state {
            State::UnderWay { delivery, .. } => delivery.is_ready(),
            State::Arrived(_) => true,
        }
    }

    /// Waits for the GPU, and returns the record. Blocks, and polls the device. Not on wasm32, where nothing may block: `.await` the
    /// ticket.
    ///
    /// # Errors
    ///
    /// [`Error::NotSubmitted`] if the encoder was not submitted (detected after about a second) or was dropped;
    /// [`Error::SubmissionRejected`] if wgpu refused its submission; [`Error::DeviceLost`] if the device was lost or destroyed before the
    /// copy ran; [`Error::NothingMeasured`] for a clip by value, or if no norm pass ran before the copy;
    /// [`Error::NormNotSupplied`] if no norm was supplied to a plan of
    /// [`Clip::by_supplied_norm`](crate::Clip::by_supplied_norm); [`Error::NonFinite`] if the gradients are not finite and the
    /// policy is [`NonFinite::Error`](crate::NonFinite::Error).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(self) -> Result<R, Error> {
        if let State::UnderWay { delivery, .. } = &self.state {
            delivery.drive();
        }
        self.redeem()
    }

    /// Waits until [`redeem`](Self::redeem) returns the record. The record stays in the ticket.
    pub(super) async fn arrival(&mut self) {
        if let State::UnderWay { delivery, receiver, readout } = &self.state {
            drive_in_background(delivery);
            let outcome = receiver.receive().await.unwrap_or(Err(Error::NotSubmitted));
            self.state = State::Arrived(outcome.and_then(|bytes| readout.decode(&bytes)));
        }
    }

    /// Returns the record of a ticket that [`is_ready`](Self::is_ready).
    pub(super) fn redeem(self) -> Result<R, Error> {
        match self.state {
            State::UnderWay { receiver, readout, .. } => {
                let outcome = now_or_never(receiver.receive()).flatten();
                readout.decode(&outcome.unwrap_or(Err(Error::NotSubmitted))?)
            }
            State::Arrived(result) => result,
        }
    }
}

/// The `.await` of a ticket. Never blocks. Errors are those of [`ReadBack::wait`].
impl<R: Send + 'static> IntoFuture for ReadBack<R> {
    type Output = Result<R, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(mut self) -> Self::IntoFuture {
        Box::pin(async move {
            self.arrival().await;
            self.redeem()
        })
    }
}

/// The sending side of a ticket. Only the first delivery counts.
#[derive(Debug)]
struct Delivery {
    staging: Arc<Staging>,
    /// `None` once it has been read.
    page: Mutex<Option<Page>>,
    sender: OneshotSender<Outcome>,
    made: AtomicBool,
}

/// The time between two polls while a ticket waits. A blocking poll would wait for later steps too, and with a timeout it panics
/// in wgpu-core 30.0.1 if another thread polls.
#[cfg(not(target_arch = "wasm32"))]
const PATIENCE: Duration = Duration::from_micros(50);

/// The number of such polls before a ticket waits for all submitted work.
#[cfg(not(target_arch = "wasm32"))]
const PATIENT_WAITS: u32 = 2000;

/// The time in milliseconds that a ticket waits for its own submission after all earlier work is finished. Another thread may be
/// about to submit it, or a call of `submit` may not have returned.
#[cfg(not(target_arch = "wasm32"))]
const GRACE: u32 = 1000;

impl Delivery {
    fn make(&self, outcome: Outcome) {
        // Fails if something was delivered before, or the ticket was dropped.
        let _ = self.sender.send(outcome);
        self.made.store(true, Ordering::Release);
    }

    fn is_made(&self) -> bool {
        self.made.load(Ordering::Acquire)
    }

    /// Makes the delivery if the staging buffer is mapped, and returns whether it is made.
    ///
    /// The callback of the mapping does so too, but it may be late: the thread that polls runs all callbacks one after the other,
    /// and those of the caller may be slow.
    fn collect(&self) -> bool {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        match page.take() {
            Some(mapped) if is_mapped(&mapped.buffer) => {
                self.make(self.staging.read(mapped));
                true
            }
            not_yet => {
                *page = not_yet;
                self.is_made()
            }
        }
    }

    /// Returns whether the delivery is made, after one poll if necessary.
    fn is_ready(&self) -> bool {
        if !self.is_made() {
            self.poll(wgpu::PollType::Poll);
        }
        self.is_made()
    }

    /// Polls the device, and returns whether all submitted work is finished.
    fn poll(&self, poll: wgpu::PollType) -> bool {
        let finished = self.staging.checked_device.poll(poll).unwrap_or_else(|error| {
            self.make(Err(error));
            true
        });
        self.collect();
        finished
    }

    /// Polls the device until the delivery is made, or until it is known that it fails.
    #[cfg(not(target_arch = "wasm32"))]
    fn drive(&self) {
        // Whether all work submitted before this call is finished. Only then can a missing submission be detected, since new steps
        // may be submitted all the time.
        let mut settled = false;
        let (mut waits, mut idle) = (0, 0);
        loop {
            settled |= self.poll(wgpu::PollType::Poll);
            if self.is_made() {
                return;
            }
            if settled {
                // The buffer of a submitted copy would be mapped by now.
                idle += 1;
                match idle {
                    1 if self.staging.checked_device.is_lost() => self.make(Err(Error::DeviceLost)),
                    1 => {}
                    2..=GRACE => std::thread::sleep(Duration::from_millis(1)),
                    _ => self.make(Err(self.staging.checked_device.lost_or(Error::NotSubmitted))),
                }
            } else {
                waits += 1;
                if waits <= PATIENT_WAITS {
                    std::thread::sleep(PATIENCE);
                } else {
                    settled = self.poll(wgpu::PollType::wait_indefinitely());
                }
            }
        }
    }
}

/// The delivery in the callback of a mapping, which wgpu owns. wgpu drops it with an encoder that is never submitted.
struct Promise(Arc<Delivery>);

impl Promise {
    /// Runs when the staging buffer is mapped, or cannot be mapped.
    fn keep(self) {
        if !self.0.collect() {
            // It is not mapped, or the device was destroyed after that.
            self.0.make(Err(Error::DeviceLost));
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // wgpu also drops callbacks if an earlier one panics. The buffer is mapped then.
        if !self.0.collect() {
            self.0.make(Err(Error::NotSubmitted));
        }
    }
}

/// Completes the delivery without blocking the executor: with one poll, or else in a thread that polls.
#[cfg(not(target_arch = "wasm32"))]
fn drive_in_background(delivery: &Arc<Delivery>) {
    // The poll may run a callback of the caller that panics. The thread reports the delivery then.
    if panics::catch(|| delivery.is_ready()).unwrap_or(false) {
        return;
    }
    let thread = std::thread::Builder::new().name("gradclip.read_back".into());
    let driven = delivery.clone();
    let drive = move || {
        // A callback of the caller that panics in this thread must not leave the future pending.
        while panics::catch(|| driven.drive()).is_err() {}
    };
    if thread.spawn(drive).is_err() {
        delivery.drive();
    }
}

/// In a browser the event loop of the page polls.
#[cfg(target_arch = "wasm32")]
fn drive_in_background(_: &Arc<Delivery>) {}

/// A buffer of a plan that the host can read, and its staging buffers.
#[derive(Clone, Debug)]
pub(super) struct Results {
    buffer: wgpu::Buffer,
    staging: Arc<Staging>,
}

/// The offset of every second copy, in bytes.
///
/// A staging buffer is one word longer than the results and their [`MARK`]. Copies go to its first and to its second word in turn.
/// So the previous copy left a zero where the mark of the next copy belongs, and a mark there proves that the next copy has run.
const SHIFT: usize = size_of::<u32>();

impl Results {
    /// Wraps a buffer whose first `bytes` bytes the host can read, and which ends with [`MARK`].
    pub(super) fn new(checked_device: Arc<CheckedDevice>, buffer: wgpu::Buffer, bytes: usize) -> Self {
        let size = buffer.size();
        Self { buffer, staging: Arc::new(Staging { checked_device, size, bytes, free: Mutex::default() }) }
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    pub(super) fn read_back<R>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        readout: Readout<R>,
    ) -> ReadBack<R> {
        let Self { buffer: results, staging } = self;
        let page = match staging.take() {
            Ok(page) => page,
            Err(error) => return ReadBack::failed(error),
        };
        let buffer = page.buffer.clone();
        encoder.copy_buffer_to_buffer(results, 0, &buffer, page.shift as u64, staging.size);
        let (sender, receiver) = oneshot_channel();
        let (staging, page, made) = (staging.clone(), Mutex::new(Some(page)), AtomicBool::new(false));
        let delivery = Arc::new(Delivery { staging, page, sender, made });
        let promise = Promise(delivery.clone());
        // On a lost device only the callback reports an error, since the buffer is valid.
        encoder.map_buffer_on_submit(&buffer, wgpu::MapMode::Read, .., move |_| promise.keep());
        ReadBack { state: State::UnderWay { delivery, receiver, readout } }
    }
}

/// A staging buffer, and the offset of the next copy.
#[derive(Debug)]
struct Page {
    buffer: wgpu::Buffer,
    /// 0 or [`SHIFT`], in bytes.
    shift: usize,
}

/// The staging buffers of one buffer. A ticket takes one, and returns it when its contents have been read.
#[derive(Debug)]
struct Staging {
    checked_device: Arc<CheckedDevice>,
    /// The number of bytes that are copied.
    size: u64,
    /// The number of bytes that the host reads.
    bytes: usize,
    free: Mutex<Vec<Page>>,
}

impl Staging {
    fn take(&self) -> Result<Page, Error> {
        if let Some(page) = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(page);
        }
        let size = self.size + SHIFT as u64;
        let buffer = self.checked_device.in_error_scope("a read-back", size, || {
            let buffer = self.checked_device.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("gradclip.read_back"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                // Mapping zeroes the memory. Otherwise it might hold the mark of a freed buffer: if wgpu rejects only another command
                // buffer of a submission, it considers this one written.
                mapped_at_creation: true,
            });
            buffer.unmap();
            Ok(buffer)
        })?;
        Ok(Page { buffer, shift: 0 })
    }

    /// Reads a mapped buffer.
    fn read(&self, page: Page) -> Outcome {
        let Page { buffer, shift } = page;
        let results = {
            let range = buffer.get_mapped_range(..).map_err(|_| Error::DeviceLost)?;
            let end = range.len() - SHIFT + shift;
            let is_written = range[..end].ends_with(bytemuck::bytes_of(&MARK));
            is_written.then(|| range[shift..shift + self.bytes].to_vec())
        };
        buffer.unmap();
        // A buffer that was not written is not used again, since its old mark is where the next one would be.
        let results = results.ok_or_else(|| self.checked_device.lost_or(Error::SubmissionRejected))?;
        let next = Page { buffer, shift: SHIFT - shift };
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(next);
        Ok(results)
    }
}
