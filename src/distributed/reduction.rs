//! The arithmetic between shares and joint measurements: which numbers are summed, and of which the maximum is taken.
//!
//! All numbers are finite, because libraries treat NaN differently. Non-finite measurements are counted instead.

use std::ops::Range;

use super::share::{Measured, MeasuredTensor, Unit};
use crate::NormType;
use crate::record::NormMeasurement;
use crate::stats::TensorStats;

/// The largest number of processes: a rank and the index of a gradient share the 53 bits of an f64.
pub(super) const MAX_SIZE: usize = 1 << 21;

/// How norms are combined. `p`-th powers of norms are added if they cannot leave the range of f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rule {
    /// `(Σ norm^p)^(1/p)`
    Powers { p: f64 },
    /// `r · (Σ (norm/r)^p)^(1/p)`, where `r` is the largest norm; the smallest if p is negative.
    Ratios { p: f64 },
    /// The largest norm: p = ∞.
    Largest,
    /// The smallest norm: p = -∞.
    Smallest,
}

/// The largest `p` for which a power of any norm of f32 elements stays in the range of f64.
const LARGEST_POWER: f32 = 6.0;

impl Rule {
    /// Returns the rule. The norm type is not the 0-norm.
    pub(super) fn new(norm_type: NormType) -> Self {
        match norm_type.p() {
            f32::INFINITY => Self::Largest,
            f32::NEG_INFINITY => Self::Smallest,
            p if (1.0..=LARGEST_POWER).contains(&p) => Self::Powers { p: p.into() },
            p => Self::Ratios { p: p.into() },
        }
    }

    /// Returns whether `r` must be known before the norms are combined.
    pub(super) const fn needs_reference(self) -> bool {
        matches!(self, Self::Ratios { .. })
    }

    /// Returns the number whose maximum over all shares gives `r`, or [`NONE`] for a norm that is not finite.
    pub(super) fn reference(self, measured: &Measured) -> f64 {
        let takes_smallest = matches!(self, Self::Smallest | Self::Ratios { p: ..0.0 });
        match measured.norm {
            _ if measured.unit.elements == 0 => NONE,
            norm if !norm.is_finite() => NONE,
            norm if takes_smallest => -norm,
            norm => norm,
        }
    }

    /// Returns the term of a finite norm.
    fn term(self, norm: f64, reference: f64) -> f64 {
        match self {
            Self::Powers { p } => power(norm, p),
            // The norm 0 dominates a negative p, and adds nothing to a positive one.
            Self::Ratios { .. } if reference == 0.0 => 0.0,
            Self::Ratios { p } => power(norm / reference.abs(), p),
            Self::Largest | Self::Smallest => 0.0,
        }
    }

    /// Returns the joint norm of shares without a NaN. `reference` is the maximum of all [references](Self::reference).
    fn norm(self, sum: f64, has_infinite: bool, reference: f64) -> f64 {
        let grows = !matches!(self, Self::Smallest | Self::Ratios { p: ..0.0 });
        match self {
            _ if has_infinite && grows => f64::INFINITY,
            Self::Powers { p } => root(sum, p),
            // No norm is finite.
            _ if reference == NONE => f64::INFINITY,
            // The norm 0 decides for a negative p, whatever the sum of the other terms is.
            Self::Ratios { .. } if reference == 0.0 => 0.0,
            // Finite gradients have a finite norm: that of a small p may leave even f64.
            Self::Ratios { p } => (reference.abs() * root(sum, p)).min(f64::MAX),
            Self::Largest | Self::Smallest => reference.abs(),
        }
    }
}

/// The reference of a share without a finite norm: less than any other.
const NONE: f64 = f64::MIN;

fn power(norm: f64, p: f64) -> f64 {
    match p {
        1.0 => norm,
        2.0 => norm * norm,
        p => norm.powf(p),
    }
}

fn root(sum: f64, p: f64) -> f64 {
    match p {
        1.0 => sum,
        2.0 => sum.sqrt(),
        p => sum.powf(p.recip()),
    }
}

/// The numbers of one step that all processes combine. Each process has slices of the same lengths.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    pub(super) sums: Vec<f64>,
    pub(super) maxima: Vec<f64>,
}

// The sums of a record or a gradient.
const TERM: usize = 0;
const NANS: usize = 1;
const INFINITE_NORMS: usize = 2;
const INFINITE_MAGNITUDES: usize = 3;
const ELEMENTS: usize = 4;
const SUMS: usize = 5;
// A gradient has two more.
const NON_FINITE: usize = SUMS;
const ZEROS: usize = SUMS + 1;
const TENSOR_SUMS: usize = SUMS + 2;

