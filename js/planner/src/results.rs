//! The results of a plan. `js/src/records.ts` has the same orders.

use gradclip::bytemuck::Pod;
use gradclip::plan::Readout;
use gradclip::stats::NormWindow;
use gradclip::{ClipRecord, Error};

use crate::Call;
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
        1 => write(plan.all_records()?, bytes, answer, |records, answer| {
            answer.list(&records, |answer, record| write_record(record, answer));
        }),
        2 => write(plan.tensor_stats()?, bytes, answer, write_structs),
        3 => write(plan.step_counts()?, bytes, answer, write_structs),
        4 => {
            write(plan.dynamic_loss_scale()?, bytes, answer, |scale, answer| answer.structs(&[scale.state()]))
        }
        5 => write(plan.histories()?, bytes, answer, write_structs),
        _ => write(plan.norm_windows()?, bytes, answer, |windows, answer| {
            answer.list(windows, |answer, NormWindow { norms }| answer.structs(&norms));
        }),
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

#[expect(clippy::needless_pass_by_value, reason = "a writer takes the result")]
fn write_structs<T: Pod>(structs: Vec<T>, answer: &mut Answer) {
    answer.structs(&structs);
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
