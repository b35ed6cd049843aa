//! Errors for JavaScript: the message of the crate, and the numbers in it.

use gradclip::{Error, GradientId};
use serde::Serialize;
use serde_json::{Value, json};

/// An error as `ErrorDetails` of `errors.ts`.
#[derive(Debug, Serialize)]
pub(crate) struct Details {
    kind: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient: Option<Gradient>,
    #[serde(skip_serializing_if = "Value::is_null")]
    given: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    allowed: Value,
}

#[derive(Debug, Serialize)]
struct Gradient {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<Box<str>>,
}

impl From<GradientId> for Gradient {
    fn from(GradientId { index, label }: GradientId) -> Self {
        Self { index, label }
    }
}

impl Details {
    /// An error of the request itself, such as an unknown option.
    pub(crate) fn request(message: String) -> Self {
        Self { kind: "Request", message, gradient: None, given: Value::Null, allowed: Value::Null }
    }

    /// An error of the description of one gradient.
    pub(crate) fn of_gradient(index: usize, label: Option<&str>, message: &str) -> Self {
        let id = GradientId { index, label: label.map(Box::from) };
        Self { gradient: Some(id.clone().into()), ..Self::request(format!("gradient {id}: {message}")) }
    }

    pub(crate) fn into_json(self) -> String {
        crate::json(&self)
    }
}

impl From<Error> for Details {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let (kind, gradient, given, allowed) = parts(error);
        Self { kind, message, gradient: gradient.map(Gradient::from), given, allowed }
    }
}

/// A number as JSON; as text where JSON has none.
fn number(x: f32) -> Value {
    if x.is_finite() { json!(f64::from(x)) } else { json!(x.to_string()) }
}

