//! The results of a plan as JSON, for the interfaces of `records.ts`.

use gradclip::loss_scale::{LossScale, LossScaleState};
use gradclip::plan::{Plan, Readout};
use gradclip::stats::{NormHistory, NormWindow, StepCounts, TensorStats};
use gradclip::{ClipRecord, Error};
use serde::Serialize;

use crate::error::Details;
use crate::json;
use crate::number::Number;

/// Where a result lies, and what decodes it.
pub(crate) struct Decoder {
    pub(crate) buffer: usize,
    pub(crate) decode: Box<dyn Fn(&[u8]) -> Result<String, Error>>,
}

/// Returns the decoder of a result. The names are those of `Result` in `plan_data.ts`.
pub(crate) fn decoder(plan: &Plan, what: &str) -> Result<Decoder, Details> {
    Ok(match what {
        "record" => decoder_of(plan.record()?, |record| json(&RecordView::from(record))),
        "records" => decoder_of(plan.all_records()?, |records| views::<_, RecordView>(records)),
        "tensorStats" => decoder_of(plan.tensor_stats()?, |stats| views::<_, StatsView>(stats)),
        "stepCounts" => decoder_of(plan.step_counts()?, |counts| views::<_, CountsView>(counts)),
        "lossScale" => decoder_of(plan.dynamic_loss_scale()?, |scale| json(&ScaleView::from(scale))),
        "histories" => decoder_of(plan.histories()?, |histories| views::<_, HistoryView>(histories)),
        "normWindows" => decoder_of(plan.norm_windows()?, |windows| views::<_, WindowView>(windows)),
        _ => return Err(Details::request(format!("there is no result {what:?}"))),
    })
}

fn decoder_of<R: 'static>(readout: Readout<R>, show: fn(R) -> String) -> Decoder {
    Decoder { buffer: readout.buffer(), decode: Box::new(move |bytes| readout.decode(bytes).map(show)) }
}

fn views<T, V: From<T> + Serialize>(values: Vec<T>) -> String {
    json(&values.into_iter().map(V::from).collect::<Vec<_>>())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecordView {
    total_norm: Number,
    clip_coef: Number,
    factor: Number,
    max_magnitude: Number,
    clipped: bool,
    non_finite: bool,
    skip: bool,
    zeroed: bool,
    scale_at_floor: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_non_finite: Option<usize>,
    norm_significand: Number,
    norm_exponent: i32,
    factor_significand: Number,
    factor_exponent: i32,
}

impl From<ClipRecord> for RecordView {
    fn from(record: ClipRecord) -> Self {
        Self {
            total_norm: Number(record.total_norm),
            clip_coef: Number(record.clip_coef),
            factor: Number(record.factor),
            max_magnitude: Number(record.max_magnitude),
            clipped: record.clipped(),
            non_finite: record.non_finite(),
            skip: record.skip(),
            zeroed: record.zeroed(),
            scale_at_floor: record.scale_at_floor(),
            first_non_finite: record.first_non_finite(),
            norm_significand: Number(record.norm_significand),
            norm_exponent: record.norm_exponent,
            factor_significand: Number(record.factor_significand),
            factor_exponent: record.factor_exponent,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatsView {
    norm: Number,
    max_magnitude: Number,
    non_finite: u32,
    zeros: u32,
}

impl From<TensorStats> for StatsView {
    fn from(TensorStats { norm, max_magnitude, non_finite, zeros }: TensorStats) -> Self {
        Self { norm: Number(norm), max_magnitude: Number(max_magnitude), non_finite, zeros }
    }
}

/// These are read from JavaScript too, to restore a checkpoint: the next three likewise.
#[derive(Debug, Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CountsView {
    steps: u32,
    clipped: u32,
    non_finite: u32,
    skipped: u32,
    consecutive_skips: u32,
    largest_norm: Number,
}

impl From<StepCounts> for CountsView {
    fn from(counts: StepCounts) -> Self {
        Self {
            steps: counts.steps,
            clipped: counts.clipped,
            non_finite: counts.non_finite,
            skipped: counts.skipped,
            consecutive_skips: counts.consecutive_skips,
            largest_norm: Number(counts.largest_norm),
        }
    }
}

impl From<&CountsView> for StepCounts {
    fn from(counts: &CountsView) -> Self {
        Self {
            steps: counts.steps,
            clipped: counts.clipped,
            non_finite: counts.non_finite,
            skipped: counts.skipped,
            consecutive_skips: counts.consecutive_skips,
            largest_norm: counts.largest_norm.0,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScaleView {
    scale: Number,
    growth: Number,
    backoff: Number,
    floor: Number,
    interval: u32,
    good_steps: u32,
}

impl From<LossScale> for ScaleView {
    fn from(scale: LossScale) -> Self {
        let LossScaleState { scale, growth, backoff, floor, interval, good_steps } = scale.state();
        let [scale, growth, backoff, floor] = [scale, growth, backoff, floor].map(Number);
        Self { scale, growth, backoff, floor, interval, good_steps }
    }
}

#[derive(Debug, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HistoryView {
    steps: u32,
    mean: Number,
    deviation: Number,
}

impl From<NormHistory> for HistoryView {
    fn from(NormHistory { steps, mean, deviation }: NormHistory) -> Self {
        Self { steps, mean: Number(mean), deviation: Number(deviation) }
    }
}

impl From<&HistoryView> for NormHistory {
    fn from(history: &HistoryView) -> Self {
        Self { steps: history.steps, mean: history.mean.0, deviation: history.deviation.0 }
    }
}

#[derive(Debug, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WindowView {
    norms: Vec<Number>,
}

impl From<NormWindow> for WindowView {
    fn from(NormWindow { norms }: NormWindow) -> Self {
        Self { norms: norms.into_iter().map(Number).collect() }
    }
}

impl From<&WindowView> for NormWindow {
    fn from(window: &WindowView) -> Self {
        Self { norms: window.norms.iter().map(|&Number(norm)| norm).collect() }
    }
}