// Its maxima.
const MAGNITUDE: usize = 0;
const REFERENCE: usize = 1;
const FIRST_NON_FINITE: usize = 2;
const UNIT: usize = 3;
const MAXIMA: usize = 4;

/// The ranges of the numbers of a record or a gradient.
#[derive(Clone, Debug)]
struct Place {
    sums: Range<usize>,
    maxima: Range<usize>,
}

/// The layout of [`Numbers`]: `header` maxima, then the records, then the gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Format {
    pub(super) header: usize,
    pub(super) records: usize,
    pub(super) tensors: usize,
    /// A digest of the groups of the records.
    pub(super) groups: u64,
}

impl Format {
    /// Returns the numbers of a process without gradients. The header is 0.
    pub(super) fn neutral(self) -> Numbers {
        let units = self.records + self.tensors;
        let mut numbers = Numbers {
            sums: vec![0.0; self.records * SUMS + self.tensors * TENSOR_SUMS],
            maxima: vec![0.0; self.header + units * MAXIMA],
        };
        for maxima in numbers.maxima[self.header..].chunks_exact_mut(MAXIMA) {
            maxima[REFERENCE] = NONE;
        }
        numbers
    }

    fn record(self, index: usize) -> Place {
        let maxima = self.header + index * MAXIMA;
        Place { sums: index * SUMS..(index + 1) * SUMS, maxima: maxima..maxima + MAXIMA }
    }

    fn tensor(self, index: usize) -> Place {
        let sums = self.records * SUMS + index * TENSOR_SUMS;
        let maxima = self.header + (self.records + index) * MAXIMA;
        Place { sums: sums..sums + TENSOR_SUMS, maxima: maxima..maxima + MAXIMA }
    }

    /// Returns the references of all records and gradients, for a rule that needs them first.
    pub(super) fn references(self, numbers: &Numbers) -> Vec<f64> {
        let units = numbers.maxima[self.header..].chunks_exact(MAXIMA);
        units.map(|maxima| maxima[REFERENCE]).collect()
    }
}

impl Numbers {
    /// Raises the references to those of one share.
    pub(super) fn add_references(
        &mut self,
        format: Format,
        rule: Rule,
        records: &[Measured],
        tensors: &[(usize, MeasuredTensor)],
    ) {
        let raise = |place: Place, measured: &Measured, maxima: &mut [f64]| {
            let reference = &mut maxima[place.maxima.start + REFERENCE];
            *reference = reference.max(rule.reference(measured));
        };
        for (index, measured) in records.iter().enumerate() {
            raise(format.record(index), measured, &mut self.maxima);
        }
        for &(index, ref tensor) in tensors {
            raise(format.tensor(index), &tensor.measured, &mut self.maxima);
        }
    }

    /// Adds one share. `references` are those of all shares; unused unless the rule [needs](Rule::needs_reference) them.
    pub(super) fn add(
        &mut self,
        format: Format,
        rule: Rule,
        references: &[f64],
        rank: usize,
        records: &[Measured],
        tensors: &[(usize, MeasuredTensor)],
    ) {
        let reference = |index: usize| references.get(index).copied().unwrap_or(NONE);
        for (index, measured) in records.iter().enumerate() {
            self.add_measured(format.record(index), rule, reference(index), rank, measured);
        }
        for &(index, ref tensor) in tensors {
            let place = format.tensor(index);
            let counts = &mut self.sums[place.sums.clone()];
            counts[NON_FINITE] += f64::from(tensor.non_finite);
            counts[ZEROS] += f64::from(tensor.zeros);
            self.add_measured(place, rule, reference(format.records + index), rank, &tensor.measured);
        }
    }

    fn add_measured(&mut self, place: Place, rule: Rule, reference: f64, rank: usize, measured: &Measured) {
        let Measured { norm, max_magnitude, first_non_finite, unit } = *measured;
        let sums = &mut self.sums[place.sums];
        let maxima = &mut self.maxima[place.maxima];
        let mut raise = |at: usize, value: f64| maxima[at] = maxima[at].max(value);
        raise(UNIT, f64::from(unit.group) * 2.0 + f64::from(u8::from(unit.measured)));
        if unit.elements == 0 {
            return;
        }
        sums[ELEMENTS] += unit.elements as f64;
        if norm.is_nan() || max_magnitude.is_nan() {
            sums[NANS] += 1.0;
        } else if norm.is_infinite() {
            sums[INFINITE_NORMS] += 1.0;
        } else {
            sums[TERM] += rule.term(norm, reference);
        }
        if max_magnitude.is_infinite() {
            sums[INFINITE_MAGNITUDES] += 1.0;
        } else if !max_magnitude.is_nan() {
            raise(MAGNITUDE, max_magnitude.into());
        }
        raise(REFERENCE, rule.reference(measured));
        if let Some(gradient) = first_non_finite {
            raise(FIRST_NON_FINITE, key_of(rank, gradient));
        }
    }

