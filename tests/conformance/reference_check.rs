//! The check against `gradclip::reference`, within the precision of a path.

use std::borrow::Cow;

use gradclip::{ClipRecord, DType, Epsilon, NonFinite, NormType, reference};

use crate::case::{Expect, Method, Options, Peer};
use crate::common::numbers::rounded;
use crate::common::role::Role;

/// The precision of a path.
pub(crate) struct Precision {
    /// The relative error of a norm, by its type and the number of elements.
    norm: fn(NormType, usize) -> f64,
    /// The relative error of the coefficient for a given norm.
    coefficient: f64,
    /// Whether multiplications may flush subnormal numbers to zero.
    flushes: bool,
}

/// One clip and its outcome.
pub(crate) struct Step<'a> {
    pub(crate) before: &'a [Vec<f32>],
    pub(crate) roles: &'a [Role],
    pub(crate) options: &'a Options,
    pub(crate) records: &'a [ClipRecord],
    pub(crate) after: &'a [Vec<f32>],
}

/// The elements that a record covers, with the indices of their gradients.
struct Segment<'a> {
    members: Vec<(usize, Cow<'a, [f32]>)>,
    limit: f64,
    /// Whether the limit is exact: a limit that the path derives from a measured norm is not.
    limit_is_exact: bool,
}

/// Half a unit in the last place.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// The distance between two subnormals.
const STEP: f64 = f32::from_bits(1) as f64;

/// Norms are summed in f64 and rounded once. Coefficients have the bits of PyTorch.
pub(crate) const CPU: Precision =
    Precision { norm: |_, _| ROUNDING * (1.0 + 1e-6), coefficient: 0.0, flushes: false };

/// A sum rounds each element at most about 75 times, for any number of elements: 17 times in the chain of an
/// invocation, 12 times in the tree of a workgroup, and the rest in the sums of partials. The root of the L2 norm
/// halves the relative error. Vulkan allows an error of 3 units in the last place for a root and 2.5 for a division.
/// The error of a power follows from its exponential and its logarithm. A largest or smallest magnitude is rounded at
/// most once, by a loss scale.
pub(crate) const GPU: Precision = Precision {
    norm: |norm_type, elements| match norm_type {
        NormType::L1 | NormType::P(1.0) => ROUNDING * (elements.min(75) as f64 + 6.0),
        NormType::L2 | NormType::P(2.0) => ROUNDING * (elements.min(75) as f64 / 2.0 + 6.0),
        NormType::P(p) if p.is_finite() => 3e-6,
        _ => ROUNDING * (1.0 + 1e-6),
    },
    coefficient: ROUNDING * 8.0,
    flushes: true,
};

/// The error of PyTorch for a thousand elements. It sums in f32, along chains that grow with the tensor.
const PYTORCH: f64 = 1e-6;

/// Returns the elements of a row or column. An empty gradient has empty ones.
fn unit_of<'a>(role: &Role, unit: usize, elements: &'a [f32]) -> Cow<'a, [f32]> {
    if role.columns == 1 {
        let len = elements.len() / role.rows;
        Cow::from(&elements[unit * len..(unit + 1) * len])
    } else {
        elements.iter().skip(unit).step_by(role.columns).copied().collect()
    }
}

