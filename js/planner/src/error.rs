//! Errors for JavaScript: the message of the crate, and what is in it. `js/src/errors.ts` has the same order.

use gradclip::{Error, GradientId};

use crate::message::Answer;

/// Writes an error: its message, its name, its gradient, what was given and what is allowed.
pub(crate) fn describe(error: Error) -> Answer {
    let mut answer = Answer::default();
    answer.text(&error.to_string());
    let Parts { kind, gradient, given, allowed } = Parts::of(error);
    answer.text(kind);
    answer.list(gradient.as_slice(), |answer, GradientId { index, label }| {
        answer.index(*index);
        answer.list(label.as_slice(), |answer, label| answer.text(label));
    });
    given.write(&mut answer);
    allowed.write(&mut answer);
    answer
}

/// The name of an error, its gradient, what was given and what is allowed.
#[derive(Debug)]
struct Parts {
    kind: &'static str,
    gradient: Option<GradientId>,
    given: Value,
    allowed: Value,
}

/// A value of an error.
#[derive(Debug)]
enum Value {
    None,
    Number(f64),
    Text(String),
}

impl Value {
    /// Writes the kind of the value, and the value.
    fn write(&self, answer: &mut Answer) {
        match self {
            Self::None => answer.number(0),
            Self::Number(number) => {
                answer.number(1);
                answer.number(*number);
            }
            Self::Text(text) => {
                answer.number(2);
                answer.text(text);
            }
        }
    }
}

