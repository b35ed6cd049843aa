//! The table: what to clip, how, and what must come of it.

use std::iter::repeat_n;

use gradclip::{Clip, DType, Epsilon, Error, NonFinite, NormType};

use crate::common::numbers::noise;
use crate::common::role::Role;
use crate::{golden, peers, relative, ways};

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) gradients: Box<dyn Fn() -> Vec<Vec<f32>> + Send + Sync>,
    /// Of the gradients in turn, over and over.
    roles: Vec<Role>,
    /// One after the other, on what the one before has left.
    pub(crate) clips: Vec<Options>,
    pub(crate) expect: Expect,
}

/// The options of the clips of one plan, for [`Clip`] keeps them to itself.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// One for each group.
    pub(crate) methods: Vec<Method>,
    pub(crate) norm_type: NormType,
    pub(crate) epsilon: Option<Epsilon>,
    pub(crate) non_finite: NonFinite,
    pub(crate) loss_scale: Option<f32>,
    pub(crate) coefficient_only: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    Norm(f32),
    /// Each gradient by its own norm.
    Own(f32),
    /// Each gradient by the root of the mean of its squares.
    Rms(f32),
    /// Each gradient by this share of the norm of its parameter, or of a floor.
    Relative(f32, f32),
    Value(f32),
    Range(f32, f32),
}

/// What is expected besides: if it is no error, the outcome is always held against the definition.
pub(crate) enum Expect {
    Definition,
    /// What PyTorch does, to the bit on the CPU path.
    Torch(Peer),
    /// What PyTorch does, but for the rounding of its sums.
    Rounded(Peer),
    /// Deliberately something better than what PyTorch does.
    Better(Peer),
    Error(Error),
}

/// What PyTorch does.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) total_norm: Option<f32>,
    pub(crate) clipped: Vec<Vec<f32>>,
}

use Method::{Norm, Range, Value};

impl Options {
    /// For groups with these methods.
    pub(crate) fn groups(methods: &[Method]) -> Self {
        Self {
            methods: methods.to_vec(),
            norm_type: NormType::L2,
            epsilon: None,
            non_finite: NonFinite::Propagate,
            loss_scale: None,
            coefficient_only: false,
        }
    }

    pub(crate) fn norm_type(self, norm_type: NormType) -> Self {
        Self { norm_type, ..self }
    }

    pub(crate) fn epsilon(self, epsilon: Epsilon) -> Self {
        Self { epsilon: Some(epsilon), ..self }
    }

    pub(crate) fn non_finite(self, non_finite: NonFinite) -> Self {
        Self { non_finite, ..self }
    }

    pub(crate) fn loss_scale(self, scale: f32) -> Self {
        Self { loss_scale: Some(scale), ..self }
    }

    pub(crate) fn coefficient_only(self) -> Self {
        Self { coefficient_only: true, ..self }
    }

    pub(crate) fn clips(&self) -> Vec<Clip> {
        self.methods.iter().map(|method| self.clip(*method)).collect()
    }

    fn clip(&self, method: Method) -> Clip {
        let clip = match method {
            Norm(max_norm) => Clip::by_global_norm(max_norm),
            Method::Own(max_norm) => Clip::by_norm(max_norm),
            Method::Rms(threshold) => Clip::by_rms(threshold),
            Method::Relative(clipping, floor) => Clip::by_parameter_norm(clipping, floor),
            Value(clip_value) => Clip::by_value(clip_value),
            Range(low, high) => Clip::by_value_range(low, high),
        };
        let clip = clip.norm_type(self.norm_type).non_finite(self.non_finite);
        let clip = self.epsilon.map_or(clip, |epsilon| clip.epsilon(epsilon));
        let clip = self.loss_scale.map_or(clip, |scale| clip.loss_scale(scale));
        if self.coefficient_only { clip.coefficient_only() } else { clip }
    }
}

impl From<Method> for Options {
    fn from(method: Method) -> Self {
        Self::groups(&[method])
    }
}

fn coefficient_only(max_norm: f32) -> Options {
    Options::from(Norm(max_norm)).coefficient_only()
}

impl Case {
    pub(crate) fn new(
        name: impl Into<String>,
        gradients: impl Fn() -> Vec<Vec<f32>> + Send + Sync + 'static,
        options: impl Into<Options>,
        expect: Expect,
    ) -> Self {
        Self {
            name: name.into(),
            gradients: Box::new(gradients),
            roles: vec![Role::of(DType::F32)],
            clips: vec![options.into()],
            expect,
        }
    }

