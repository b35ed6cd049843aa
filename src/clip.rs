//! What to do: the options of a clip, as plain data. Nothing here knows a GPU; the CPU and the GPU path
//! both read these values and mean the same by them.

use crate::Error;

/// The constant that the coefficient's denominator gets added, as in `torch.nn.utils.clip_grad_norm_`.
pub(crate) const EPSILON: f32 = 1e-6;

/// How gradients are to be clipped.
///
/// ```
/// use gradclip::Clip;
///
/// let joint = Clip::by_global_norm(1.0);
/// let elementwise = Clip::by_value(0.5);
/// # let _ = (joint, elementwise);
/// ```
///
/// The values are checked where they are used: by [`Clipper::prepare`](crate::Clipper::prepare) and by the
/// functions of [`cpu`](crate::cpu).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    method: Method,
    coefficient_only: bool,
}

/// What the caller asked for, in the caller's words, so that an error can repeat them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    GlobalNorm { max_norm: f32 },
    Value { clip_value: f32 },
    ValueRange { low: f32, high: f32 },
}

/// A [`Clip`] whose values have been checked: what the two paths carry out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operation {
    /// `max_norm` is not negative and not NaN.
    GlobalNorm { max_norm: f32, coefficient_only: bool },
    /// Neither bound is NaN, and `low <= high`.
    Clamp { low: f32, high: f32 },
}

impl Clip {
    /// Scale all gradients by one factor, so that their joint L2 norm is at most `max_norm`.
    ///
    /// ```text
    /// total_norm = sqrt(Σ g²)                              over every element of every gradient
    /// clip_coef  = min(max_norm · (1 / (total_norm + 1e-6)), 1)
    /// g          = g · clip_coef
    /// ```
    ///
    /// This is `torch.nn.utils.clip_grad_norm_` with its epsilon and its order of operations, and the clipping of
    /// Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013,
    /// arXiv:1211.5063, algorithm 1). Where the coefficient is 1 no gradient is written.
    ///
    /// `max_norm` of 0 zeroes the gradients; infinity leaves finite gradients as they are. A negative or NaN
    /// `max_norm` is an [`Error::MaxNorm`] when the clip is used.
    ///
    /// Gradients that are not finite propagate, as in PyTorch: with an infinity among them the norm is infinite
    /// and the coefficient 0, so that finite elements become zeros and infinite ones NaN; with a NaN among them
    /// everything becomes NaN. The record says so: [`ClipRecord::non_finite`](crate::ClipRecord::non_finite).
    #[must_use]
    pub const fn by_global_norm(max_norm: f32) -> Self {
        Self { method: Method::GlobalNorm { max_norm }, coefficient_only: false }
    }

    /// Clamp every element to `[-clip_value, clip_value]`, as `torch.nn.utils.clip_grad_value_`.
    ///
    /// NaN stays NaN, -0.0 stays -0.0, an infinity goes to its bound. A negative or NaN `clip_value` is an
    /// [`Error::ClipValue`] when the clip is used.
    #[must_use]
    pub const fn by_value(clip_value: f32) -> Self {
        Self { method: Method::Value { clip_value }, coefficient_only: false }
    }

    /// Clamp every element to `[low, high]`; otherwise as [`Clip::by_value`].
    ///
    /// A NaN bound, or `low` above `high`, is an [`Error::ClipRange`] when the clip is used.
    #[must_use]
    pub const fn by_value_range(low: f32, high: f32) -> Self {
        Self { method: Method::ValueRange { low, high }, coefficient_only: false }
    }

    /// Measure the norm and compute the coefficient, but leave the gradients as they are: the optimizer
    /// multiplies by [`ClipRecord::clip_coef`](crate::ClipRecord::clip_coef) where it reads a gradient anyway, which
    /// saves a read and a write of them all.
    ///
    /// Only a clip by global norm has a coefficient; for the others it is an [`Error::CoefficientOnly`] when the
    /// clip is used.
    #[must_use]
    pub const fn coefficient_only(self) -> Self {
        Self { method: self.method, coefficient_only: true }
    }

    /// Checks the values, and says what is to be done.
    pub(crate) fn checked(self) -> Result<Operation, Error> {
        let Self { method, coefficient_only } = self;
        match method {
            Method::GlobalNorm { max_norm } if max_norm.is_nan() || max_norm < 0.0 => {
                Err(Error::MaxNorm { given: max_norm })
            }
            Method::GlobalNorm { max_norm } => Ok(Operation::GlobalNorm { max_norm, coefficient_only }),
            _ if coefficient_only => Err(Error::CoefficientOnly),
            Method::Value { clip_value } if clip_value.is_nan() || clip_value < 0.0 => {
                Err(Error::ClipValue { given: clip_value })
            }
            Method::Value { clip_value } => Ok(Operation::Clamp { low: -clip_value, high: clip_value }),
            Method::ValueRange { low, high } if low.is_nan() || high.is_nan() || low > high => {
                Err(Error::ClipRange { low, high })
            }
            Method::ValueRange { low, high } => Ok(Operation::Clamp { low, high }),
        }
    }
}

/// The factor that brings a norm to at most `max_norm`, in the order of operations of PyTorch: add epsilon, take
/// the reciprocal, multiply, clamp to 1. (Dividing instead differs by one unit in the last place in a quarter of
/// the cases.) NaN stays NaN.
pub(crate) fn clip_coef(total_norm: f32, max_norm: f32) -> f32 {
    let coef = (total_norm + EPSILON).recip() * max_norm;
    // Not `min`, which would turn NaN into 1.
    if coef > 1.0 { 1.0 } else { coef }
}
