//! `ReadBackQueue`: the records of many steps, each returned once and in order, without a host stall.

use std::collections::VecDeque;

use super::read_back::ReadBack;
use crate::{ClipRecord, Error};

/// A queue of the tickets of steps that the device has not finished. It returns each record once, in the order of the steps, when
/// the record has arrived, usually some steps later. It does not wait for the GPU.
///
/// ```
/// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
/// # let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
/// # let gradient = device.create_buffer(&wgpu::BufferDescriptor {
/// #     label: None, size: 64, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false,
/// # });
/// # use gradclip::{Clip, Clipper, DType, Gradient, ReadBackQueue};
/// # let plan = Clipper::new(&device)?.prepare(&[Gradient::new(&gradient, DType::F32)], Clip::by_global_norm(1.0))?;
/// # let mut steps = Vec::new();
/// let mut log = ReadBackQueue::new();
/// for step in 0..10 {
///     let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
///     plan.encode(&mut encoder);
///     let ticket = plan.read_back(&mut encoder);
///     queue.submit([encoder.finish()]);
///     log.push(step, ticket);
///     for (step, record) in log.arrived()? {
///         println!("norm {} at step {step}", record.total_norm);
/// #       steps.push(step);
///     }
/// }
/// for (step, record) in log.wait()? {
///     println!("norm {} at step {step}", record.total_norm);
/// #   steps.push(step);
/// }
/// # assert_eq!(steps, Vec::from_iter(0..10));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `R` is the result of a ticket: a [`ClipRecord`], the records of all groups, statistics or counts; see [`ReadBack`].
///
/// The queue drops no record, however late the host asks. For each step that was pushed and not yet returned it keeps a ticket
/// and a small staging buffer. If the host calls [`arrived`](Self::arrived) at every step, those are the steps that the device
/// has not finished. To bound how far the host runs ahead, call [`wait`](Self::wait) when [`len`](Self::len) exceeds your
/// bound. The queue may be dropped at any time.
#[derive(Debug)]
pub struct ReadBackQueue<R = ClipRecord> {
    under_way: VecDeque<(u64, ReadBack<R>)>,
    /// The error that the next call returns, after the records of earlier steps.
    failed: Option<Error>,
}

impl<R> Default for ReadBackQueue<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R> ReadBackQueue<R> {
    /// Creates an empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self { under_way: VecDeque::new(), failed: None }
    }

    /// Adds the ticket of a step. Push tickets in the order in which their encoders are submitted. A ticket whose encoder is never
    /// submitted, and not dropped, delays all later tickets.
    pub fn push(&mut self, step: u64, ticket: ReadBack<R>) {
        self.under_way.push_back((step, ticket));
    }

    /// Returns the records that have arrived since the last call, each with its step, in the order of the steps. Does not wait:
    /// a later call returns the others.
    ///
    /// # Errors
    ///
    /// [`Error::InStep`], which holds the step and the error of [`ReadBack::wait`]. It loses no record: earlier calls have returned
    /// those of earlier steps, and the next call continues with the next step.
    pub fn arrived(&mut self) -> Result<Vec<(u64, R)>, Error> {
        self.take(ReadBack::is_ready, ReadBack::redeem)
    }

    /// Waits for the device, and returns the records of all steps that were pushed and not yet returned. It is meant for the
    /// end of an epoch or of the training.
    ///
    /// Not on wasm32, where nothing may block: see [`wait_async`](Self::wait_async).
    ///
    /// # Errors
    ///
    /// Those of [`arrived`](Self::arrived). Call it again for the remaining steps.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(&mut self) -> Result<Vec<(u64, R)>, Error> {
        self.take(|_| true, ReadBack::wait)
    }

    /// [`wait`](Self::wait) without blocking. No record is lost if the future is dropped: a later call returns it.
    ///
    /// # Errors
    ///
    /// Those of [`arrived`](Self::arrived). Call it again for the remaining steps.
    pub async fn wait_async(&mut self) -> Result<Vec<(u64, R)>, Error> {
        for (_, ticket) in &mut self.under_way {
            ticket.arrival().await;
        }
        self.take(|_| true, ReadBack::redeem)
    }

    /// Returns the number of pushed steps whose record or error has not been returned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.under_way.len() + usize::from(self.failed.is_some())
    }

    /// Returns whether the record or error of every step has been returned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Redeems tickets from the front while `redeems` holds, up to the first error.
    fn take(
        &mut self,
        redeems: impl Fn(&ReadBack<R>) -> bool,
        redeem: impl Fn(ReadBack<R>) -> Result<R, Error>,
    ) -> Result<Vec<(u64, R)>, Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut records = Vec::new();
        while self.under_way.front().is_some_and(|(_, ticket)| redeems(ticket)) {
            let Some((step, ticket)) = self.under_way.pop_front() else { break };
            match redeem(ticket) {
                Ok(record) => records.push((step, record)),
                Err(error) => {
                    let error = Error::InStep { step, error: Box::new(error) };
                    if records.is_empty() {
                        return Err(error);
                    }
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(records)
    }
}
