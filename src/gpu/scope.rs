//! wgpu's error scopes, so that what wgpu refuses becomes an [`Error`] and not a panic.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::Error;

/// Runs `create`, which allocates or binds, and reports what wgpu had against it.
pub(crate) fn guarded<T>(
    device: &wgpu::Device,
    what: &'static str,
    bytes: u64,
    create: impl FnOnce() -> T,
) -> Result<T, Error> {
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let created = create();
    // All three are popped before the first is looked at. Natively they are ready at once; in a browser, where they
    // are not, an error goes to the page's console.
    let [validation, internal, memory] =
        [now_or_never(validation.pop()), now_or_never(internal.pop()), now_or_never(memory.pop())];
    if memory.flatten().is_some() {
        return Err(Error::OutOfMemory { what, bytes });
    }
    match validation.flatten().or(internal.flatten()) {
        Some(error) => Err(Error::Refused { message: error.to_string() }),
        None => Ok(created),
    }
}

/// The output of a future that is ready at once.
pub(crate) fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
