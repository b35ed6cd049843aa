//! The results of a plan as numbers, in the orders of `js/src/records.ts`.

use gradclip::plan::{Plan as Planned, Readout};
use gradclip::stats::{NormHistory, NormWindow, StepCounts, TensorStats};
use gradclip::{ClipRecord, Error};
use wasm_bindgen::prelude::wasm_bindgen;

use crate::Plan;
use crate::clip::loss_scale_numbers;
use crate::error::Failure;

#[wasm_bindgen]
impl Plan {
    /// Returns the buffer with a result.
    #[wasm_bindgen(js_name = bufferOf)]
    pub fn buffer_of(&self, what: &str) -> Result<usize, Failure> {
        Ok(decoder(&self.plan, what)?.buffer)
    }

    /// Decodes the bytes of a result.
    pub fn decode(&self, what: &str, bytes: &[u8]) -> Result<Vec<f64>, Failure> {
        Ok((decoder(&self.plan, what)?.decode)(bytes)?)
    }
}

/// Where a result lies, and what decodes it.
struct Decoder {
    buffer: usize,
    decode: Box<Decode>,
}

type Decode = dyn Fn(&[u8]) -> Result<Vec<f64>, Error>;

/// Returns the decoder of a result.
fn decoder(plan: &Planned, what: &str) -> Result<Decoder, Error> {
    Ok(match what {
        "record" => of(plan.record()?, |record| record_numbers(&record).to_vec()),
        "records" => of(plan.all_records()?, |records| all(&records, record_numbers)),
        "tensorStats" => of(plan.tensor_stats()?, |stats| all(&stats, stats_numbers)),
        "stepCounts" => of(plan.step_counts()?, |counts| all(&counts, counts_numbers)),
        "lossScale" => of(plan.dynamic_loss_scale()?, |scale| loss_scale_numbers(&scale)),
        "histories" => of(plan.histories()?, |histories| all(&histories, history_numbers)),
        "normWindows" => of(plan.norm_windows()?, |windows| window_numbers(&windows)),
        _ => unreachable!("the host knows the names"),
    })
}

fn of<R: 'static>(readout: Readout<R>, numbers: fn(R) -> Vec<f64>) -> Decoder {
    Decoder { buffer: readout.buffer(), decode: Box::new(move |bytes| readout.decode(bytes).map(numbers)) }
}

fn all<T, const N: usize>(values: &[T], numbers: fn(&T) -> [f64; N]) -> Vec<f64> {
    values.iter().flat_map(numbers).collect()
}

fn record_numbers(record: &ClipRecord) -> [f64; 14] {
    [
        record.total_norm.into(),
        record.clip_coef.into(),
        record.factor.into(),
        record.max_magnitude.into(),
        record.clipped().into(),
        record.non_finite().into(),
        record.skip().into(),
        record.zeroed().into(),
        record.scale_at_floor().into(),
        record.first_non_finite().map_or(-1.0, |gradient| gradient as f64),
        record.norm_significand.into(),
        record.norm_exponent.into(),
        record.factor_significand.into(),
        record.factor_exponent.into(),
    ]
}

fn stats_numbers(stats: &TensorStats) -> [f64; 4] {
    [stats.norm.into(), stats.max_magnitude.into(), stats.non_finite.into(), stats.zeros.into()]
}

fn counts_numbers(counts: &StepCounts) -> [f64; 6] {
    [
        counts.steps.into(),
        counts.clipped.into(),
        counts.non_finite.into(),
        counts.skipped.into(),
        counts.consecutive_skips.into(),
        counts.largest_norm.into(),
    ]
}

fn history_numbers(history: &NormHistory) -> [f64; 3] {
    [history.steps.into(), history.mean.into(), history.deviation.into()]
}

/// Each window begins with its length.
fn window_numbers(windows: &[NormWindow]) -> Vec<f64> {
    let mut numbers = Vec::new();
    for NormWindow { norms } in windows {
        numbers.push(norms.len() as f64);
        numbers.extend(norms.iter().map(|&norm| f64::from(norm)));
    }
    numbers
}
