//! What is right: the definition in `gradclip::reference`, to within what a path promises.

use gradclip::{ClipRecord, reference};

use crate::cases::{Expect, Options, Peer};
use crate::common::{Outcome, slices};

/// How exact a path is.
pub(crate) struct Precision {
    /// The relative error of the norm of so many elements.
    norm: fn(usize) -> f64,
    /// The relative error of the coefficient of a given norm.
    coefficient: f64,
    /// Whether subnormal numbers may become zeros where they are multiplied.
    flushes: bool,
}

/// Half a unit in the last place.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// The norm is the exact one rounded once, but for the f64 in which it is summed; the coefficient is PyTorch's.
pub(crate) const CPU: Precision =
    Precision { norm: |_| ROUNDING * (1.0 + 1e-6), coefficient: 0.0, flushes: false };

/// No element is rounded in a sum more than some 75 times, however many there are (17 in the chain of an invocation,
/// 12 up the tree of a workgroup, the rest where partials are joined), of which the root halves the effect. Vulkan
/// allows 3 units in the last place for a root, 2.5 for a division, and correct rounding otherwise.
pub(crate) const GPU: Precision = Precision {
    norm: |elements| ROUNDING * (elements.min(75) as f64 / 2.0 + 6.0),
    coefficient: ROUNDING * 8.0,
    flushes: true,
};

/// PyTorch sums in f32, along chains that grow with the tensor: this is its error for a thousand elements.
const PYTORCH: f64 = 1e-6;

impl Precision {
    /// Whether one clip of `before` did what it means.
    pub(crate) fn check(&self, before: &[Vec<f32>], options: Options, outcome: &Outcome) {
        match (options, outcome.record) {
            (Options::Norm(max_norm), Some(record)) => {
                self.check_record(before, max_norm, record);
                check_elements(before, outcome, |g| self.scaled(g, record.clip_coef));
            }
            (Options::CoefficientOnly(max_norm), Some(record)) => {
                self.check_record(before, max_norm, record);
                check_elements(before, outcome, exactly);
            }
            (Options::Value(bound), None) => {
                check_elements(before, outcome, |g| exactly(reference::clamp(g, -bound, bound)));
            }
            (Options::Range(low, high), None) => {
                check_elements(before, outcome, |g| exactly(reference::clamp(g, low, high)));
            }
            (_, record) => panic!("{record:?} does not belong to a clip by {options:?}"),
        }
    }

    fn check_record(&self, before: &[Vec<f32>], max_norm: f32, record: ClipRecord) {
        let gradients = slices(before);
        let elements = gradients.iter().map(|gradient| gradient.len()).sum();
        let (norm, expected) = (record.total_norm, reference::total_norm(&gradients));
        assert!(
            is_near(norm, expected, (self.norm)(elements)),
            "the norm is {norm:e}, but expected was {expected:e}"
        );
        let (largest, expected) = (record.max_magnitude, reference::max_magnitude(&gradients));
        assert!(
            is_same(largest, expected),
            "the largest magnitude is {largest:e}, but expected was {expected:e}"
        );
        let (coef, expected) = (record.clip_coef, coefficient(norm, max_norm));
        assert!(
            self.is_product(coef, expected.into(), self.coefficient) && (coef <= 1.0 || coef.is_nan()),
            "the coefficient is {coef:e}, but expected was {expected:e}"
        );
        assert_eq!(record.clipped(), coef != 1.0, "clipped, with the coefficient {coef:e}");
        assert_eq!(record.non_finite(), !norm.is_finite(), "non-finite, with the norm {norm:e}");
    }

    /// What may become of an element.
    fn scaled(&self, g: f32, coef: f32) -> [f32; 2] {
        if coef == 1.0 {
            return exactly(g);
        }
        let product = g * coef;
        let may_vanish = self.flushes && [g, coef, product].iter().any(|x| x.is_subnormal());
        [product, if may_vanish { 0.0_f32.copysign(product) } else { product }]
    }

    /// How the outcome stands to what PyTorch does.
    pub(crate) fn compare(&self, before: &[Vec<f32>], expect: &Expect, outcome: &Outcome) {
        let elements = before.iter().map(Vec::len).sum();
        // To the bit where the path promises PyTorch's coefficient to the bit.
        let own =
            if self.coefficient == 0.0 { 0.0 } else { (self.norm)(elements) + self.coefficient + ROUNDING };
        let (peer, tolerance, agreed) = match expect {
            Expect::Definition | Expect::Error(_) => return,
            Expect::Torch(peer) => (peer, own, true),
            Expect::Rounded(peer) => (peer, own + PYTORCH, true),
            Expect::Better(peer) => (peer, 1e-3, false),
        };
        assert_eq!(
            self.agrees(peer, outcome, tolerance),
            agreed,
            "agreement with PyTorch, which says {peer:?}, on {outcome:?}"
        );
    }

    fn agrees(&self, peer: &Peer, outcome: &Outcome, tolerance: f64) -> bool {
        let norms = outcome.record.map(|record| record.total_norm).into_iter().zip(peer.total_norm);
        let elements =
            outcome.gradients.iter().flatten().copied().zip(peer.clipped.iter().flatten().copied());
        norms.chain(elements).all(|(ours, theirs)| self.is_product(ours, theirs.into(), tolerance))
    }

    /// Whether `x` is this number, rounded or flushed.
    fn is_product(&self, x: f32, exact: f64, tolerance: f64) -> bool {
        let is_flushed = x == 0.0 && x.is_sign_negative() == exact.is_sign_negative();
        let is_tiny = exact.abs() < f32::MIN_POSITIVE.into();
        is_near(x, exact, tolerance) || (self.flushes && is_tiny && is_flushed)
    }
}

/// Every element must be one of the two that are allowed.
fn check_elements(before: &[Vec<f32>], outcome: &Outcome, expected: impl Fn(f32) -> [f32; 2]) {
    for (index, (before, after)) in before.iter().zip(&outcome.gradients).enumerate() {
        for (element, (&before, &after)) in before.iter().zip(after).enumerate() {
            let allowed = expected(before);
            assert!(
                allowed.into_iter().any(|allowed| is_same(after, allowed)),
                "element {element} of gradient {index} was {before:e} and became {after:e}; allowed: {allowed:?}"
            );
        }
    }
}

/// PyTorch's coefficient, with its order of operations.
fn coefficient(norm: f32, max_norm: f32) -> f32 {
    let coef = (norm + 1e-6).recip() * max_norm;
    if coef > 1.0 { 1.0 } else { coef }
}

fn exactly(g: f32) -> [f32; 2] {
    [g, g]
}

/// The same bits; any NaN is as good as any other.
fn is_same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Whether `x` is this number, rounded. Zeros have a sign, infinities no neighbours.
#[expect(clippy::cast_possible_truncation, reason = "what f32 cannot hold is infinite")]
fn is_near(x: f32, exact: f64, tolerance: f64) -> bool {
    let rounded = exact as f32;
    if tolerance == 0.0 || rounded == 0.0 || !rounded.is_finite() {
        return is_same(x, rounded);
    }
    // The last term: subnormals lie that far apart.
    (f64::from(x) - exact).abs() <= tolerance * exact.abs() + f64::from(f32::from_bits(1))
}