    /// Returns what all processes together measured for a record.
    pub(super) fn record(
        &self,
        format: Format,
        rule: Rule,
        references: &[f64],
        index: usize,
    ) -> JointMeasurement {
        self.joint(format.record(index), rule, references.get(index).copied())
    }

    /// Returns the statistics of a gradient, with its loss scale.
    pub(super) fn tensor(&self, format: Format, rule: Rule, references: &[f64], index: usize) -> JointStats {
        let place = format.tensor(index);
        let [non_finite, zeros] = [NON_FINITE, ZEROS].map(|at| self.sums[place.sums.start + at]);
        let joint = self.joint(place, rule, references.get(format.records + index).copied());
        JointStats {
            norm: joint.measured.norm,
            max_magnitude: joint.measured.max_magnitude,
            non_finite,
            zeros,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the numbers were integers or f32 when they were added"
    )]
    fn joint(&self, place: Place, rule: Rule, reference: Option<f64>) -> JointMeasurement {
        let sums = &self.sums[place.sums];
        let maxima = &self.maxima[place.maxima];
        let elements = sums[ELEMENTS] as u64;
        let reference = reference.unwrap_or(maxima[REFERENCE]);
        let norm = match elements {
            0 => 0.0,
            _ if sums[NANS] > 0.0 => f64::NAN,
            _ => rule.norm(sums[TERM], sums[INFINITE_NORMS] > 0.0, reference),
        };
        let max_magnitude = match maxima[MAGNITUDE] {
            _ if sums[NANS] > 0.0 => f32::NAN,
            _ if sums[INFINITE_MAGNITUDES] > 0.0 => f32::INFINITY,
            magnitude => magnitude as f32,
        };
        let first = first_of_key(maxima[FIRST_NON_FINITE]);
        let unit = maxima[UNIT] as u64;
        JointMeasurement {
            measured: NormMeasurement {
                norm,
                max_magnitude,
                first_non_finite: first.map(|(_, gradient)| gradient),
                empty: elements == 0,
            },
            rank: first.map(|(rank, _)| rank),
            unit: Unit { elements, group: (unit / 2) as u32, measured: unit % 2 == 1 },
        }
    }
}

/// What all processes together measured for one record.
#[derive(Clone, Copy, Debug)]
pub(super) struct JointMeasurement {
    pub(super) measured: NormMeasurement,
    /// The rank whose gradient is the first that is not finite.
    pub(super) rank: Option<usize>,
    pub(super) unit: Unit,
}

/// The statistics of one gradient over all processes, with its loss scale.
#[derive(Clone, Copy, Debug)]
pub(super) struct JointStats {
    norm: f64,
    max_magnitude: f32,
    non_finite: f64,
    zeros: f64,
}

impl JointStats {
    /// Removes the loss scale. The norm has a factor of its own; see [`inverse_norm_scale`](crate::operation::ByNorm::inverse_norm_scale).
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a norm beyond f32 is infinite; the counts saturate"
    )]
    pub(super) fn unscaled(self, inverse_norm_scale: f32, inverse_scale: f32) -> TensorStats {
        TensorStats {
            norm: (self.norm * f64::from(inverse_norm_scale)) as f32,
            max_magnitude: self.max_magnitude * inverse_scale,
            non_finite: self.non_finite as u32,
            zeros: self.zeros as u32,
        }
    }
}

/// Returns a number that is larger the smaller the index of the gradient, and then the rank; greater than 0, and exact.
fn key_of(rank: usize, gradient: u32) -> f64 {
    (MAX_SIZE as f64) * (2.0_f64.powi(32) - f64::from(gradient)) - rank as f64
}

/// Returns the rank and the index of the gradient, or `None` for 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both are small integers")]
fn first_of_key(key: f64) -> Option<(usize, u32)> {
    if key == 0.0 {
        return None;
    }
    let gradients_after = (key / MAX_SIZE as f64).ceil();
    let rank = gradients_after * MAX_SIZE as f64 - key;
    Some((rank as usize, (2.0_f64.powi(32) - gradients_after) as u32))
}