impl Step<'_> {
    fn inverse_scale(&self) -> f32 {
        self.options.loss_scale.unwrap_or(1.0).recip()
    }

    /// Returns the inverse loss scale that applies to norms: 1 for p = 0, whose norm is a count.
    fn inverse_norm_scale(&self) -> f32 {
        if self.options.norm_type == NormType::P(0.0) { 1.0 } else { self.inverse_scale() }
    }

    /// Returns whether each gradient, or each of its rows, is clipped alone.
    fn is_each(&self) -> bool {
        matches!(self.options.methods[0], Method::Tensor(_) | Method::Rms(_) | Method::Agc(..))
    }

    fn is_by_value(&self) -> bool {
        matches!(self.options.methods[0], Method::Value(_) | Method::Range(..))
    }

    /// Returns the elements of each record, in the order of the records. A group without gradients has a record too.
    fn segments(&self) -> Vec<Segment<'_>> {
        if self.is_by_value() {
            return Vec::new();
        }
        if !self.is_each() {
            let group = |(group, method): (usize, &Method)| {
                let Method::Norm(max_norm) = *method else { panic!("{method:?} in a group") };
                let members = self.members(group).into_iter();
                let members = members.map(|index| (index, Cow::from(&self.before[index]))).collect();
                Segment { members, limit: max_norm.into(), limit_is_exact: true }
            };
            return self.options.methods.iter().enumerate().map(group).collect();
        }
        let gradients = (0..self.before.len())
            .flat_map(|index| (0..self.roles[index].units()).map(move |unit| self.unit(index, unit)));
        gradients.collect()
    }

    /// Returns the segment of a row or column.
    fn unit(&self, gradient: usize, unit: usize) -> Segment<'_> {
        let role = &self.roles[gradient];
        let elements = unit_of(role, unit, &self.before[gradient]);
        if !role.measured {
            return Segment { members: Vec::new(), limit: f64::INFINITY, limit_is_exact: true };
        }
        #[expect(clippy::cast_possible_truncation, reason = "a limit beyond f32 is infinite")]
        let limit = match self.options.methods[role.group] {
            Method::Tensor(max_norm) => max_norm.into(),
            Method::Rms(threshold) => {
                f64::from((f64::from(threshold) * (elements.len().max(1) as f64).sqrt()) as f32)
            }
            Method::Agc(f32::INFINITY, _) => f64::INFINITY,
            Method::Agc(clipping, floor) => {
                let parameter = role.parameter.expect("a parameter");
                let parameter = unit_of(role, unit, parameter);
                let norm = in_f32_precision(reference::norm(&[&parameter], self.options.norm_type));
                let floor = f64::from(floor);
                in_f32_precision(f64::from(clipping) * if norm < floor { floor } else { norm })
            }
            method => panic!("{method:?} has no rows"),
        };
        let limit_is_exact = !matches!(self.options.methods[role.group], Method::Agc(..));
        Segment { members: vec![(gradient, elements)], limit, limit_is_exact }
    }

    /// Returns the gradients of a group that its norm includes.
    fn members(&self, group: usize) -> Vec<usize> {
        let is_member = |index: &usize| self.roles[*index].group == group && self.roles[*index].measured;
        (0..self.before.len()).filter(is_member).collect()
    }

    fn epsilon(&self) -> f32 {
        match (self.options.epsilon, &self.options.methods[0]) {
            (Some(Epsilon::None), _) | (None, Method::Rms(_) | Method::Agc(..)) => 0.0,
            (Some(Epsilon::Value(value)), _) => value,
            _ => 1e-6,
        }
    }

    /// Returns the bounds of a clip by value, rounded to the type of a gradient. Finite bounds stay finite.
    fn bounds(&self, role: &Role) -> Option<[f32; 2]> {
        let [low, high] = match self.options.methods[role.group] {
            Method::Value(bound) => [-bound, bound],
            Method::Range(low, high) => [low, high],
            _ => return None,
        };
        let most = match role.dtype {
            DType::F16 => 65504.0,
            _ => rounded(role.dtype, f32::from_bits(0x7f7f_0000)),
        };
        let nearest = |bound: f32| {
            let nearest = rounded(role.dtype, bound);
            if nearest == bound || bound.is_infinite() { nearest } else { nearest.clamp(-most, most) }
        };
        Some([nearest(low), nearest(high)])
    }
}

impl Precision {
    /// Checks the records and the elements of a clip.
    pub(crate) fn check(&self, step: &Step<'_>) {
        let segments = step.segments();
        assert_eq!(step.records.len(), segments.len(), "records");
        for (record, segment) in step.records.iter().zip(&segments) {
            self.check_record(step, record, segment);
        }
        let mut own_records = step.records.iter();
        for (index, role) in step.roles.iter().enumerate() {
            let units = if step.is_each() { role.units() } else { 1 };
            let all = (&step.before[index][..], &step.after[index][..]);
            if step.is_by_value() {
                let bounds = step.bounds(role).filter(|_| role.scaled);
                let inverse = step.inverse_scale();
                check_elements(index, all, |g| {
                    let Some([low, high]) = bounds else { return exactly(g) };
                    let unscaled = if inverse == 1.0 { exactly(g) } else { self.products(g, inverse.into()) };
                    unscaled.map(|g| reference::clamp(rounded(role.dtype, g), low, high))
                });
            } else if step.is_each() {
                for (unit, record) in own_records.by_ref().take(units).enumerate() {
                    let [before, after] = [all.0, all.1].map(|elements| unit_of(role, unit, elements));
                    self.check_scaled(step, index, (&before, &after), record);
                }
            } else {
                self.check_scaled(step, index, all, &step.records[role.group]);
            }
        }
    }

    /// Checks the elements of a gradient or row against its record.
    fn check_scaled(
        &self,
        step: &Step<'_>,
        gradient: usize,
        elements: (&[f32], &[f32]),
        record: &ClipRecord,
    ) {
        let role = &step.roles[gradient];
        if step.options.coefficient_only || !role.scaled || record.skip() {
            check_elements(gradient, elements, exactly);
        } else if record.zeroed() {
            check_elements(gradient, elements, |_| exactly(0.0));
        } else {
            let scaled = |g| self.scaled(g, record).map(|product| rounded(role.dtype, product));
            check_elements(gradient, elements, scaled);
        }
    }

