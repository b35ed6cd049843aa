//! Errors for JavaScript: the message of the crate, and what is in it. `js/src/errors.ts` is the other side.

use gradclip::{Error, GradientId};

use crate::message::Answer;

/// Writes the message and the name of an error, and the parts that it has: the gradient, what was given, what is allowed.
pub(crate) fn describe(error: &Error) -> Answer {
    let mut answer = Answer::default();
    answer.text(&error.to_string());
    describe_parts(error, &mut answer);
    answer
}

/// Writes what an error has besides its message.
fn describe_parts<'a>(error: &Error, answer: &'a mut Answer) -> &'a mut Answer {
    let below = |end: usize| format!("less than {end}");
    let divisor = |of: u64| format!("a divisor of {of}");
    let range = |start: u64, end: u64| format!("{start}..{end}");
    let count = |number: usize| number as f64;
    let size = |number: u64| number as f64;
    match error {
        Error::Parse { given, allowed, .. } => answer.kind("Parse").given_text(given).allowed_text(allowed),
        Error::MaxNorm { given } => answer.kind("MaxNorm").given_real(*given).allowed_text("0 or greater"),
        Error::ClipValue { given } => {
            answer.kind("ClipValue").given_real(*given).allowed_text("0 or greater")
        }
        Error::ClipRange { .. } => answer.kind("ClipRange").allowed_text("low <= high"),
        Error::Epsilon { given } => {
            answer.kind("Epsilon").given_real(*given).allowed_text("finite and not negative")
        }
        Error::LossScale { given } => {
            answer.kind("LossScale").given_real(*given).allowed_text("positive and finite")
        }
        Error::LossScaleOption { given, allowed, .. } => {
            answer.kind("LossScaleOption").given_real(*given).allowed_text(allowed)
        }
        Error::NormType { .. } => answer.kind("NormType"),
        Error::ParameterFloor { given } => {
            answer.kind("ParameterFloor").given_real(*given).allowed_text("finite and not negative")
        }
        Error::SkipAbove { given } => {
            answer.kind("SkipAbove").given_real(*given).allowed_text("0 or greater")
        }
        Error::MaxConsecutiveSkips { given, .. } => {
            answer.kind("MaxConsecutiveSkips").given(f64::from(*given))
        }
        Error::ZClip { .. } => answer.kind("ZClip"),
        Error::AutoClip { .. } => answer.kind("AutoClip"),
        Error::ConflictingLimits => answer.kind("ConflictingLimits"),
        Error::NeedsNorm { .. } => answer.kind("NeedsNorm"),
        Error::NoClip => answer.kind("NoClip").given(0.0).allowed_text("1 or more"),
        Error::GroupsDiffer { .. } => answer.kind("GroupsDiffer"),
        Error::NormHistory { .. } => answer.kind("NormHistory"),
        Error::NormWindow { .. } => answer.kind("NormWindow"),
        Error::StepCounts { .. } => answer.kind("StepCounts"),
        Error::GroupWithoutClip { gradient, given, groups } => {
            answer.kind("GroupWithoutClip").of(gradient).given(count(*given)).allowed_text(&below(*groups))
        }
        Error::Rows { gradient, rows, elements } => {
            answer.kind("Rows").of(gradient).given(size(*rows)).allowed_text(&divisor(*elements))
        }
        Error::Columns { gradient, columns, elements } => {
            answer.kind("Columns").of(gradient).given(size(*columns)).allowed_text(&divisor(*elements))
        }
        Error::RowsAndColumns { gradient, .. } => answer.kind("RowsAndColumns").of(gradient),
        Error::TooManyEmptyRows { gradient, rows, most } => {
            answer.kind("TooManyEmptyRows").of(gradient).given(size(*rows)).allowed(size(*most))
        }
        Error::MissingParameter { gradient } => answer.kind("MissingParameter").of(gradient),
        Error::ParameterLength { gradient, given, needed } => {
            answer.kind("ParameterLength").of(gradient).given(size(*given)).allowed(size(*needed))
        }
        Error::InGroup { error, .. } | Error::InParameter { error } | Error::InPartials { error } => {
            describe_parts(error, answer)
        }
        Error::BufferUsage { gradient, given, needed } => {
            answer.kind("BufferUsage").of(gradient).given_text(given).allowed_text(needed)
        }
        Error::Misaligned { gradient, given, multiple, .. } => {
            let allowed = format!("a multiple of {multiple}");
            answer.kind("Misaligned").of(gradient).given(size(*given)).allowed_text(&allowed)
        }
        Error::OutOfBounds { gradient, start, end, len } => {
            let (given, allowed) = (range(*start, *end), range(0, *len));
            answer.kind("OutOfBounds").of(gradient).given_text(&given).allowed_text(&allowed)
        }
        Error::Overlap { second, start, end, .. } => {
            answer.kind("Overlap").of(second).given_text(&range(*start, *end))
        }
        Error::Part { gradient, given, gradients } => {
            answer.kind("Part").of(gradient).given(count(*given)).allowed_text(&below(*gradients))
        }
        Error::PartialsNorm { gradient } => answer.kind("PartialsNorm").of(gradient),
        Error::PartialsAndColumns { gradient } => answer.kind("PartialsAndColumns").of(gradient),
        Error::EmptyPartials { gradient } => answer.kind("EmptyPartials").of(gradient),
        Error::PartialsOverlap { second, start, end, .. } => {
            answer.kind("PartialsOverlap").of(second).given_text(&range(*start, *end))
        }
        Error::BufferMapped { gradient } => answer.kind("BufferMapped").of(gradient),
        Error::BufferRejected { gradient, .. } => answer.kind("BufferRejected").of_some(gradient.as_ref()),
        Error::DeviceLimit { needed, allowed, .. } => {
            answer.kind("DeviceLimit").given(size(*needed)).allowed(size(*allowed))
        }
        Error::LimitCount { given, groups } => {
            answer.kind("LimitCount").given(count(*given)).allowed(count(*groups))
        }
        Error::StateCount { given, records, .. } => {
            answer.kind("StateCount").given(count(*given)).allowed(count(*records))
        }
        Error::NoSuchGroup { given, groups } => {
            answer.kind("NoSuchGroup").given(count(*given)).allowed_text(&below(*groups))
        }
        Error::NoGroupLimit { .. } => answer.kind("NoGroupLimit"),
        Error::RebindCount { given, needed } => {
            answer.kind("RebindCount").given(count(*given)).allowed(count(*needed))
        }
        Error::RebindMismatch { gradient, given, needed, .. } => {
            answer.kind("RebindMismatch").of(gradient).given_text(given).allowed_text(needed)
        }
        Error::NotEnabled { .. } => answer.kind("NotEnabled"),
        Error::DynamicLossScale { .. } => answer.kind("DynamicLossScale"),
        Error::UnexpectedNorm => answer.kind("UnexpectedNorm"),
        Error::NonFinite { gradient, total_norm, .. } => {
            answer.kind("NonFinite").of_some(gradient.as_ref()).given_real(*total_norm)
        }
        Error::NothingMeasured => answer.kind("NothingMeasured"),
        Error::NormNotSupplied => answer.kind("NormNotSupplied"),
        Error::PartMissing { gradient } => answer.kind("PartMissing").of(gradient),
        // Errors of other hosts.
        _ => answer.kind("Error"),
    }
}

/// The parts of an error: its name, and those that it may have. A number before each of these says which it is.
impl Answer {
    fn kind(&mut self, kind: &str) -> &mut Self {
        self.text(kind);
        self
    }

    fn of(&mut self, GradientId { index, label }: &GradientId) -> &mut Self {
        self.number(1);
        self.index(*index);
        self.list(label.as_slice(), |answer, label| answer.text(label));
        self
    }

    fn of_some(&mut self, gradient: Option<&GradientId>) -> &mut Self {
        match gradient {
            Some(gradient) => self.of(gradient),
            None => self,
        }
    }

    fn given(&mut self, given: f64) -> &mut Self {
        self.number(2);
        self.number(given);
        self
    }

    fn given_real(&mut self, given: f32) -> &mut Self {
        self.number(3);
        self.number(given);
        self
    }

    fn given_text(&mut self, given: &str) -> &mut Self {
        self.number(4);
        self.text(given);
        self
    }

    fn allowed(&mut self, allowed: f64) -> &mut Self {
        self.number(5);
        self.number(allowed);
        self
    }

    fn allowed_text(&mut self, allowed: &str) -> &mut Self {
        self.number(6);
        self.text(allowed);
        self
    }
}
