//! `CheckedDevice`: a device whose validation errors, allocation failures and loss become an [`Error`] instead of a panic.

#[cfg(not(target_arch = "wasm32"))]
use std::future::{Ready, ready};
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use futures_intrusive::channel::shared::oneshot_channel;
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
    /// In a browser the errors are not known when this call returns. It opens no scope there, so that they reach the console of
    /// the page, or an enclosing [`in_error_scope_async`](Self::in_error_scope_async).
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
        if cfg!(target_arch = "wasm32") {
            return create();
        }
        at_once(self.in_error_scope_async(what, bytes, create))
    }

    /// [`in_error_scope`](Self::in_error_scope) that awaits the error scopes. The future is ready at once unless the device is in
    /// a browser. It opens and closes the scopes before it waits, so that they cannot capture errors of other tasks.
    ///
    /// # Errors
    ///
    /// Those of [`in_error_scope`](Self::in_error_scope), in a browser too.
    pub(crate) async fn in_error_scope_async<T>(
        &self,
        what: &'static str,
        bytes: u64,
        create: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (created, errors) = self.capture_errors(create);
        let errors = errors.await;
        if errors.out_of_memory {
            return Err(Error::OutOfMemory { what, bytes });
        }
        let created = created?;
        // On a lost device wgpu returns invalid objects without an error, and rejects them when they are used.
        if self.is_lost_async().await {
            return Err(Error::DeviceLost);
        }
        match errors.message {
            Some(message) => Err(Error::BufferRejected { gradient: None, message }),
            None => Ok(created),
        }
    }

    /// Runs `check` in error scopes, and returns the message of the validation or internal error, if there is one.
    pub(crate) async fn validation_error<T>(&self, check: impl FnOnce() -> T) -> Option<String> {
        let (_, errors) = self.capture_errors(check);
        errors.await.message
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

    /// Waits for all submitted work without blocking the executor: with one poll, or else in a thread that polls.
    ///
    /// # Errors
    ///
    /// Those of [`poll`](Self::poll).
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) async fn finished_async(self: &Arc<Self>, _: &wgpu::Queue) -> Result<(), Error> {
        if self.poll(wgpu::PollType::Poll)? {
            return Ok(());
        }
        let (sender, receiver) = oneshot_channel();
        let this = self.clone();
        let poll = move || {
            loop {
                // A callback of the caller that panics in this thread must not leave the future pending.
                if let Ok(finished) = panics::catch(|| this.poll(wgpu::PollType::wait_indefinitely())) {
                    let _ = sender.send(finished.map(|_finished| ()));
                    return;
                }
            }
        };
        match std::thread::Builder::new().name("gradclip.wait".into()).spawn(poll) {
            Ok(_) => receiver.receive().await.unwrap_or(Err(Error::DeviceLost)),
            Err(_) => self.poll(wgpu::PollType::wait_indefinitely()).map(|_finished| ()),
        }
    }

    /// Waits for all submitted work. The event loop of the page polls.
    ///
    /// # Errors
    ///
    /// None: a lost device finishes its work, too.
    #[cfg(target_arch = "wasm32")]
    pub(crate) async fn finished_async(self: &Arc<Self>, queue: &wgpu::Queue) -> Result<(), Error> {
        let (sender, receiver) = oneshot_channel();
        queue.on_submitted_work_done(move || {
            let _ = sender.send(());
        });
        receiver.receive().await;
        Ok(())
    }

    /// Returns whether the device is known to be lost, or was destroyed.
    ///
    /// wgpu does not report a loss to error scopes, and the callback for losses belongs to the caller. This creates a small
    /// buffer that is mapped at creation: it is mapped only if the device could create it.
    #[cfg(not(target_arch = "wasm32"))]
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
        !is_mapped && !at_once(errors).out_of_memory
    }

    /// Returns whether [`is_lost_async`](Self::is_lost_async) has found the device lost.
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Returns whether the device is lost or was destroyed.
    #[cfg(not(target_arch = "wasm32"))]
    fn is_lost_async(&self) -> Ready<bool> {
        ready(self.is_lost())
    }

    /// Returns whether the device is lost or was destroyed. A browser maps a buffer at creation even if the device is lost, but
    /// not later.
    #[cfg(target_arch = "wasm32")]
    async fn is_lost_async(&self) -> bool {
        if self.is_lost() {
            return true;
        }
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("gradclip.is_lost"),
            size: wgpu::COPY_BUFFER_ALIGNMENT,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let (sender, receiver) = oneshot_channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |mapped| {
            let _ = sender.send(mapped.is_ok());
        });
        let is_lost = receiver.receive().await != Some(true);
        buffer.destroy();
        self.lost.store(is_lost, Ordering::Relaxed);
        is_lost
    }

    /// Returns [`Error::DeviceLost`] if the device is lost, else `error`.
    pub(crate) fn lost_or(&self, error: Error) -> Error {
        if self.is_lost() { Error::DeviceLost } else { error }
    }

    /// Runs `create` in error scopes, and returns its result and the errors that they captured.
    fn capture_errors<T>(&self, create: impl FnOnce() -> T) -> (T, impl Future<Output = CapturedErrors>) {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        // wgpu 30.0.1 panics when it reads an internal error of a browser.
        let internal = (!cfg!(target_arch = "wasm32"))
            .then(|| self.device.push_error_scope(wgpu::ErrorFilter::Internal));
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let created = create();
        // All scopes are popped before the first result is awaited.
        let validation = validation.pop();
        let internal = internal.map(wgpu::ErrorScopeGuard::pop);
        let memory = memory.pop();
        let errors = async move {
            let validation = validation.await;
            let internal = match internal {
                Some(internal) => internal.await,
                None => None,
            };
            CapturedErrors {
                out_of_memory: memory.await.is_some(),
                message: validation.or(internal).map(|error| error.to_string()),
            }
        };
        (created, errors)
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

/// Returns the output of a future that waits for error scopes of a native device only.
pub(crate) fn at_once<F: Future>(future: F) -> F::Output {
    now_or_never(future).expect("error scopes of a native device are ready at once")
}

/// Returns the output of a future that is ready at the first poll.
pub(crate) fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