    /// Of gradients that fit into a line.
    pub(crate) fn of(
        name: impl Into<String>,
        gradients: &[&[f32]],
        options: impl Into<Options>,
        expect: Expect,
    ) -> Self {
        let gradients: Vec<_> = gradients.iter().map(|gradient| gradient.to_vec()).collect();
        Self::new(name, move || gradients.clone(), options, expect)
    }

    /// With gradients in these roles, in turn.
    pub(crate) fn roles(self, roles: &[Role]) -> Self {
        Self { roles: roles.to_vec(), ..self }
    }

    /// With gradients of this type.
    pub(crate) fn all(self, dtype: DType) -> Self {
        self.roles(&[Role::of(dtype)])
    }

    pub(crate) fn role(&self, gradient: usize) -> Role {
        self.roles[gradient % self.roles.len()]
    }
}

pub(crate) fn all() -> Vec<Case> {
    let suites = [
        golden::cases(),
        pytorch(),
        optax(),
        apex(),
        sizes(),
        contents(),
        specials(),
        limits(),
        ranges(),
        errors(),
        ways::cases(),
        relative::cases(),
        peers::cases(),
    ];
    suites.into_iter().flatten().collect()
}

/// PyTorch's table of what is finite: a gradient of 10 by 10 in which all or one row is a number, alone or behind
/// another gradient.
fn pytorch() -> Vec<Case> {
    let numbers = [2e10, 2e25, f32::INFINITY, f32::NAN];
    let mut cases = Vec::new();
    for number in numbers.into_iter().flat_map(|number| [number, -number]) {
        for (where_, rows) in [("everywhere", 0..10), ("in_one_row", 1..2)] {
            for (among, prefix) in [("alone", None), ("behind_another", Some(vec![1.0]))] {
                let mut tensor = vec![0.0; 100];
                tensor[10 * rows.start..10 * rows.end].fill(number);
                let gradients: Vec<_> = prefix.into_iter().chain([tensor]).collect();
                // Its squares of 2e25 overflow, and what is finite becomes zero.
                let expect = if number.abs() == 2e25 {
                    let clipped = gradients.iter().map(|gradient| gradient.iter().map(|g| g * 0.0).collect());
                    Expect::Better(Peer { total_norm: Some(f32::INFINITY), clipped: clipped.collect() })
                } else {
                    Expect::Definition
                };
                let sign = if number.is_sign_negative() { "-" } else { "" };
                let name = format!("pytorch/{sign}{:e}/{where_}/{among}", number.abs());
                cases.push(Case::new(name, move || gradients.clone(), Norm(1.0), expect));
            }
        }
    }
    cases
}

/// Clipped again and again, to one half, one third, ...
fn optax() -> Vec<Case> {
    let mut case = Case::of("optax/repeated", &[&[500.0, 5.0], &[300.0, 3.0]], Norm(1.0), Expect::Definition);
    case.clips = (1..=50_u8).map(|i| Norm(1.0 / f32::from(i)).into()).collect();
    vec![case]
}

/// Apex's fills, the pair once and 55 times; its largest only once.
fn apex() -> Vec<Case> {
    let pairs = [
        (7777 * 77, 555 * 555),
        (777, 555),
        (555, 65537),
        (65537, 555),
        (555, 65536),
        (65536, 555),
        (33333, 555),
        (555, 33333),
    ];
    let mut cases = Vec::new();
    for (a, b) in pairs {
        for times in [1, 55] {
            if a * times < 10_000_000 {
                let gradients = move || {
                    let pair = [a, b].map(|len| vec![4.0; len]);
                    repeat_n(pair, times).flatten().collect()
                };
                let name = format!("apex/{a},{b}/{times}");
                cases.push(Case::new(name, gradients, coefficient_only(1.0), Expect::Definition));
            }
        }
    }
    cases
}

/// Around a vector, a workgroup, the block of an invocation, and tiles of 4096.
fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for len in [0, 1, 2, 3, 4, 5, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 16383, 16384, 16385] {
        let some = move || vec![noise(1, len), noise(2, len / 3), noise(3, len + 1)];
        let last = move || vec![vec![0.0; len], repeat_n(0.0, len).chain([7.0]).collect()];
        for (suite, options) in [("clipped", Norm(0.5)), ("within", Norm(1e3)), ("clamped", Value(0.5))] {
            cases.push(Case::new(format!("size/{len}/{suite}"), some, options, Expect::Definition));
        }
        // A norm that misses the end is 0.
        cases.push(Case::new(format!("size/{len}/last"), last, Norm(1.0), Expect::Definition));
    }
    cases
}

