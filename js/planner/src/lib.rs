//! The planner of the npm package: [`gradclip::plan`] for JavaScript.
//!
//! A page downloads it, so it is small: options come through builders instead of a parser, and a plan leaves as an array of
//! numbers and one of texts. The TypeScript beside it, `js/src/planner.ts`, knows both forms.

mod clip;
mod describe;
mod error;
mod gradient;
mod results;
mod write;

use std::mem::take;

use gradclip::plan::{self, Limits};
use wasm_bindgen::prelude::wasm_bindgen;

pub use clip::Clip;
pub use error::Failure;
pub use gradient::Gradient;
pub use write::Write;

use describe::Flat;
use gradient::Buffer;

/// A planned clip.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Plan {
    plan: plan::Plan,
    /// The buffers of the caller that the plan uses.
    given: Vec<usize>,
    /// The description, until the host has taken it.
    flat: Flat,
}

impl Plan {
    fn of((plan, buffers): (plan::Plan, Vec<&Buffer>)) -> Self {
        let given = buffers.into_iter().map(Buffer::index).collect();
        Self { given, flat: describe::describe(&plan), plan }
    }
}

#[wasm_bindgen]
impl Plan {
    /// Plans a clip of gradients in these buffers; see [`Buffer::list`] for these, and `describe.rs` for `device`.
    #[wasm_bindgen(constructor)]
    pub fn new(
        device: &[f64],
        buffers: &[f64],
        gradients: Vec<Gradient>,
        clips: Vec<Clip>,
    ) -> Result<Plan, Failure> {
        let buffers = Buffer::list(buffers);
        let gradients: Vec<_> = gradients.iter().map(|gradient| gradient.on(&buffers)).collect();
        let clips: Vec<_> = clips.iter().map(Clip::inner).collect();
        let limits = Limits::new(&describe::device(device))?;
        Ok(Self::of(plan::Plan::new(&gradients, &clips, limits)?))
    }

    /// Plans the same clip for gradients that have moved.
    pub fn rebound(&self, buffers: &[f64], gradients: Vec<Gradient>) -> Result<Plan, Failure> {
        let buffers = Buffer::list(buffers);
        let gradients: Vec<_> = gradients.iter().map(|gradient| gradient.on(&buffers)).collect();
        Ok(Self::of(self.plan.rebound(&gradients)?))
    }

    /// Returns the buffers of the caller that the plan uses, as indices of the list: a clip that reads no parameters does not use
    /// theirs. The bindings of the plan count these.
    pub fn given(&self) -> Vec<usize> {
        self.given.clone()
    }

    /// Returns the numbers of the plan, in the order of `describe.rs`, and forgets them.
    #[wasm_bindgen(js_name = takeNumbers)]
    pub fn take_numbers(&mut self) -> Vec<f64> {
        take(&mut self.flat.numbers)
    }

    /// Returns the texts of the plan, in the order of `describe.rs`, and forgets them.
    #[wasm_bindgen(js_name = takeTexts)]
    pub fn take_texts(&mut self) -> Vec<String> {
        take(&mut self.flat.texts)
    }

    /// Returns the initial contents of all buffers, one after the other, and forgets them.
    #[wasm_bindgen(js_name = takeContents)]
    pub fn take_contents(&mut self) -> Vec<u32> {
        let mut words = Vec::new();
        for buffer in self.plan.buffers() {
            words.extend_from_slice(&buffer.words);
        }
        self.plan.forget_contents();
        words
    }

    /// Returns the error about the first gradient one of whose buffers WebGPU refuses. `messages` has what it says about each
    /// buffer that the plan uses; empty for a good one.
    pub fn refusal(&self, messages: Vec<String>) -> Option<Failure> {
        let mut uses = self.plan.uses();
        let (gradient, used_as, buffer) =
            uses.find(|(.., buffer)| messages.get(*buffer).is_some_and(|message| !message.is_empty()))?;
        let message = messages[buffer].clone();
        let error = gradclip::Error::BufferRejected { gradient: Some(gradient), message };
        Some(used_as.error(error).into())
    }
}
