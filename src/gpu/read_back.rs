//! Reading a record back without a stall: a copy into a small staging buffer, and a ticket for it.

use std::future::IntoFuture;
#[cfg(not(target_arch = "wasm32"))]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytemuck::Pod;
use futures_intrusive::channel::shared::{OneshotReceiver, OneshotSender, oneshot_channel};

use super::error_scope::{CheckedDevice, is_mapped, now_or_never};
use super::labels::Labels;
use crate::{ClipRecord, Error, TensorStats};

/// What a buffer held.
type Outcome = Result<Vec<u8>, Error>;

/// What is in a buffer, or what is wrong with it.
type Reading<R> = fn(&[u8]) -> Result<R, Error>;

/// A ticket for the record of one step, from [`ClipPlan::read_back`](crate::ClipPlan::read_back).
///
/// Redeem it with [`wait`](Self::wait) or `.await` after the encoder was submitted: immediately, or some steps later, when the
/// record has arrived and the host need not wait. A ticket may be dropped at any time.
///
/// `R` is a [`ClipRecord`], or a `Vec` of all records, statistics, counts or histories of a plan.
#[derive(Debug)]
#[must_use = "a ticket does nothing until it is waited for"]
pub struct ReadBack<R = ClipRecord> {
    state: State,
    reading: Reading<R>,
    labels: Labels,
}

#[derive(Debug)]
enum State {
    UnderWay { delivery: Arc<Delivery>, receiver: OneshotReceiver<Outcome> },
    Failed(Error),
}

/// All that a buffer holds.
pub(super) fn all<T: Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// All records, each of which must come from a norm pass.
pub(super) fn all_records(bytes: &[u8]) -> Result<Vec<ClipRecord>, Error> {
    let records: Vec<ClipRecord> = all(bytes);
    records.iter().try_for_each(ClipRecord::check_measured)?;
    Ok(records)
}

/// The first of [`all_records`].
pub(super) fn first(bytes: &[u8]) -> Result<ClipRecord, Error> {
    // There is none where each of no gradients was clipped by itself.
    Ok(all_records(bytes)?.first().copied().unwrap_or(ClipRecord::UNCLIPPED))
}

/// [`all_records`], where gradients that are not finite are an error.
pub(super) fn all_finite(bytes: &[u8]) -> Result<Vec<ClipRecord>, Error> {
    let records = all_records(bytes)?;
    match records.iter().position(ClipRecord::skip) {
        Some(index) => Err(records[index].non_finite_error(index, records.len(), |_| None)),
        None => Ok(records),
    }
}

/// The [`first`] record, where gradients that are not finite are an error.
pub(super) fn first_finite(bytes: &[u8]) -> Result<ClipRecord, Error> {
    all_finite(bytes)?;
    first(bytes)
}

/// All statistics, each of which must come from a norm pass.
pub(super) fn all_stats(bytes: &[u8]) -> Result<Vec<TensorStats>, Error> {
    let stats: Vec<TensorStats> = all(bytes);
    if stats.iter().all(TensorStats::is_measured) { Ok(stats) } else { Err(Error::NothingMeasured) }
}

impl<R> ReadBack<R> {
    pub(super) fn failed(error: Error) -> Self {
        let reading: Reading<R> = |_| Err(Error::NothingMeasured);
        Self { state: State::Failed(error), reading, labels: Labels::default() }
    }

    /// Names gradients by these labels, should there be an error about one.
    pub(super) fn labelled(self, labels: &Labels) -> Self {
        Self { labels: labels.clone(), ..self }
    }

    /// Whether [`wait`](Self::wait) would return at once. Does not wait.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.state {
            State::UnderWay { delivery, .. } => {
                delivery.poll(wgpu::PollType::Poll);
                delivery.is_made()
            }
            State::Failed(_) => true,
        }
    }

    /// Waits for the GPU, and returns the record.
    ///
    /// # Errors
    ///
    /// [`Error::NotSubmitted`] if the encoder was not submitted (detected after about a second) or was dropped;
    /// [`Error::SubmissionRejected`] if wgpu refused its submission; [`Error::DeviceLost`] if the device was lost or destroyed before the
    /// copy ran; [`Error::NothingMeasured`] for a clip by value, or if no norm pass ran before the copy;
    /// [`Error::NormNotSupplied`] if no norm was supplied to a plan of
    /// [`Clip::by_supplied_norm`](crate::Clip::by_supplied_norm); [`Error::NonFinite`] if the gradients are not finite and the
    /// policy is [`NonFinite::Error`](crate::NonFinite::Error).
    pub fn wait(self) -> Result<R, Error> {
        let outcome = match self.state {
            State::UnderWay { delivery, receiver } => {
                delivery.drive();
                now_or_never(receiver.receive()).flatten().unwrap_or(Err(Error::NotSubmitted))
            }
            State::Failed(error) => Err(error),
        };
        (self.reading)(&outcome?).map_err(|error| self.labels.name(error))
    }
}

