//! Updates of a plan between steps: what the setters of `plan.ts` write, and where its copies go.

use gradclip::plan::{Place, Plan, Write};
use serde::{Deserialize, Serialize};

use crate::clip::DynamicLossScale;
use crate::error::Details;
use crate::number::Number;
use crate::results::{CountsView, HistoryView, WindowView};

/// New values.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Update {
    MaxNorms(Vec<Number>),
    LossScale(Number),
    DynamicLossScale(DynamicLossScale),
    SuppliedNorm(Number),
    StepCounts(Vec<CountsView>),
    Histories(Vec<HistoryView>),
    NormWindows(Vec<WindowView>),
}

/// A number that is copied from a buffer of the caller.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Target {
    /// The limit of a group.
    MaxNorm(usize),
    SuppliedNorm,
    InverseLossScale,
}

#[derive(Serialize)]
pub(crate) struct WriteData {
    buffer: usize,
    offset: u64,
    bytes: Vec<u8>,
}

#[derive(Serialize)]
pub(crate) struct PlaceData {
    buffer: usize,
    offset: u64,
}

/// Returns the writes of an update.
pub(crate) fn writes(plan: &Plan, update: Update) -> Result<Vec<WriteData>, Details> {
    fn all<'a, V, T: From<&'a V>>(views: &'a [V]) -> Vec<T> {
        views.iter().map(T::from).collect()
    }
    let writes = match update {
        Update::LossScale(Number(scale)) => plan.set_loss_scale(scale)?,
        Update::MaxNorms(limits) => {
            let limits: Vec<f32> = limits.into_iter().map(|Number(limit)| limit).collect();
            vec![plan.set_max_norms(&limits)?]
        }
        Update::DynamicLossScale(scale) => vec![plan.set_dynamic_loss_scale(scale.checked()?)?],
        Update::SuppliedNorm(Number(norm)) => vec![plan.supply_norm(norm)?],
        Update::StepCounts(counts) => vec![plan.set_step_counts(&all(&counts))?],
        Update::Histories(histories) => vec![plan.set_histories(&all(&histories))?],
        Update::NormWindows(windows) => vec![plan.set_norm_windows(&all(&windows))?],
    };
    let data = |Write { place: Place { buffer, offset }, bytes }| WriteData { buffer, offset, bytes };
    Ok(writes.into_iter().map(data).collect())
}

/// Returns the places of a number.
pub(crate) fn targets(plan: &Plan, target: Target) -> Result<Vec<PlaceData>, Details> {
    let places = match target {
        Target::MaxNorm(group) => vec![plan.max_norm(group)?],
        Target::SuppliedNorm => vec![plan.supplied_norm()?],
        Target::InverseLossScale => plan.inverse_loss_scales("copy_inverse_loss_scale")?,
    };
    Ok(places.into_iter().map(|Place { buffer, offset }| PlaceData { buffer, offset }).collect())
}