/// What is hard to sum.
fn contents() -> Vec<Case> {
    /// Lengths, and what fills them.
    const FILLS: [(&str, &[(usize, f32)]); 12] = [
        ("constant", &[(100_000, 0.1)]),
        ("huge_among_tiny", &[(5000, 1e-4), (1, 1e4), (20_000, 1e-4)]),
        ("beyond_squares_among_ones", &[(5000, 1.0), (1, 1e30), (5000, 1.0)]),
        ("tiny_beside_ones", &[(5000, 1e-30), (5000, 1.0)]),
        ("tiny_beside_huge", &[(5000, 1e-30), (5000, 1e30)]),
        ("huge_medium_and_tiny", &[(4096, 1e25), (4096, 1e20), (4096, 1.0), (4096, 1e-20), (4096, 1e-40)]),
        // 2^-40 and 2^45: where plain squares end, and one step beyond.
        ("smallest_plain", &[(9000, f32::from_bits(0x2b80_0000))]),
        ("largest_rescued_for_being_small", &[(9000, f32::from_bits(0x2b7f_ffff))]),
        ("largest_plain", &[(9000, f32::from_bits(0x5600_0000))]),
        ("smallest_rescued_for_being_large", &[(9000, f32::from_bits(0x5600_0001))]),
        (
            "both_sides_of_the_plain",
            &[(4096, f32::from_bits(0x2b7f_ffff)), (4096, f32::from_bits(0x2b80_0000))],
        ),
        ("subnormals", &[(5000, 1e-40), (5000, -3e-45)]),
    ];
    fn filled(rows: &'static [(usize, f32)]) -> impl Fn() -> Vec<Vec<f32>> {
        || rows.iter().map(|&(len, g)| vec![g; len]).collect()
    }
    let in_one = |rows: &'static [(usize, f32)]| move || vec![filled(rows)().concat()];
    let mut cases = Vec::new();
    for (name, rows) in FILLS {
        for max_norm in [1e-3, 1e-42] {
            let options = Norm(max_norm);
            let (whole, parts) =
                (format!("sum/{name}/{max_norm:e}/one"), format!("sum/{name}/{max_norm:e}/many"));
            cases.push(Case::new(whole, in_one(rows), options, Expect::Definition));
            cases.push(Case::new(parts, filled(rows), options, Expect::Definition));
        }
    }
    cases
}

/// Numbers at the ends of f32, and those that are none.
fn specials() -> Vec<Case> {
    const INF: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;
    const MAX: f32 = f32::MAX;
    let signalling = f32::from_bits(0xff80_0001);
    let zeroed = |total_norm, len| {
        Expect::Better(Peer { total_norm: Some(total_norm), clipped: vec![vec![0.0; len]] })
    };
    let ours = |name: &str, gradients: &[&[f32]], max_norm: f32| {
        Case::of(format!("special/{name}"), gradients, Norm(max_norm), Expect::Definition)
    };
    let mut cases = vec![
        ours("nothing", &[], 1.0),
        ours("nothing_to_zero", &[], 0.0),
        ours("empty", &[&[], &[]], 1.0),
        ours("empty_among_others", &[&[], &[3.0], &[], &[4.0, 0.0], &[]], 1.0),
        ours("zeros", &[&[0.0, -0.0], &[-0.0]], 1.0),
        ours("signed_zeros_scaled", &[&[0.0, -0.0, 2.0]], 1.0),
        ours("subnormal", &[&[1e-45]], 1.0),
        ours("nine_subnormals", &[&[1e-45; 9]], 1.0),
        ours("subnormal_rounded_up", &[&[f32::from_bits(2); 2]], 1.0),
        ours(
            "subnormal_rounded_to_even",
            &[&[f32::from_bits(3), f32::from_bits(4)], &[f32::from_bits(6)]],
            1.0,
        ),
        ours("subnormal_coefficient", &[&[1e10, 1e-10]], 1e-30),
        ours("subnormal_limit", &[&[3.0, 4.0]], 1e-40),
        ours("subnormal_norm_and_limit", &[&[3e-40, 4e-40]], 1e-40),
        ours("norm_of_3e38", &[&[3e38]], 1.0),
        ours("norm_just_within_f32", &[&[2.3e38, 2.3e38]], 1.0),
        ours("norm_beyond_f32", &[&[MAX, -MAX], &[0.0, 1.0]], 1.0),
        ours("norm_beyond_f32_to_zero", &[&[MAX, -MAX], &[0.0, 1.0]], 0.0),
        ours("infinity", &[&[1.0, -INF, -2.0]], 1.0),
        ours("infinity_to_zero", &[&[1.0, INF, -2.0]], 0.0),
        ours("infinity_to_negative_zero", &[&[1.0, INF, -2.0]], -0.0),
        ours("infinity_without_limit", &[&[1.0, INF, -2.0]], INF),
        ours("nan_without_limit", &[&[1.0, NAN, -2.0]], INF),
        ours("nan_to_zero", &[&[1.0, NAN, -2.0]], 0.0),
        ours("nan_and_infinity", &[&[1.0, INF], &[-NAN]], 1.0),
        ours("infinity_and_nan", &[&[1.0, NAN], &[-INF]], 1.0),
        ours("signalling_nan", &[&[1.0], &[signalling, 2.0, 3.0]], 1.0),
        Case::of("special/1e20", &[&[1e20, 1e20]], Norm(1.0), zeroed(INF, 2)),
        Case::of("special/1e-30", &[&[1e-30, 1e-30]], Norm(1.0), zeroed(0.0, 2)),
    ];
    for (name, number) in [("nan", NAN), ("infinity", INF)] {
        let far_back = move || vec![noise(4, 300), [noise(5, 4096), vec![number]].concat(), noise(6, 300)];
        let name = format!("special/{name}_at_the_end");
        cases.push(Case::new(name, far_back, Norm(1.0), Expect::Definition));
    }
    cases
}