/// The `.await` of a ticket; errors as for [`ReadBack::wait`].
impl<R: 'static> IntoFuture for ReadBack<R> {
    type Output = Result<R, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let outcome = match self.state {
                State::UnderWay { delivery, receiver } => {
                    drive_in_background(delivery);
                    receiver.receive().await.unwrap_or(Err(Error::NotSubmitted))
                }
                State::Failed(error) => Err(error),
            };
            (self.reading)(&outcome?).map_err(|error| self.labels.name(error))
        })
    }
}

/// The sending side of a ticket. What is delivered first counts.
#[derive(Debug)]
struct Delivery {
    staging: Arc<Staging>,
    /// Gone once somebody has looked into it.
    page: Mutex<Option<Page>>,
    sender: OneshotSender<Outcome>,
    made: AtomicBool,
}

/// How long to sleep before looking again whether this ticket's step is done. To wait for the device instead is to wait
/// for later steps too; and to wait with a timeout, in wgpu-core 30.0.1, is to panic where another thread polls.
const PATIENCE: Duration = Duration::from_micros(50);

/// How often to do so, before waiting for all that has been submitted.
const PATIENT_WAITS: u32 = 2000;

/// For how many milliseconds, after all that had been submitted is finished, a ticket waits for its own submission: by
/// another thread, or in a call of `submit` that has not returned.
const GRACE: u32 = 1000;

impl Delivery {
    fn make(&self, outcome: Outcome) {
        // Refused if something has been delivered, or the ticket is gone.
        let _ = self.sender.send(outcome);
        self.made.store(true, Ordering::Release);
    }

    fn is_made(&self) -> bool {
        self.made.load(Ordering::Acquire)
    }

    /// Makes the delivery if the staging buffer is mapped, and tells whether it is made.
    ///
    /// The callback of the mapping does so too, but it may be late: whichever thread polls takes all callbacks out of
    /// wgpu's hands and runs one after the other, however slow those of others are.
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

    /// Polls the device, and tells whether all that has been submitted is finished.
    fn poll(&self, poll: wgpu::PollType) -> bool {
        let finished = self.staging.checked_device.poll(poll).unwrap_or_else(|error| {
            self.make(Err(error));
            true
        });
        self.collect();
        finished
    }

