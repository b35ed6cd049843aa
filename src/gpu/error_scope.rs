//! `CheckedDevice`: a device whose validation errors, allocation failures and loss become an [`Error`] instead of a panic.

use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use wgpu::BufferUsages;

use crate::{Error, panics};

/// A device, and whether a poll has found it lost. A clipper, its plans and its tickets share one.
#[derive(Debug)]
pub(crate) struct CheckedDevice {
    device: wgpu::Device,
    lost: AtomicBool,
}

impl CheckedDevice {
    pub(crate) fn new(device: wgpu::Device) -> Self {
        Self { device, lost: AtomicBool::new(false) }
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// Runs `create` in error scopes, and returns its result or the error that the scopes captured.
    ///
    /// # Errors
    ///
    /// Those of `create`; [`Error::OutOfMemory`] with `what` and `bytes`; [`Error::DeviceLost`];
    /// [`Error::BufferRejected`] if wgpu's validation rejects an object that `create` used.
    pub(crate) fn in_error_scope<T>(
        &self,
        what: &'static str,
        bytes: u64,
        create: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (created, errors) = self.capture_errors(create);
        if errors.out_of_memory {
            return Err(Error::OutOfMemory { what, bytes });
        }
        let created = created?;
        // On a lost device wgpu returns invalid objects without an error, and rejects them when they are used.
        if self.is_lost() {
            return Err(Error::DeviceLost);
        }
        match errors.message {
            Some(message) => Err(Error::BufferRejected { gradient: None, message }),
            None => Ok(created),
        }
    }

    /// Runs `check` in error scopes, and returns the message of the validation or internal error, if there is one.
    pub(crate) fn validation_error<T>(&self, check: impl FnOnce() -> T) -> Option<String> {
        self.capture_errors(check).1.message
    }

    /// Polls the device, and returns whether all submitted work is finished.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`] if the driver has lost the device. No work in flight finishes then.
    pub(crate) fn poll(&self, poll: wgpu::PollType) -> Result<bool, Error> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(Error::DeviceLost);
        }
        // wgpu 30 panics when a fence reports that the device is lost. It holds no lock there and leaves no partial state.
        match panics::catch(|| self.device.poll(poll)) {
            Ok(status) => Ok(status.is_ok_and(|status| status.wait_finished())),
            Err(_) if self.is_lost() => {
                // Each such panic prints a message. The flag prevents further ones.
                self.lost.store(true, Ordering::Relaxed);
                Err(Error::DeviceLost)
            }
            // A callback of the caller panicked.
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Returns whether the device is known to be lost, or was destroyed.
    ///
    /// wgpu does not report a loss to error scopes, and the callback for losses belongs to the caller. This creates a small
    /// buffer that is mapped at creation: it is mapped only if the device could create it.
    pub(crate) fn is_lost(&self) -> bool {
        if self.lost.load(Ordering::Relaxed) {
            return true;
        }
        let (is_mapped, errors) = self.capture_errors(|| {
            let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("gradclip.is_lost"),
                size: wgpu::COPY_BUFFER_ALIGNMENT,
                usage: BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            });
            buffer.get_mapped_range_mut(..).is_ok()
        });
        !is_mapped && !errors.out_of_memory
    }

    /// Returns [`Error::DeviceLost`] if the device is lost, else `error`.
    pub(crate) fn lost_or(&self, error: Error) -> Error {
        if self.is_lost() { Error::DeviceLost } else { error }
    }

    fn capture_errors<T>(&self, create: impl FnOnce() -> T) -> (T, CapturedErrors) {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let created = create();
        // All three scopes are popped before the first result is read. Native results are ready at once. In a browser they
        // are not, and an error goes to the console of the page.
        let [validation, internal, memory] =
            [now_or_never(validation.pop()), now_or_never(internal.pop()), now_or_never(memory.pop())];
        let message = validation.flatten().or(internal.flatten()).map(|error| error.to_string());
        (created, CapturedErrors { out_of_memory: memory.flatten().is_some(), message })
    }
}

/// The errors that the scopes around a closure captured.
struct CapturedErrors {
    out_of_memory: bool,
    /// The message of a validation error, or else of an internal error.
    message: Option<String>,
}

/// Returns whether a buffer is mapped. wgpu refuses to submit commands that use a mapped buffer.
pub(crate) fn is_mapped(buffer: &wgpu::Buffer) -> bool {
    // An empty buffer cannot be mapped, and the call would panic.
    buffer.size() > 0 && buffer.get_mapped_range(..).is_ok()
}

/// Returns whether a buffer has been destroyed. For most uses wgpu reports this only at submission.
pub(crate) fn is_destroyed(buffer: &wgpu::Buffer) -> bool {
    // wgpu does not expose the variant of this error. A test checks that its message has these words.
    let mapped = || buffer.get_mapped_range(..).map(drop);
    buffer.size() > 0 && mapped().is_err_and(|error| error.to_string().contains("has been destroyed"))
}

/// Returns the output of a future that is ready at the first poll.
pub(crate) fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