    /// Checks the record of a segment.
    fn check_record(&self, step: &Step<'_>, record: &ClipRecord, segment: &Segment<'_>) {
        let gradients: Vec<&[f32]> = segment.members.iter().map(|(_, elements)| &elements[..]).collect();
        let elements = gradients.iter().map(|gradient| gradient.len()).sum();
        let inverse = step.inverse_scale();

        let tolerance = (self.norm)(step.options.norm_type, elements)
            + if inverse == 1.0 || self.coefficient == 0.0 { 0.0 } else { 2.0 * ROUNDING };
        let exact =
            reference::norm(&gradients, step.options.norm_type) * f64::from(step.inverse_norm_scale());
        let norm = record.total_norm;
        assert!(is_near(norm, exact, tolerance), "the norm is {norm:e}, but should be {exact:e}");
        let unbounded = f64::from(record.norm_significand) * f64::from(record.norm_exponent).exp2();
        let is_empty = record.norm_exponent == ClipRecord::EMPTY_EXPONENT;
        assert_eq!(is_empty, elements == 0, "the mark of an empty segment");
        let is_exact = (unbounded - exact).abs() <= (tolerance + ROUNDING) * exact.abs();
        assert!(
            is_exact || unbounded.to_bits() == exact.to_bits() || (unbounded.is_nan() && exact.is_nan()),
            "the norm of significand and exponent is {unbounded:e}, but should be {exact:e}"
        );

        let (largest, expected) = (record.max_magnitude, reference::max_magnitude(&gradients) * inverse);
        let tolerance = if inverse == 1.0 { 0.0 } else { self.coefficient };
        assert!(
            self.is_product(largest, expected.into(), tolerance),
            "the largest magnitude is {largest:e}, but should be {expected:e}"
        );

        let (coef, expected) = (record.clip_coef, coefficient(unbounded, segment.limit, step.epsilon()));
        let tolerance = if segment.limit_is_exact {
            self.coefficient
        } else {
            self.coefficient + (self.norm)(step.options.norm_type, elements) + 2.0 * ROUNDING
        };
        assert!(
            self.is_product(coef, expected, tolerance) && (coef <= 1.0 || coef.is_nan()),
            "the coefficient is {coef:e}, but should be {expected:e}"
        );
        assert_eq!(record.clipped(), coef != 1.0, "the flag `clipped`, with the coefficient {coef:e}");

        let is_bad = |(_, elements): &&(usize, Cow<'_, [f32]>)| elements.iter().any(|g| !g.is_finite());
        let first = segment.members.iter().find(is_bad).map(|(gradient, _)| *gradient);
        assert_eq!(record.first_non_finite(), first, "the first non-finite gradient");
        // A norm beyond f32 counts as finite.
        let non_finite = expected.is_nan() || first.is_some();
        assert_eq!(record.non_finite(), non_finite, "the flag `non_finite`, with the norm {norm:e}");
        let policy = if non_finite { step.options.non_finite } else { NonFinite::Propagate };
        let is_above = step.options.skip_above.is_some_and(|limit| !non_finite && unbounded > limit.into());
        let is_skipped = is_above || matches!(policy, NonFinite::Skip | NonFinite::Error);
        assert_eq!(record.skip(), is_skipped, "skip");
        assert_eq!(record.zeroed(), policy == NonFinite::Zero, "zeroed");
        // The factor has the bits of the product, unless the coefficient is outside the range of f32.
        let (coef, tolerance) = if coef.is_normal() || coef.is_nan() || expected == 0.0 {
            (coef.into(), 0.0)
        } else {
            (in_f32_precision(expected), tolerance + ROUNDING)
        };
        let expected = match policy {
            _ if is_above => 1.0,
            NonFinite::Propagate => in_f32_precision(coef * f64::from(inverse)),
            NonFinite::Skip | NonFinite::Error => 1.0,
            NonFinite::Zero => 0.0,
            NonFinite::Poison => f64::NAN,
        };
        let factor = factor_of(record);
        assert!(
            (factor - expected).abs() <= tolerance * expected.abs() || factor.is_nan() && expected.is_nan(),
            "the factor is {factor:e}, but should be {expected:e}"
        );
        assert!(
            self.is_product(record.factor, factor, 0.0),
            "the factor is {factor:e} by significand and exponent, but {:e} in f32",
            record.factor
        );
    }

    /// Returns the allowed products of an element and the factor of a record.
    fn scaled(&self, g: f32, record: &ClipRecord) -> [f32; 3] {
        if record.factor == 1.0 { exactly(g) } else { self.products(g, factor_of(record)) }
    }

    /// Returns the allowed products of an element and a factor.
    #[expect(clippy::cast_possible_truncation, reason = "rounding is intended")]
    fn products(&self, g: f32, factor: f64) -> [f32; 3] {
        let exact = f64::from(g) * factor;
        // Rounded once; or first to the precision of f32, and then to a subnormal.
        let (once, twice) = (exact as f32, in_f32_precision(exact) as f32);
        let may_vanish = self.flushes && [g, once].iter().any(|x| x.is_subnormal());
        [
            once,
            if self.flushes { twice } else { once },
            if may_vanish { 0.0_f32.copysign(once) } else { once },
        ]
    }

    /// Compares the outcome with the outcome of a peer.
    pub(crate) fn compare(&self, step: &Step<'_>, expect: &Expect) {
        let elements = step.before.iter().map(Vec::len).sum();
        // Zero if the path has the coefficients of PyTorch.
        let own = if self.coefficient == 0.0 {
            0.0
        } else {
            (self.norm)(step.options.norm_type, elements) + self.coefficient + ROUNDING
        };
        let (peer, tolerance, agreed) = match expect {
            Expect::Definition | Expect::Error(_) => return,
            Expect::Torch(peer) => (peer, own, true),
            Expect::Rounded(peer) => (peer, own + PYTORCH, true),
            Expect::Better(peer) => (peer, 1e-3, false),
        };
        assert_eq!(
            self.agrees(peer, step, tolerance),
            agreed,
            "agreement with {peer:?} of {:?} and {:?}",
            step.records,
            step.after
        );
    }

    fn agrees(&self, peer: &Peer, step: &Step<'_>, tolerance: f64) -> bool {
        let norms = step.records.first().map(|record| record.total_norm).into_iter().zip(peer.total_norm);
        let elements = step.after.iter().flatten().copied().zip(peer.clipped.iter().flatten().copied());
        norms.chain(elements).all(|(ours, theirs)| self.is_product(ours, theirs.into(), tolerance))
    }

    /// Returns whether `x` is `exact`, rounded or flushed to zero.
    fn is_product(&self, x: f32, exact: f64, tolerance: f64) -> bool {
        let is_flushed = x == 0.0 && x.is_sign_negative() == exact.is_sign_negative();
        let is_beside = exact != 0.0 && (f64::from(x) - exact).abs() <= STEP;
        let is_tiny = exact.abs() < f32::MIN_POSITIVE.into();
        is_near(x, exact, tolerance) || (self.flushes && is_tiny && (is_flushed || is_beside))
    }
}

/// Checks that every element of a gradient is one of the allowed numbers.
fn check_elements(index: usize, (before, after): (&[f32], &[f32]), expected: impl Fn(f32) -> [f32; 3]) {
    for (element, (&before, &after)) in before.iter().zip(after).enumerate() {
        let allowed = expected(before);
        assert!(
            allowed.into_iter().any(|allowed| is_same(after, allowed)),
            "element {element} of gradient {index} was {before:e} and became {after:e}; allowed: {allowed:?}"
        );
    }
}

/// Returns the coefficient in PyTorch's order of operations. Each operation rounds to the precision of f32, but not to
/// its range, and the last product is not rounded. If the divisor is zero or subnormal, the coefficient is 1.
fn coefficient(norm: f64, max_norm: f64, epsilon: f32) -> f64 {
    let sum = in_f32_precision(norm + f64::from(epsilon));
    let coef = in_f32_precision(sum.recip()) * max_norm;
    let is_nothing = sum < f64::from(f32::MIN_POSITIVE) && !max_norm.is_nan();
    if coef > 1.0 || is_nothing { 1.0 } else { coef }
}

/// Returns the factor of the elements. All factors below 2^-1000 have the same effect.
fn factor_of(record: &ClipRecord) -> f64 {
    f64::from(record.factor_significand) * f64::from(record.factor_exponent.max(-1000)).exp2()
}

/// Rounds to 24 bits.
fn in_f32_precision(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let unit = x.abs().log2().floor().exp2();
    #[expect(clippy::cast_possible_truncation, reason = "rounding is intended")]
    let significand = (x / unit) as f32;
    f64::from(significand) * unit
}

fn exactly(g: f32) -> [f32; 3] {
    [g, g, g]
}

/// Returns whether the bits are the same, or both numbers are NaN.
fn is_same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Returns whether `x` is `exact`, rounded. The signs of zeros must agree, and infinities have no tolerance.
#[expect(clippy::cast_possible_truncation, reason = "numbers beyond f32 become infinite")]
fn is_near(x: f32, exact: f64, tolerance: f64) -> bool {
    let rounded = exact as f32;
    if tolerance == 0.0 || rounded == 0.0 || !rounded.is_finite() {
        return is_same(x, rounded);
    }
    (f64::from(x) - exact).abs() <= tolerance * exact.abs() + STEP / 2.0
}