    /// Polls the device until the delivery has been made, if only of the news that there will be none.
    fn drive(&self) {
        // Whether all that had been submitted when this began is finished. Only then can it be told that the ticket's
        // encoder was not; new steps may come all the time.
        let mut settled = false;
        let (mut waits, mut idle) = (0, 0);
        loop {
            settled |= self.poll(wgpu::PollType::Poll);
            if self.is_made() {
                return;
            }
            if settled {
                // What had been submitted would be mapped by now.
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

/// A delivery that wgpu holds on to, as part of the callback of a mapping. It is dropped with an encoder that is never
/// submitted.
struct Promise(Arc<Delivery>);

impl Promise {
    /// To be called when the staging buffer is mapped, or will never be.
    fn keep(self) {
        if !self.0.collect() {
            // It is not mapped, or was until the device was destroyed.
            self.0.make(Err(Error::DeviceLost));
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // Callbacks are dropped too where one before them panics, and then the buffer is mapped.
        if !self.0.collect() {
            self.0.make(Err(Error::NotSubmitted));
        }
    }
}

/// Natively nothing happens unless somebody polls the device, and a future must not block its executor.
#[cfg(not(target_arch = "wasm32"))]
#[expect(clippy::needless_pass_by_value, reason = "where there is no thread the delivery must be let go")]
fn drive_in_background(delivery: Arc<Delivery>) {
    let thread = std::thread::Builder::new().name("gradclip.read_back".into());
    let driven = delivery.clone();
    let drive = move || {
        // A callback of the caller's that panics in this thread must not leave the future without an end.
        while catch_unwind(AssertUnwindSafe(|| driven.drive())).is_err() {}
    };
    if thread.spawn(drive).is_err() {
        delivery.drive();
    }
}

/// In a browser the page's event loop does it. The delivery is let go, so that the channel closes with the encoder.
#[cfg(target_arch = "wasm32")]
fn drive_in_background(_: Arc<Delivery>) {}

/// A buffer that a plan leaves something in, and the staging buffers through which that comes back.
#[derive(Debug)]
pub(super) struct Results {
    pub(super) buffer: wgpu::Buffer,
    staging: Arc<Staging>,
}

/// What follows on the results in their buffer, and is copied with them: a mark that shows whether the copy has been made.
///
/// A staging buffer is a word longer than that. Its copies go to its start and to its second word by turns, so that the mark
/// is never where the copy before has left it, but a zero. Where a mark is, the copy that was to leave it there has run.
const TRAILER: [u32; 3] = [0, u32::from_le_bytes(*b"ran!"), 0];

/// How far copies of the second kind are shifted.
const SHIFT: usize = size_of::<u32>();

impl Results {
    /// A buffer that holds `value` `count` times, or once where that is 0, since a buffer without any cannot be bound.
    pub(super) fn new<T: Pod>(
        checked_device: Arc<CheckedDevice>,
        value: T,
        count: usize,
        holding: impl FnOnce(&[u8]) -> wgpu::Buffer,
    ) -> Self {
        let values = vec![value; count.max(1)];
        let contents = [bytemuck::cast_slice(&values), bytemuck::bytes_of(&TRAILER)].concat();
        let size = contents.len() as u64;
        let (bytes, trailer) = (count * size_of::<T>(), size_of_val(&values[..]));
        let staging = Staging { checked_device, size, bytes, trailer, free: Mutex::default() };
        Self { buffer: holding(&contents), staging: Arc::new(staging) }
    }

    pub(super) fn read_back<R>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        reading: Reading<R>,
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
        // On a lost device this is an error of the callback only, since the buffer is a valid one.
        encoder.map_buffer_on_submit(&buffer, wgpu::MapMode::Read, .., move |_| promise.keep());
        ReadBack { state: State::UnderWay { delivery, receiver }, reading, labels: Labels::default() }
    }
}

/// A staging buffer, and where the next copy goes.
#[derive(Debug)]
struct Page {
    buffer: wgpu::Buffer,
    /// In bytes: 0 or [`SHIFT`].
    shift: usize,
}

/// Buffers that the host can read. A ticket takes one and gives it back when what is in it has arrived.
#[derive(Debug)]
struct Staging {
    checked_device: Arc<CheckedDevice>,
    /// How many bytes are copied.
    size: u64,
    /// How many of them mean something.
    bytes: usize,
    /// Where in them the trailer begins.
    trailer: usize,
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
                // Filled with zeros. Else its memory might hold the mark of a buffer that was freed: where only another
                // command buffer of a submission is refused, wgpu takes this one for written.
                mapped_at_creation: true,
            });
            buffer.unmap();
            Ok(buffer)
        })?;
        Ok(Page { buffer, shift: 0 })
    }

    /// What is in a buffer that is mapped.
    fn read(&self, page: Page) -> Outcome {
        let Page { buffer, shift } = page;
        let results = {
            let range = buffer.get_mapped_range(..).map_err(|_| Error::DeviceLost)?;
            let copied = range.iter().skip(shift);
            let trailer = copied.clone().skip(self.trailer);
            let is_written = trailer.take(size_of_val(&TRAILER)).eq(bytemuck::bytes_of(&TRAILER));
            is_written.then(|| copied.take(self.bytes).copied().collect())
        };
        buffer.unmap();
        // If it has not been written it is not used again: its mark is where that of the next ticket would be.
        let results = results.ok_or_else(|| self.checked_device.lost_or(Error::SubmissionRejected))?;
        let next = Page { buffer, shift: SHIFT - shift };
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(next);
        Ok(results)
    }
}
