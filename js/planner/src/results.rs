//! The results of a plan. `js/src/records.ts` has the same orders.

use gradclip::plan::Readout;
use gradclip::stats::{NormHistory, NormWindow, StepCounts, TensorStats};
use gradclip::{ClipRecord, Error};

use crate::Call;
use crate::clip::write_loss_scale;
use crate::message::Answer;

/// Answers with the buffer that has a result.
pub(crate) fn buffer_of(call: &mut Call<'_>) -> Result<(), Error> {
    read(call, false)
}

/// Answers with a result, from the bytes of its buffer.
pub(crate) fn decode(call: &mut Call<'_>) -> Result<(), Error> {
    read(call, true)
}

/// Reads the number of a result, and decodes its bytes or tells its buffer.
fn read(call: &mut Call<'_>, decodes: bool) -> Result<(), Error> {
    let what = call.request.u32();
    let bytes = decodes.then(|| call.request.bytes());
    let Call { plan, answer, .. } = call;
    let plan = plan.as_deref().expect("the host names the plan");
    match what {
        0 => write(plan.record()?, bytes, answer, |record, answer| write_record(&record, answer)),
        1 => write(plan.all_records()?, bytes, answer, |records, answer| all(&records, answer, write_record)),
        2 => write(plan.tensor_stats()?, bytes, answer, |stats, answer| all(&stats, answer, write_stats)),
        3 => write(plan.step_counts()?, bytes, answer, |counts, answer| all(&counts, answer, write_counts)),
        4 => write(plan.dynamic_loss_scale()?, bytes, answer, write_loss_scale),
        5 => write(plan.histories()?, bytes, answer, |histories, answer| {
            all(&histories, answer, write_history)
        }),
        _ => {
            write(plan.norm_windows()?, bytes, answer, |windows, answer| all(&windows, answer, write_window))
        }
    }
}

fn write<R>(
    readout: Readout<R>,
    bytes: Option<&[u8]>,
    answer: &mut Answer,
    write: fn(R, &mut Answer),
) -> Result<(), Error> {
    match bytes {
        Some(bytes) => write(readout.decode(bytes)?, answer),
        None => answer.index(readout.buffer()),
    }
    Ok(())
}

fn all<T>(values: &[T], answer: &mut Answer, write: fn(&T, &mut Answer)) {
    answer.list(values, |answer, value| write(value, answer));
}

fn write_record(record: &ClipRecord, answer: &mut Answer) {
    answer.number(record.total_norm);
    answer.number(record.clip_coef);
    answer.number(record.factor);
    answer.number(record.max_magnitude);
    answer.number(record.clipped());
    answer.number(record.non_finite());
    answer.number(record.skip());
    answer.number(record.zeroed());
    answer.number(record.scale_at_floor());
    answer.optional(record.first_non_finite());
    answer.number(record.norm_significand);
    answer.number(record.norm_exponent);
    answer.number(record.factor_significand);
    answer.number(record.factor_exponent);
}

fn write_stats(stats: &TensorStats, answer: &mut Answer) {
    answer.number(stats.norm);
    answer.number(stats.max_magnitude);
    answer.number(stats.non_finite);
    answer.number(stats.zeros);
}

fn write_counts(counts: &StepCounts, answer: &mut Answer) {
    answer.number(counts.steps);
    answer.number(counts.clipped);
    answer.number(counts.non_finite);
    answer.number(counts.skipped);
    answer.number(counts.consecutive_skips);
    answer.number(counts.largest_norm);
}

fn write_history(history: &NormHistory, answer: &mut Answer) {
    answer.number(history.steps);
    answer.number(history.mean);
    answer.number(history.deviation);
}

fn write_window(window: &NormWindow, answer: &mut Answer) {
    answer.list(&window.norms, |answer, &norm| answer.number(norm));
}
