//! A device under watch, so that what wgpu refuses, and the loss of the device, become an [`Error`] and not a panic.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use wgpu::BufferUsages;

use crate::Error;

/// A device, and whether a poll has found it lost. All that one clipper makes shares it.
#[derive(Debug)]
pub(crate) struct Watched {
    device: wgpu::Device,
    lost: AtomicBool,
}

impl Watched {
    pub(crate) fn new(device: wgpu::Device) -> Self {
        Self { device, lost: AtomicBool::new(false) }
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// Runs `create`, which allocates or binds, and reports its error, or what wgpu had against it.
    ///
    /// # Errors
    ///
    /// Those of `create`; [`Error::OutOfMemory`] with `what` and `bytes`; [`Error::DeviceLost`];
    /// [`Error::Refused`] if an object that `create` used is invalid.
    pub(crate) fn guarded<T>(
        &self,
        what: &'static str,
        bytes: u64,
        create: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (created, complaints) = self.scoped(create);
        if complaints.out_of_memory {
            return Err(Error::OutOfMemory { what, bytes });
        }
        let created = created?;
        // On a lost device wgpu hands out invalid objects without a word, then objects to their use.
        if self.is_lost() {
            return Err(Error::DeviceLost);
        }
        match complaints.message {
            Some(message) => Err(Error::Refused { gradient: None, message }),
            None => Ok(created),
        }
    }

    /// Runs `check`, and tells what wgpu had against it; none if nothing.
    pub(crate) fn objection<T>(&self, check: impl FnOnce() -> T) -> Option<String> {
        self.scoped(check).1.message
    }

    /// Polls the device, and tells whether all that has been submitted is finished.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`] if the driver has lost the device. Nothing that is under way will ever finish then.
    pub(crate) fn poll(&self, poll: wgpu::PollType) -> Result<bool, Error> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(Error::DeviceLost);
        }
        // wgpu 30 panics where a fence tells that the device is lost. No lock is held there, and no state half changed.
        match catch_unwind(AssertUnwindSafe(|| self.device.poll(poll))) {
            Ok(status) => Ok(status.is_ok_and(|status| status.wait_finished())),
            Err(_) if self.is_lost() => {
                // Once is enough: each such panic prints a message.
                self.lost.store(true, Ordering::Relaxed);
                Err(Error::DeviceLost)
            }
            // A callback of the caller's panicked.
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Whether the device has been lost, as far as wgpu knows, or destroyed.
    ///
    /// wgpu keeps losses out of error scopes, and the one callback for them is the caller's. But a buffer that is
    /// mapped from the start is mapped only if it has been made.
    pub(crate) fn is_lost(&self) -> bool {
        if self.lost.load(Ordering::Relaxed) {
            return true;
        }
        let (is_mapped, complaints) = self.scoped(|| {
            let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("gradclip.is_lost"),
                size: wgpu::COPY_BUFFER_ALIGNMENT,
                usage: BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            });
            buffer.get_mapped_range_mut(..).is_ok()
        });
        !is_mapped && !complaints.out_of_memory
    }

    /// [`Error::DeviceLost`] if the device is lost, else this error.
    pub(crate) fn lost_or(&self, error: Error) -> Error {
        if self.is_lost() { Error::DeviceLost } else { error }
    }

    fn scoped<T>(&self, create: impl FnOnce() -> T) -> (T, Complaints) {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let created = create();
        // All three are popped before the first is looked at. Natively they are ready at once; in a browser, where they
        // are not, an error goes to the page's console.
        let [validation, internal, memory] =
            [now_or_never(validation.pop()), now_or_never(internal.pop()), now_or_never(memory.pop())];
        let message = validation.flatten().or(internal.flatten()).map(|error| error.to_string());
        (created, Complaints { out_of_memory: memory.flatten().is_some(), message })
    }
}

/// What wgpu had against something.
struct Complaints {
    out_of_memory: bool,
    /// Of validation, or of an internal error.
    message: Option<String>,
}

/// Whether a buffer is mapped, so that wgpu will not submit what uses it.
pub(crate) fn is_mapped(buffer: &wgpu::Buffer) -> bool {
    // Nothing can be mapped of a buffer of no bytes, but the call would panic.
    buffer.size() > 0 && buffer.get_mapped_range(..).is_ok()
}

/// Whether a buffer has been destroyed, which wgpu says of most uses only when they are submitted.
pub(crate) fn is_destroyed(buffer: &wgpu::Buffer) -> bool {
    // The variant is lost on the way here; that the words are right is tested.
    let refused = || buffer.get_mapped_range(..).map(drop);
    buffer.size() > 0 && refused().is_err_and(|error| error.to_string().contains("has been destroyed"))
}

/// The output of a future that is ready at once.
pub(crate) fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