/// Returns the name of an error, its gradient, what was given and what is allowed.
fn parts(error: Error) -> (&'static str, Option<GradientId>, Value, Value) {
    const NONE: Value = Value::Null;
    let not_negative = || json!("0 or greater");
    match error {
        Error::Parse { given, allowed, .. } => ("Parse", None, json!(given), json!(allowed)),
        Error::MaxNorm { given } => ("MaxNorm", None, number(given), not_negative()),
        Error::ClipValue { given } => ("ClipValue", None, number(given), not_negative()),
        Error::ClipRange { low, high } => {
            ("ClipRange", None, json!([number(low), number(high)]), json!("low <= high"))
        }
        Error::Epsilon { given } => ("Epsilon", None, number(given), json!("finite and not negative")),
        Error::LossScale { given } => ("LossScale", None, number(given), json!("positive and finite")),
        Error::LossScaleOption { option, given, allowed } => {
            ("LossScaleOption", None, json!({ option: number(given) }), json!(allowed))
        }
        Error::NormType { given } => ("NormType", None, json!(given.to_string()), json!("not NaN")),
        Error::ParameterFloor { given } => {
            ("ParameterFloor", None, number(given), json!("finite and not negative"))
        }
        Error::SkipAbove { given } => ("SkipAbove", None, number(given), not_negative()),
        Error::MaxConsecutiveSkips { given, .. } => {
            ("MaxConsecutiveSkips", None, json!(given), json!("1 or more, with skipAbove"))
        }
        Error::ZClip { .. } => ("ZClip", None, NONE, NONE),
        Error::AutoClip { .. } => ("AutoClip", None, NONE, NONE),
        Error::ConflictingLimits => ("ConflictingLimits", None, NONE, NONE),
        Error::NeedsNorm { .. } => ("NeedsNorm", None, NONE, NONE),
        Error::NoClip => ("NoClip", None, json!(0), json!("1 or more")),
        Error::InGroup { error, .. } => parts(*error),
        Error::GroupsDiffer { given, .. } => ("GroupsDiffer", None, json!(given), json!("the same")),
        Error::NormHistory { .. } => ("NormHistory", None, NONE, NONE),
        Error::NormWindow { .. } => ("NormWindow", None, NONE, NONE),
        Error::StepCounts { .. } => ("StepCounts", None, NONE, NONE),
        Error::GroupWithoutClip { gradient, given, groups } => {
            ("GroupWithoutClip", Some(gradient), json!(given), json!(format!("less than {groups}")))
        }
        Error::Rows { gradient, rows, elements } => {
            ("Rows", Some(gradient), json!(rows), json!(format!("a divisor of {elements}")))
        }
        Error::Columns { gradient, columns, elements } => {
            ("Columns", Some(gradient), json!(columns), json!(format!("a divisor of {elements}")))
        }
        Error::RowsAndColumns { gradient, rows, columns } => {
            ("RowsAndColumns", Some(gradient), json!([rows, columns]), json!("one of the two"))
        }
        Error::TooManyEmptyRows { gradient, rows, most } => {
            ("TooManyEmptyRows", Some(gradient), json!(rows), json!(most))
        }
        Error::MissingParameter { gradient } => {
            ("MissingParameter", Some(gradient), NONE, json!("a parameter"))
        }
        Error::ParameterLength { gradient, given, needed } => {
            ("ParameterLength", Some(gradient), json!(given), json!(needed))
        }
        Error::InParameter { error } | Error::InPartials { error } => parts(*error),
        Error::BufferUsage { gradient, given, needed } => {
            ("BufferUsage", Some(gradient), json!(given), json!(needed))
        }
        Error::Misaligned { gradient, given, multiple, .. } => {
            ("Misaligned", Some(gradient), json!(given), json!(format!("a multiple of {multiple}")))
        }
        Error::OutOfBounds { gradient, start, end, len } => {
            ("OutOfBounds", Some(gradient), json!([start, end]), json!([0, len]))
        }
        Error::Overlap { second, start, end, .. } => ("Overlap", Some(second), json!([start, end]), NONE),
        Error::Part { gradient, given, gradients } => {
            ("Part", Some(gradient), json!(given), json!(format!("less than {gradients}")))
        }
        Error::PartialsNorm { gradient } => {
            ("PartialsNorm", Some(gradient), NONE, json!("normType 1, 2 or Infinity"))
        }
        Error::PartialsAndColumns { gradient } => ("PartialsAndColumns", Some(gradient), NONE, NONE),
        Error::EmptyPartials { gradient } => {
            ("EmptyPartials", Some(gradient), json!(0), json!("1 or more"))
        }
        Error::PartialsOverlap { second, start, end, .. } => {
            ("PartialsOverlap", Some(second), json!([start, end]), NONE)
        }
        Error::BufferMapped { gradient } => ("BufferMapped", Some(gradient), NONE, NONE),
        Error::BufferRejected { gradient, .. } => ("BufferRejected", gradient, NONE, NONE),
        Error::DeviceLimit { needed, allowed, .. } => ("DeviceLimit", None, json!(needed), json!(allowed)),
        Error::LimitCount { given, groups } => ("LimitCount", None, json!(given), json!(groups)),
        Error::StateCount { given, records, .. } => ("StateCount", None, json!(given), json!(records)),
        Error::NoSuchGroup { given, groups } => {
            ("NoSuchGroup", None, json!(given), json!(format!("less than {groups}")))
        }
        Error::NoGroupLimit { .. } => ("NoGroupLimit", None, NONE, NONE),
        Error::RebindCount { given, needed } => ("RebindCount", None, json!(given), json!(needed)),
        Error::RebindMismatch { gradient, given, needed, .. } => {
            ("RebindMismatch", Some(gradient), json!(given), json!(needed))
        }
        Error::NotEnabled { with, .. } => ("NotEnabled", None, NONE, json!(with)),
        Error::DynamicLossScale { .. } => ("DynamicLossScale", None, NONE, NONE),
        Error::UnexpectedNorm => ("UnexpectedNorm", None, NONE, NONE),
        Error::NonFinite { gradient, total_norm, .. } => ("NonFinite", gradient, number(total_norm), NONE),
        Error::NothingMeasured => ("NothingMeasured", None, NONE, NONE),
        Error::NormNotSupplied => ("NormNotSupplied", None, NONE, NONE),
        Error::PartMissing { gradient } => ("PartMissing", Some(gradient), NONE, NONE),
        // Errors of other hosts.
        _ => ("Error", None, NONE, NONE),
    }
}
