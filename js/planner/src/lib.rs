//! The planner of the npm package: [`gradclip::plan`] for JavaScript.
//!
//! A page downloads it, so it is small: there are no bindings but the four functions at the end of this file. The host sends the
//! number of an operation and a message, and gets a message back. `js/src/planner.ts` is the other side.

mod clip;
mod describe;
mod error;
mod gradient;
mod message;
mod results;
mod update;

use std::ptr;

use gradclip::plan::{self, Limits, Plan};
use gradclip::{Error, bytemuck};

use gradient::Buffer;
use message::{Answer, Request};

/// A call of the host.
#[derive(Debug)]
struct Call<'a> {
    plan: Option<&'a mut Plan>,
    request: Request<'a>,
    answer: Answer,
    /// A plan that the operation made.
    made: Option<Plan>,
}

impl Call<'_> {
    fn plan(&mut self) -> &mut Plan {
        self.plan.as_deref_mut().expect("the host names the plan")
    }
}

type Operation = fn(&mut Call<'_>) -> Result<(), Error>;

/// The operations, in the order of `js/src/planner.ts`.
const OPERATIONS: [Operation; 16] = [
    plan,
    rebound,
    take_contents,
    refusal,
    results::buffer_of,
    results::decode,
    update::set_max_norms,
    update::set_loss_scale,
    update::set_dynamic_loss_scale,
    update::set_step_counts,
    update::set_histories,
    update::set_norm_windows,
    update::supply_norm,
    update::max_norm,
    update::supplied_norm,
    update::inverse_loss_scale,
];

/// Plans a clip for a device, of buffers, gradients and clips.
fn plan(call: &mut Call<'_>) -> Result<(), Error> {
    let device = describe::device(&mut call.request);
    let buffers = gradient::buffers(&mut call.request);
    let gradients = call.request.list(|request| gradient::gradient(request, &buffers));
    let mut clips = Vec::new();
    for _ in 0..call.request.usize() {
        clips.push(clip::clip(&mut call.request)?);
    }
    call.give(plan::Plan::new(&gradients, &clips, Limits::new(&device)?)?);
    Ok(())
}

/// Plans the same clip for gradients that have moved.
fn rebound(call: &mut Call<'_>) -> Result<(), Error> {
    let buffers = gradient::buffers(&mut call.request);
    let gradients = call.request.list(|request| gradient::gradient(request, &buffers));
    let rebound = call.plan().rebound(&gradients)?;
    call.give(rebound);
    Ok(())
}

impl Call<'_> {
    /// Answers with a plan: the indices of the buffers that it uses, which its bindings count, and its description. A clip that
    /// reads no parameters does not use their buffers.
    fn give(&mut self, (plan, buffers): (Plan, Vec<&Buffer>)) {
        self.answer.list(buffers, |answer, buffer| answer.index(buffer.index()));
        describe::describe(&plan, &mut self.answer);
        self.made = Some(plan);
    }
}

/// Answers with the initial contents of all buffers, one after the other, and forgets them.
fn take_contents(call: &mut Call<'_>) -> Result<(), Error> {
    let plan = call.plan.as_deref_mut().expect("the host names the plan");
    let words: Vec<u32> = plan.buffers().iter().flat_map(|buffer| &buffer.words).copied().collect();
    plan.forget_contents();
    call.answer.bytes(bytemuck::cast_slice(&words));
    Ok(())
}

/// Fails with the error about the first gradient one of whose buffers WebGPU refuses. The request has what WebGPU says about each
/// buffer that the plan uses; nothing about a good one.
fn refusal(call: &mut Call<'_>) -> Result<(), Error> {
    let messages = call.request.list(Request::text);
    let refused = call.plan().uses().find(|(.., buffer)| !messages[*buffer].is_empty());
    let Some((gradient, used_as, buffer)) = refused else { return Ok(()) };
    let error = Error::BufferRejected { gradient: Some(gradient), message: messages[buffer].to_owned() };
    Err(used_as.error(error))
}

/// What the host reads of a reply.
#[repr(C)]
#[derive(Debug)]
pub struct Reply {
    numbers: *const f64,
    numbers_len: usize,
    bytes: *const u8,
    bytes_len: usize,
    /// A plan that was made, or null. It is the host's.
    plan: *mut Plan,
    is_error: bool,
    /// Keeps the numbers and the bytes.
    answer: Answer,
}

/// Returns memory for a request: the words of its numbers, and of its bytes after them.
#[unsafe(no_mangle)]
pub extern "C" fn reserve(words: usize) -> *mut f64 {
    Box::into_raw(vec![0.0; words].into_boxed_slice()).cast()
}

/// Calls an operation and returns its reply, which the host gives back to [`release`].
///
/// # Safety
///
/// `plan` must be null, or a plan of a reply. `request` must come from [`reserve`] with as many `words`, and is consumed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn call(
    operation: usize,
    plan: *mut Plan,
    request: *mut f64,
    words: usize,
    numbers: usize,
) -> *mut Reply {
    // SAFETY: `reserve` made a box of it, with this length.
    let request = unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(request, words)) };
    let (numbers, bytes) = request.split_at(numbers);
    let request = Request::new(numbers, bytemuck::cast_slice(bytes));
    // SAFETY: the host has the plan and no other reference to it.
    let plan = unsafe { plan.as_mut() };
    let mut call = Call { plan, request, answer: Answer::default(), made: None };
    let result = OPERATIONS[operation](&mut call);
    let Call { mut answer, made, .. } = call;
    let is_error = result.is_err();
    if let Err(error) = result {
        answer = error::describe(&error);
    }
    Box::into_raw(Box::new(Reply {
        numbers: answer.numbers.as_ptr(),
        numbers_len: answer.numbers.len(),
        bytes: answer.bytes.as_ptr(),
        bytes_len: answer.bytes.len(),
        plan: made.map_or(ptr::null_mut(), |plan| Box::into_raw(Box::new(plan))),
        is_error,
        answer,
    }))
}

/// Frees a reply, but not its plan.
///
/// # Safety
///
/// `reply` must come from [`call`], and is consumed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn release(reply: *mut Reply) {
    // SAFETY: `call` made a box of it.
    drop(unsafe { Box::from_raw(reply) });
}

/// Frees a plan.
///
/// # Safety
///
/// `plan` must come from a reply, and is consumed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forget(plan: *mut Plan) {
    // SAFETY: `call` made a box of it.
    drop(unsafe { Box::from_raw(plan) });
}
