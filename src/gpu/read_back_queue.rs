//! The records of many steps, each handed out once and in order, for those who log and will not wait.

use std::collections::VecDeque;

use super::read_back::ReadBack;
use crate::{ClipRecord, Error};

/// Tickets of steps that are under way, in the order of their steps. Each record comes out once it has arrived, some steps
/// after its own, without waiting for the GPU.
///
/// ```
/// # let adapter = gradclip::adapters().into_iter().next().expect("an adapter: scripts/test installs a software one");
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
/// `R` is what a ticket reads: a [`ClipRecord`], or the records of all groups, statistics or counts, as of
/// [`ReadBack`].
///
/// Nothing is dropped, however late the host looks. What is kept is a ticket with its staging buffer, a few bytes, for each
/// step that was pushed and not handed out: where the host calls [`arrived`](Self::arrived) at every step, those are the
/// steps that the device has not finished. Where it should not run ahead further, let it [`wait`](Self::wait) once
/// [`len`](Self::len) is too large. To drop the queue is fine.
#[derive(Debug)]
pub struct ReadBackQueue<R = ClipRecord> {
    under_way: VecDeque<(u64, ReadBack<R>)>,
    /// An error that came behind records that were handed out first.
    failed: Option<Error>,
}

impl<R> Default for ReadBackQueue<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R> ReadBackQueue<R> {
    /// A queue without tickets.
    #[must_use]
    pub const fn new() -> Self {
        Self { under_way: VecDeque::new(), failed: None }
    }

    /// Takes the ticket of a step. Push tickets in the order in which their encoders are submitted. One whose encoder is
    /// kept, and not submitted, holds up those behind it.
    pub fn push(&mut self, step: u64, ticket: ReadBack<R>) {
        self.under_way.push_back((step, ticket));
    }

    /// The records that have arrived since the last call, each with its step, in the order of the steps. Does not wait: what
    /// has not arrived comes with a later call.
    ///
    /// # Errors
    ///
    /// [`Error::Step`], which has the step and an error of [`ReadBack::wait`]. No record is lost by it: those of the steps
    /// before were handed out by an earlier call, and the next call goes on with the step after.
    pub fn arrived(&mut self) -> Result<Vec<(u64, R)>, Error> {
        self.take(ReadBack::is_ready)
    }

    /// The records of all steps that were pushed, as [`arrived`](Self::arrived) has them. Waits for the device: for the end of a
    /// training, or of an epoch.
    ///
    /// # Errors
    ///
    /// Those of [`arrived`](Self::arrived). Call it again for the steps after.
    pub fn wait(&mut self) -> Result<Vec<(u64, R)>, Error> {
        self.take(|_| true)
    }

    /// How many steps were pushed whose outcome has not been handed out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.under_way.len() + usize::from(self.failed.is_some())
    }

    /// Whether the outcome of every step has been handed out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The outcomes from the front on, as long as tickets are to be redeemed, up to an error.
    fn take(&mut self, redeems: impl Fn(&ReadBack<R>) -> bool) -> Result<Vec<(u64, R)>, Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut records = Vec::new();
        while self.under_way.front().is_some_and(|(_, ticket)| redeems(ticket)) {
            let Some((step, ticket)) = self.under_way.pop_front() else { break };
            match ticket.wait() {
                Ok(record) => records.push((step, record)),
                Err(error) => {
                    let error = Error::Step { step, error: Box::new(error) };
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
