//! Updates of a plan between steps: what the setters of `js/src/plan.ts` write, and where its copies go.

use gradclip::Error;
use gradclip::plan::{Place, Write};
use gradclip::stats::{NormHistory, NormWindow, StepCounts};

use crate::Call;
use crate::clip::loss_scale;
use crate::message::Request;

impl Call<'_> {
    /// Answers with bytes for buffers of the plan.
    fn write(&mut self, writes: &[Write]) -> Result<(), Error> {
        self.answer.list(writes, |answer, Write { place, bytes }| {
            answer.index(place.buffer);
            answer.size(place.offset);
            answer.bytes(bytes);
        });
        Ok(())
    }

    /// Answers with places that the host copies to: writes without bytes.
    fn point_to(&mut self, places: &[Place]) -> Result<(), Error> {
        let writes: Vec<_> = places.iter().map(|&place| Write { place, bytes: Vec::new() }).collect();
        self.write(&writes)
    }
}

pub(crate) fn set_max_norms(call: &mut Call<'_>) -> Result<(), Error> {
    let max_norms = call.request.list(Request::f32);
    let write = call.plan().set_max_norms(&max_norms)?;
    call.write(&[write])
}

pub(crate) fn set_loss_scale(call: &mut Call<'_>) -> Result<(), Error> {
    let scale = call.request.f32();
    let writes = call.plan().set_loss_scale(scale)?;
    call.write(&writes)
}

pub(crate) fn set_dynamic_loss_scale(call: &mut Call<'_>) -> Result<(), Error> {
    let scale = loss_scale(&mut call.request)?;
    let write = call.plan().set_dynamic_loss_scale(scale)?;
    call.write(&[write])
}

pub(crate) fn set_step_counts(call: &mut Call<'_>) -> Result<(), Error> {
    let counts: Vec<StepCounts> = call.request.structs();
    let write = call.plan().set_step_counts(&counts)?;
    call.write(&[write])
}

pub(crate) fn set_histories(call: &mut Call<'_>) -> Result<(), Error> {
    let histories: Vec<NormHistory> = call.request.structs();
    let write = call.plan().set_histories(&histories)?;
    call.write(&[write])
}

pub(crate) fn set_norm_windows(call: &mut Call<'_>) -> Result<(), Error> {
    let windows = call.request.list(|request| NormWindow { norms: request.list(Request::f32) });
    let write = call.plan().set_norm_windows(&windows)?;
    call.write(&[write])
}

pub(crate) fn supply_norm(call: &mut Call<'_>) -> Result<(), Error> {
    let norm = call.request.f32();
    let write = call.plan().supply_norm(norm)?;
    call.write(&[write])
}

/// Answers with the place of the limit of a group.
pub(crate) fn max_norm(call: &mut Call<'_>) -> Result<(), Error> {
    let group = call.request.usize();
    let place = call.plan().max_norm(group)?;
    call.point_to(&[place])
}

/// Answers with the place of the supplied norm.
pub(crate) fn supplied_norm(call: &mut Call<'_>) -> Result<(), Error> {
    let place = call.plan().supplied_norm()?;
    call.point_to(&[place])
}

/// Answers with the places of the inverse of the loss scale.
pub(crate) fn inverse_loss_scale(call: &mut Call<'_>) -> Result<(), Error> {
    let places = call.plan().inverse_loss_scales("copy_inverse_loss_scale")?;
    call.point_to(&places)
}
