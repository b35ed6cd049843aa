//! The option types of a [`Clip`](crate::Clip): norm type, epsilon, policy for non-finite gradients.
//!
//! Each has a text form, which [`Display`](fmt::Display) writes and [`FromStr`] reads, for command lines and configuration.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// The norm that is measured and limited.
///
/// As text: `l1`, `l2`, `inf`, or the number p. The numbers `1` and `2` are `l1` and `l2`.
///
/// ```
/// use gradclip::NormType;
///
/// assert_eq!("2".parse(), Ok(NormType::L2));
/// assert_eq!("-inf".parse(), Ok(NormType::P(f32::NEG_INFINITY)));
/// assert_eq!(NormType::P(3.0).to_string(), "3");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum NormType {
    /// `Σ |g|`
    L1,
    /// `sqrt(Σ g²)`
    #[default]
    L2,
    /// `max |g|`
    Inf,
    /// `(Σ |g|^p)^(1/p)`, defined for every p as in PyTorch.
    ///
    /// p = 0 counts the gradients that hold a non-zero element. p = -∞ is `min |g|`. For a negative p, a zero element makes the
    /// norm 0. p = 1, 2 and ∞ are the variants above. An empty gradient adds nothing. NaN is an [`Error::NormType`].
    ///
    /// On a GPU the relative error is about 1e-5, because of the precision of `pow`, and larger if |p| is below 0.1.
    P(#[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))] f32),
}

impl NormType {
    /// Validates p, and replaces 1, 2 and infinity by their variants.
    pub(crate) fn checked(self) -> Result<Self, Error> {
        match self {
            Self::P(p) if p.is_nan() => Err(Error::NormType { given: self }),
            Self::P(1.0) => Ok(Self::L1),
            Self::P(2.0) => Ok(Self::L2),
            Self::P(f32::INFINITY) => Ok(Self::Inf),
            other => Ok(other),
        }
    }

    /// Returns the name of a norm; `None` for [`P`](Self::P), whose text is the number.
    pub(crate) const fn name(self) -> Option<&'static str> {
        match self {
            Self::L1 => Some("l1"),
            Self::L2 => Some("l2"),
            Self::Inf => Some("inf"),
            Self::P(_) => None,
        }
    }

    /// Returns the exponent p of the norm.
    #[must_use]
    pub const fn p(self) -> f32 {
        match self {
            Self::L1 => 1.0,
            Self::L2 => 2.0,
            Self::Inf => f32::INFINITY,
            Self::P(p) => p,
        }
    }
}

impl fmt::Display for NormType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => fmt::Display::fmt(&self.p(), f),
        }
    }
}

impl FromStr for NormType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "l1" => Ok(Self::L1),
            "l2" => Ok(Self::L2),
            "linf" => Ok(Self::Inf),
            number => number.parse().ok().and_then(|p| Self::P(p).checked().ok()).ok_or_else(|| {
                Error::parse("norm type", text, "l1, l2, inf, or a number: the p of the norm")
            }),
        }
    }
}

/// The constant that is added to a norm before the limit is divided by it.
///
/// As text: `pytorch`, `none`, or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Epsilon {
    /// 1e-6, as in `torch.nn.utils.clip_grad_norm_`. A norm less than 1e-6 below the limit is scaled slightly too.
    #[default]
    PyTorch,
    /// 0. Gradients whose norm is 0 are not changed.
    None,
    /// Any other constant. Negative, infinite or NaN is an [`Error::Epsilon`](crate::Error::Epsilon) when the clip is used.
    Value(f32),
}

impl Epsilon {
    pub(crate) const fn value(self) -> f32 {
        match self {
            Self::PyTorch => 1e-6,
            Self::None => 0.0,
            Self::Value(value) => value,
        }
    }
}

impl fmt::Display for Epsilon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PyTorch => f.pad("pytorch"),
            Self::None => f.pad("none"),
            Self::Value(value) => fmt::Display::fmt(value, f),
        }
    }
}

