//! The planner of the npm package: [`gradclip::plan`] for JavaScript. Requests and answers are JSON, since the host is
//! TypeScript and serde then finds unknown options; only the contents of buffers are handed over as words.

mod clip;
mod describe;
mod error;
mod gradient;
mod number;
mod results;
mod update;

use gradclip::plan::{self, Limits};
use serde::Deserialize;
use serde_json::Value;
use wasm_bindgen::prelude::wasm_bindgen;

use error::Details;
use gradient::Buffer;

/// A planned clip. Errors are the JSON of [`Details`].
#[wasm_bindgen]
#[derive(Debug)]
pub struct Plan {
    plan: plan::Plan,
}

/// What a plan is made for.
#[derive(Deserialize)]
struct Request {
    device: describe::Device,
    buffers: Vec<Buffer>,
    gradients: Vec<Value>,
    clips: Vec<Value>,
}

#[wasm_bindgen]
impl Plan {
    /// Plans the clip of a request.
    #[wasm_bindgen(constructor)]
    pub fn new(request: &str) -> Result<Plan, String> {
        let plan = || {
            let Request { device, buffers, gradients, clips } = parse(request)?;
            let gradients = gradient::parse(&gradients)?;
            let gradients: Vec<_> = gradients.iter().map(|gradient| gradient.on(&buffers)).collect();
            let limits = Limits::new(&device.into())?;
            let (plan, _) = plan::Plan::new(&gradients, &clip::parse(&clips)?, limits)?;
            Ok(Self { plan })
        };
        plan().map_err(Details::into_json)
    }

    /// Plans the same clip for the gradients of another request.
    pub fn rebound(&self, request: &str) -> Result<Plan, String> {
        let rebound = || {
            let Request { buffers, gradients, .. } = parse(request)?;
            let gradients = gradient::parse(&gradients)?;
            let gradients: Vec<_> = gradients.iter().map(|gradient| gradient.on(&buffers)).collect();
            let (plan, _) = self.plan.rebound(&gradients)?;
            Ok(Self { plan })
        };
        rebound().map_err(Details::into_json)
    }

    /// Returns the plan: `PlanData` of `plan_data.ts`.
    pub fn data(&self) -> String {
        json(&describe::plan(&self.plan))
    }

    /// Returns the initial contents of all buffers, one after the other, and forgets them.
    pub fn contents(&mut self) -> Vec<u32> {
        let words = self.plan.buffers().iter().flat_map(|buffer| buffer.words.iter().copied()).collect();
        self.plan.forget_contents();
        words
    }

    /// Returns the buffer with a result; see `results.rs` for the names.
    #[wasm_bindgen(js_name = bufferOf)]
    pub fn buffer_of(&self, what: &str) -> Result<usize, String> {
        results::decoder(&self.plan, what).map(|decoder| decoder.buffer).map_err(Details::into_json)
    }

    /// Decodes the bytes of a result.
    pub fn decode(&self, what: &str, bytes: &[u8]) -> Result<String, String> {
        let decode = || Ok((results::decoder(&self.plan, what)?.decode)(bytes)?);
        decode().map_err(Details::into_json)
    }

    /// Returns the writes that an update makes.
    pub fn writes(&self, update: &str) -> Result<String, String> {
        let writes = || update::writes(&self.plan, parse(update)?);
        writes().map(|writes| json(&writes)).map_err(Details::into_json)
    }

    /// Returns the places of a number that the caller copies.
    pub fn targets(&self, target: &str) -> Result<String, String> {
        let targets = || update::targets(&self.plan, parse(target)?);
        targets().map(|targets| json(&targets)).map_err(Details::into_json)
    }

    /// Returns the error about buffers that WebGPU refuses. `messages` has what it says about each distinct buffer, or null.
    pub fn refusal(&self, messages: &str) -> Option<String> {
        let messages: Vec<Option<String>> = parse(messages).ok()?;
        let refused = |buffer: usize| messages.get(buffer).cloned().flatten();
        let (gradient, used_as, message) = self
            .plan
            .uses()
            .find_map(|(gradient, used_as, buffer)| Some((gradient, used_as, refused(buffer)?)))?;
        let error = gradclip::Error::BufferRejected { gradient: Some(gradient), message };
        Some(Details::from(used_as.error(error)).into_json())
    }
}

/// Reads JSON that the host wrote.
fn parse<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, Details> {
    serde_json::from_str(text).map_err(|error| Details::request(error.to_string()))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