impl From<f32> for Value {
    fn from(number: f32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number as f64)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as f64)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Parts {
    fn new(kind: &'static str) -> Self {
        Self { kind, gradient: None, given: Value::None, allowed: Value::None }
    }

    fn of_gradient(self, gradient: GradientId) -> Self {
        Self { gradient: Some(gradient), ..self }
    }

    fn given(self, given: impl Into<Value>) -> Self {
        Self { given: given.into(), ..self }
    }

    fn allowed(self, allowed: impl Into<Value>) -> Self {
        Self { allowed: allowed.into(), ..self }
    }

    fn of(error: Error) -> Self {
        let new = Self::new;
        let below = |end: usize| format!("less than {end}");
        let divisor = |of: u64| format!("a divisor of {of}");
        let range = |start: u64, end: u64| format!("{start}..{end}");
        match error {
            Error::Parse { given, allowed, .. } => new("Parse").given(given).allowed(allowed),
            Error::MaxNorm { given } => new("MaxNorm").given(given).allowed("0 or greater"),
            Error::ClipValue { given } => new("ClipValue").given(given).allowed("0 or greater"),
            Error::ClipRange { .. } => new("ClipRange").allowed("low <= high"),
            Error::Epsilon { given } => new("Epsilon").given(given).allowed("finite and not negative"),
            Error::LossScale { given } => new("LossScale").given(given).allowed("positive and finite"),
            Error::LossScaleOption { given, allowed, .. } => {
                new("LossScaleOption").given(given).allowed(allowed)
            }
            Error::NormType { .. } => new("NormType"),
            Error::ParameterFloor { given } => {
                new("ParameterFloor").given(given).allowed("finite and not negative")
            }
            Error::SkipAbove { given } => new("SkipAbove").given(given).allowed("0 or greater"),
            Error::MaxConsecutiveSkips { given, .. } => new("MaxConsecutiveSkips").given(given),
            Error::ZClip { .. } => new("ZClip"),
            Error::AutoClip { .. } => new("AutoClip"),
            Error::ConflictingLimits => new("ConflictingLimits"),
            Error::NeedsNorm { .. } => new("NeedsNorm"),
            Error::NoClip => new("NoClip").given(0_u32).allowed("1 or more"),
            Error::InGroup { error, .. } => Self::of(*error),
            Error::GroupsDiffer { .. } => new("GroupsDiffer"),
            Error::NormHistory { .. } => new("NormHistory"),
            Error::NormWindow { .. } => new("NormWindow"),
            Error::StepCounts { .. } => new("StepCounts"),
            Error::GroupWithoutClip { gradient, given, groups } => {
                new("GroupWithoutClip").of_gradient(gradient).given(given).allowed(below(groups))
            }
            Error::Rows { gradient, rows, elements } => {
                new("Rows").of_gradient(gradient).given(rows).allowed(divisor(elements))
            }
            Error::Columns { gradient, columns, elements } => {
                new("Columns").of_gradient(gradient).given(columns).allowed(divisor(elements))
            }
            Error::RowsAndColumns { gradient, .. } => new("RowsAndColumns").of_gradient(gradient),
            Error::TooManyEmptyRows { gradient, rows, most } => {
                new("TooManyEmptyRows").of_gradient(gradient).given(rows).allowed(most)
            }
            Error::MissingParameter { gradient } => new("MissingParameter").of_gradient(gradient),
            Error::ParameterLength { gradient, given, needed } => {
                new("ParameterLength").of_gradient(gradient).given(given).allowed(needed)
            }
            Error::InParameter { error } | Error::InPartials { error } => Self::of(*error),
            Error::BufferUsage { gradient, given, needed } => {
                new("BufferUsage").of_gradient(gradient).given(given).allowed(needed)
            }
            Error::Misaligned { gradient, given, multiple, .. } => {
                let allowed = format!("a multiple of {multiple}");
                new("Misaligned").of_gradient(gradient).given(given).allowed(allowed)
            }
            Error::OutOfBounds { gradient, start, end, len } => {
                new("OutOfBounds").of_gradient(gradient).given(range(start, end)).allowed(range(0, len))
            }
            Error::Overlap { second, start, end, .. } => {
                new("Overlap").of_gradient(second).given(range(start, end))
            }
            Error::Part { gradient, given, gradients } => {
                new("Part").of_gradient(gradient).given(given).allowed(below(gradients))
            }
            Error::PartialsNorm { gradient } => new("PartialsNorm").of_gradient(gradient),
            Error::PartialsAndColumns { gradient } => new("PartialsAndColumns").of_gradient(gradient),
            Error::EmptyPartials { gradient } => new("EmptyPartials").of_gradient(gradient),
            Error::PartialsOverlap { second, start, end, .. } => {
                new("PartialsOverlap").of_gradient(second).given(range(start, end))
            }
            Error::BufferMapped { gradient } => new("BufferMapped").of_gradient(gradient),
            Error::BufferRejected { gradient, .. } => Self { gradient, ..new("BufferRejected") },
            Error::DeviceLimit { needed, allowed, .. } => new("DeviceLimit").given(needed).allowed(allowed),
            Error::LimitCount { given, groups } => new("LimitCount").given(given).allowed(groups),
            Error::StateCount { given, records, .. } => new("StateCount").given(given).allowed(records),
            Error::NoSuchGroup { given, groups } => new("NoSuchGroup").given(given).allowed(below(groups)),
            Error::NoGroupLimit { .. } => new("NoGroupLimit"),
            Error::RebindCount { given, needed } => new("RebindCount").given(given).allowed(needed),
            Error::RebindMismatch { gradient, given, needed, .. } => {
                new("RebindMismatch").of_gradient(gradient).given(given).allowed(needed)
            }
            Error::NotEnabled { .. } => new("NotEnabled"),
            Error::DynamicLossScale { .. } => new("DynamicLossScale"),
            Error::UnexpectedNorm => new("UnexpectedNorm"),
            Error::NonFinite { gradient, total_norm, .. } => {
                Self { gradient, ..new("NonFinite").given(total_norm) }
            }
            Error::NothingMeasured => new("NothingMeasured"),
            Error::NormNotSupplied => new("NormNotSupplied"),
            Error::PartMissing { gradient } => new("PartMissing").of_gradient(gradient),
            // Errors of other hosts.
            _ => new("Error"),
        }
    }
}
