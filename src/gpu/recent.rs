//! The latest record that has arrived, for those who log and will not wait.

use std::collections::VecDeque;

use super::read_back::ReadBack;
use crate::{ClipRecord, Error};

/// Tickets of the last few steps, and the newest record that has arrived of them: "the norm of a step or two ago",
/// without ever waiting for the GPU.
///
/// ```
/// # let adapter = gradclip::adapters().into_iter().next().expect("an adapter: scripts/test installs a software one");
/// # let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
/// # let gradient = device.create_buffer(&wgpu::BufferDescriptor {
/// #     label: None, size: 64, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false,
/// # });
/// # use gradclip::{Clip, Clipper, DType, Gradient, Recent};
/// # let plan = Clipper::new(&device)?.prepare(&[Gradient::new(&gradient, DType::F32)], Clip::by_global_norm(1.0))?;
/// let mut recent = Recent::default();
/// for step in 0..10 {
///     let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
///     plan.encode(&mut encoder);
///     let ticket = plan.read_back(&mut encoder);
///     queue.submit([encoder.finish()]);
///     recent.push(step, ticket);
///     if let Some((step, record)) = recent.latest()? {
///         println!("norm {} at step {step}", record.total_norm);
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Recent {
    under_way: VecDeque<(u64, ReadBack)>,
    most: usize,
    latest: Option<(u64, ClipRecord)>,
}

impl Default for Recent {
    /// Keeps up to 4 tickets.
    fn default() -> Self {
        Self::new(4)
    }
}

impl Recent {
    /// Keeps up to so many tickets, at least one. If more are under way the oldest is dropped.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { under_way: VecDeque::new(), most: most.max(1), latest: None }
    }

    /// Takes the ticket of a step. Its encoder must have been submitted by the time [`latest`](Self::latest) is called.
    pub fn push(&mut self, step: u64, ticket: ReadBack) {
        if self.under_way.len() == self.most {
            self.under_way.pop_front();
        }
        self.under_way.push_back((step, ticket));
    }

    /// The newest record that has arrived, with its step. None until one has. Does not wait.
    ///
    /// # Errors
    ///
    /// As for [`ReadBack::wait`], but for [`Error::NotSubmitted`]: such a ticket never arrives. The ticket of an error is
    /// gone; the next call looks at the ones after it.
    pub fn latest(&mut self) -> Result<Option<(u64, ClipRecord)>, Error> {
        while self.under_way.front().is_some_and(|(_, ticket)| ticket.is_ready()) {
            let Some((step, ticket)) = self.under_way.pop_front() else { break };
            self.latest = Some((step, ticket.wait()?));
        }
        Ok(self.latest)
    }
}
