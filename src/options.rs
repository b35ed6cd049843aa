//! The words in which a [`Clip`](crate::Clip) is described: which norm, which constant, which policy.

use crate::Error;

/// Which norm of the gradients is measured and limited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum NormType {
    /// `Σ |g|`
    L1,
    /// `sqrt(Σ g²)`
    #[default]
    L2,
    /// `max |g|`
    Inf,
    /// `(Σ |g|^p)^(1/p)`, with the meaning that PyTorch gives to every p: 0 counts the gradients that hold an element
    /// which is not zero, negative infinity is `min |g|`, and a zero makes the norm of a negative p zero. 1, 2 and
    /// infinity are the variants above. An empty gradient adds nothing to any of them. NaN is an [`Error::NormType`].
    ///
    /// This one is measured to about 1e-5 on a GPU, whose `pow` allows no better, and to less where |p| is below 0.1.
    P(f32),
}

impl NormType {
    /// The variant of its own, where p has one.
    pub(crate) fn checked(self) -> Result<Self, Error> {
        match self {
            Self::P(p) if p.is_nan() => Err(Error::NormType { given: self }),
            Self::P(1.0) => Ok(Self::L1),
            Self::P(2.0) => Ok(Self::L2),
            Self::P(f32::INFINITY) => Ok(Self::Inf),
            other => Ok(other),
        }
    }

    /// The p of the formula.
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

/// What is added to a norm before the limit is divided by it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Epsilon {
    /// 1e-6, as in `torch.nn.utils.clip_grad_norm_`: a norm less than that below the limit is scaled a little too.
    #[default]
    PyTorch,
    /// Nothing. Gradients whose norm is 0 are left as they are.
    None,
    /// This. Negative, infinite or NaN is an [`Error::Epsilon`](crate::Error::Epsilon) when the clip is used.
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

/// What becomes of gradients if one of them holds an infinity or a NaN, or a norm that was supplied is one. It is decided
/// where the gradients are, without asking the host. A norm of finite gradients that exceeds `f32::MAX` is no such case: they
/// are scaled like any others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// As PyTorch does: they are multiplied by the coefficient as always. With an infinite norm that is 0, so that
    /// finite elements become zeros and infinite ones NaN; with a NaN everything becomes NaN.
    #[default]
    Propagate,
    /// They stay as they are, and the record says [`skip`](crate::ClipRecord::skip): leave this step out.
    Skip,
    /// They all become 0.
    Zero,
    /// They all become NaN.
    Poison,
    /// They stay as they are, and reading the outcome is an [`Error::NonFinite`](crate::Error::NonFinite) that names the
    /// first gradient which is not finite: `error_if_nonfinite` of PyTorch. The record says `skip`, too.
    ///
    /// Groups, and gradients that are clipped each by itself, are finite or not on their own: when the error is read, a
    /// GPU has clipped those that are. The CPU path knows before it writes, and leaves them all.
    Error,
}