impl FromStr for Epsilon {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "pytorch" => Ok(Self::PyTorch),
            "none" => Ok(Self::None),
            number => number
                .parse()
                .ok()
                .filter(|value: &f32| *value >= 0.0 && value.is_finite())
                .map(Self::Value)
                .ok_or_else(|| {
                    Error::parse("epsilon", text, "pytorch, none, or a finite number, 0 or greater")
                }),
        }
    }
}

/// The policy for gradients that hold an infinity or a NaN, or whose supplied norm is not finite.
///
/// It is applied on the device, without the host. If all elements are finite, a norm above `f32::MAX` is not such a case; the
/// gradients are scaled as usual.
///
/// As text: `propagate`, `skip`, `zero`, `poison` or `error`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum NonFinite {
    /// Multiplies by the coefficient as usual, as PyTorch does. With an infinite norm the coefficient is 0, so that finite
    /// elements become 0 and infinite ones NaN. With a NaN norm every element becomes NaN.
    #[default]
    Propagate,
    /// Leaves the gradients unchanged. The record says [`skip`](crate::ClipRecord::skip): the optimizer must skip the step.
    Skip,
    /// Sets all elements to 0.
    Zero,
    /// Sets all elements to NaN.
    Poison,
    /// Leaves the gradients unchanged, and returns [`Error::NonFinite`](crate::Error::NonFinite), with the first non-finite
    /// gradient, when the record is read: `error_if_nonfinite` of PyTorch. [`ClipRecord::skip`](crate::ClipRecord::skip) is
    /// true, too.
    ///
    /// Groups, and gradients that are clipped on their own, are checked separately. On a GPU, the finite ones have been clipped
    /// when the error is read. The CPU path checks before it writes, and changes none.
    Error,
}

impl NonFinite {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Propagate, "propagate"),
        (Self::Skip, "skip"),
        (Self::Zero, "zero"),
        (Self::Poison, "poison"),
        (Self::Error, "error"),
    ];
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Propagate => "propagate",
            Self::Skip => "skip",
            Self::Zero => "zero",
            Self::Poison => "poison",
            Self::Error => "error",
        })
    }
}

impl FromStr for NonFinite {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let policy = Self::ALL.into_iter().find(|(_, name)| text.eq_ignore_ascii_case(name));
        policy.map(|(policy, _)| policy).ok_or_else(|| {
            Error::parse("policy for non-finite gradients", text, "propagate, skip, zero, poison or error")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn text_forms_round_trip() {
        use NormType::{Inf, L1, L2, P};
        for norm_type in [L1, L2, Inf, P(0.0), P(2.5), P(-1.0), P(f32::NEG_INFINITY)] {
            assert_eq!(norm_type.to_string().parse(), Ok(norm_type));
        }
        for epsilon in [Epsilon::PyTorch, Epsilon::None, Epsilon::Value(1e-8)] {
            assert_eq!(epsilon.to_string().parse(), Ok(epsilon));
        }
        for (policy, name) in NonFinite::ALL {
            assert_eq!((policy.to_string().as_str(), name.parse()), (name, Ok(policy)));
        }
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
    }

    #[test]
    fn text_forms_are_lenient_in_case_and_strict_otherwise() {
        assert_eq!(
            ["1", "2", "Inf", "L2"].map(str::parse),
            [NormType::L1, NormType::L2, NormType::Inf, NormType::L2].map(Ok)
        );
        assert_eq!("BF16".parse(), Ok(DType::BF16));
        assert_eq!("Skip".parse(), Ok(NonFinite::Skip));
        for text in ["", "nan", "l3", "two"] {
            assert!(matches!(text.parse::<NormType>(), Err(Error::Parse { .. })), "{text:?}");
        }
        assert!("-1".parse::<Epsilon>().is_err() && "f64".parse::<DType>().is_err());
        assert_eq!(
            "sk\u{1b}ip".parse::<NonFinite>().unwrap_err().to_string(),
            "\"sk\\u{1b}ip\" is no policy for non-finite gradients; allowed: propagate, skip, zero, poison or error"
        );
    }
}