/// Limits at the norm of 13, and as far from it as they go.
fn limits() -> Vec<Case> {
    let mut up = 13.0_f32;
    let mut down = 13.0_f32;
    let mut limits = vec![0.0, -0.0, 1e-45, 1e-30, 13.0, f32::MAX, f32::INFINITY];
    for _ in 0..3 {
        (up, down) = (up.next_up(), down.next_down());
        limits.extend([up, down]);
    }
    let clip_to = |max_norm: f32| {
        let name = format!("limit/{max_norm:e}");
        let options = [("", Norm(max_norm).into()), ("/coefficient_only", coefficient_only(max_norm))];
        options.map(|(suffix, options)| {
            Case::of(name.clone() + suffix, &[&[3.0, -4.0], &[12.0]], options, Expect::Definition)
        })
    };
    limits.into_iter().flat_map(clip_to).collect()
}

/// Every kind of number to every kind of range.
fn ranges() -> Vec<Case> {
    const INF: f32 = f32::INFINITY;
    let numbers = [
        f32::NAN,
        -f32::NAN,
        INF,
        -INF,
        f32::MAX,
        f32::MIN,
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        1e-40,
        -1e-40,
        f32::MIN_POSITIVE,
        -f32::MIN_POSITIVE,
        1.0,
        -1.0,
        1.0_f32.next_up(),
        -1.0_f32.next_up(),
        2.5,
        -2.5,
        1e30,
    ];
    let ranges = [
        Range(-1.0, 1.0),
        Range(-INF, 1.0),
        Range(-1.0, INF),
        Range(-INF, INF),
        Range(-INF, -INF),
        Range(INF, INF),
        Range(0.0, 0.0),
        Range(-0.0, -0.0),
        Range(-0.0, 0.0),
        Range(0.0, -0.0),
        Range(0.0, 1.0),
        Range(1.0, 2.0),
        Range(-2.0, -1.0),
        Range(-1e-40, 1e-45),
        Range(1e-45, 1e-40),
        Range(f32::MIN, f32::MAX),
        Value(0.0),
        Value(1e-40),
        Value(INF),
    ];
    // TensorFlow's, and twice a number of elements that fills no vector.
    let tensorflow = Case::of("tensorflow/value", &[&[f32::NAN, INF, -INF]], Value(4.0), Expect::Definition);
    let clamp = |method: Method| {
        Case::of(format!("range/{method:?}"), &[&numbers, &numbers], method, Expect::Definition)
    };
    ranges.into_iter().map(clamp).chain([tensorflow]).collect()
}

/// Options that make no sense.
fn errors() -> Vec<Case> {
    const INF: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;
    let norm = |given| {
        [Norm(given), Method::Own(given), Method::Rms(given)]
            .map(|options| (options, Error::MaxNorm { given }))
    };
    let value = |given| [(Value(given), Error::ClipValue { given })];
    let range = |low, high| [(Range(low, high), Error::ClipRange { low, high })];
    let rows = [-1.0, -1e-45, -INF, NAN].into_iter().flat_map(norm);
    let rows = rows.chain([-1.0, -1e-45, -INF, NAN].into_iter().flat_map(value));
    let rows = rows.chain(
        [(NAN, 1.0), (-1.0, NAN), (NAN, NAN), (1.0, -1.0), (INF, -INF), (1e-45, 0.0)]
            .into_iter()
            .flat_map(|(low, high)| range(low, high)),
    );
    rows.map(|(options, error)| {
        Case::of(format!("error/{options:?}"), &[&[3.0], &[4.0]], options, Expect::Error(error))
    })
    .collect()
}
