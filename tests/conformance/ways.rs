//! Every way of clipping: types of norms and of elements, policies, scales, groups, and norms of single gradients.

use gradclip::DType::{BF16, F16, F32};
use gradclip::{DType, Epsilon, Error, NonFinite, NormType};

use crate::cases::Method::{Norm, Own, Range, Rms, Value};
use crate::cases::{Case, Expect, Method, Options, Peer};
use crate::common::numbers::noise;
use crate::common::role::Role;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;
const NARROW: [DType; 2] = [F16, BF16];

pub(crate) fn cases() -> Vec<Case> {
    let suites = [
        norms(),
        policies(),
        loss_scales(),
        narrow(),
        narrow_clamps(),
        mixed(),
        groups(),
        each(),
        epsilons(),
        peers(),
        far(),
        options_and_norms(),
        errors(),
    ];
    suites.into_iter().flatten().collect()
}

fn row(name: impl Into<String>, gradients: &[&[f32]], options: impl Into<Options>) -> Case {
    Case::of(name, gradients, options, Expect::Definition)
}

fn long(name: impl Into<String>, lens: &'static [usize], options: impl Into<Options>) -> Case {
    let gradients = || lens.iter().zip(70..).map(|(&len, seed)| noise(seed, len)).collect();
    Case::new(name, gradients, options, Expect::Definition)
}

fn options(method: Method) -> Options {
    method.into()
}

/// Every type of norm, of gradients of any length and magnitude.
fn norms() -> Vec<Case> {
    const POWERS: [f32; 12] = [0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 8.0, -0.5, -1.0, -2.0, -INF];
    const SMALL: [(&str, &[&[f32]]); 12] = [
        ("nothing", &[]),
        ("empty", &[&[], &[]]),
        ("empty_among_others", &[&[], &[3.0], &[], &[4.0, -12.0]]),
        ("zeros", &[&[0.0, -0.0], &[0.0]]),
        ("zero_among_others", &[&[3.0, 0.0], &[-4.0], &[0.0, -0.0]]),
        ("huge", &[&[1e30, -1e30], &[3e30]]),
        ("tiny", &[&[1e-40, -3e-40], &[2e-40]]),
        ("huge_and_tiny", &[&[1e30, 1e-40], &[-1e-40, 1e30]]),
        ("sum_beyond_f32", &[&[3e38, -3e38], &[1.0]]),
        ("infinity", &[&[1.0, -2.0], &[-INF, 2.0]]),
        ("nan", &[&[1.0, -2.0], &[2.0, NAN]]),
        ("nan_and_infinity", &[&[INF], &[NAN, 0.0]]),
    ];
    let named = [("l1", NormType::L1), ("inf", NormType::Inf), ("p_inf", NormType::P(INF))];
    let named = named.map(|(name, norm_type)| (name.to_owned(), norm_type));
    let powers = POWERS.map(|p| (format!("p_{p}"), NormType::P(p)));
    let mut cases = Vec::new();
    for (name, norm_type) in named.into_iter().chain(powers) {
        let half = options(Norm(0.5)).norm_type(norm_type);
        for (content, gradients) in SMALL {
            cases.push(row(format!("norm/{name}/{content}"), gradients, half.clone()));
        }
        let loud = options(Norm(1e35)).norm_type(norm_type);
        cases.push(row(format!("norm/{name}/huge_within"), &[&[1e30, -1e30], &[3e30]], loud));
        cases.push(long(format!("norm/{name}/long"), &[1, 0, 4097, 3, 65537], half.clone()));
        for dtype in NARROW {
            let name = format!("norm/{name}/{dtype:?}");
            cases.push(long(name, &[4097, 1, 7, 9, 3], half.clone()).all(dtype));
        }
    }
    cases
}

/// Each policy, for gradients whose third one is odd, or whose norm is beyond f32.
fn policies() -> Vec<Case> {
    use NonFinite::{Poison, Propagate, Skip, Zero};
    // The third is finite, but its norm exceeds what f32 holds: no policy is for that.
    const KINDS: [(&str, f32); 5] =
        [("nan", NAN), ("infinity", -INF), ("overflow", 3.3e38), ("clipped", 3.0), ("within", 0.25)];
    let mut cases = Vec::new();
    for (kind, number) in KINDS {
        let contents: [&[f32]; 4] = [&[0.5, -0.25], &[], &[number, 0.125, -0.0, number], &[number; 3]];
        for dtype in [F32, F16, BF16] {
            // It would be an infinity in f16.
            if dtype == F16 && kind == "overflow" {
                continue;
            }
            for norm_type in [NormType::L2, NormType::L1, NormType::P(0.0), NormType::P(3.0)] {
                for scale in [None, Some(4.0)] {
                    let name = format!("policy/{kind}/{dtype:?}/{norm_type:?}/{scale:?}");
                    let options = Options { loss_scale: scale, ..options(Norm(2.5)).norm_type(norm_type) };
                    for policy in [Propagate, Skip, Zero, Poison] {
                        let options = options.clone().non_finite(policy);
                        cases.push(row(format!("{name}/{policy:?}"), &contents, options).all(dtype));
                    }
                    let total_norm = match (kind, norm_type) {
                        (_, NormType::P(0.0)) => 3.0,
                        ("nan", _) => NAN,
                        _ => INF,
                    };
                    let expect = match kind {
                        "nan" | "infinity" => Expect::Error(Error::NonFinite {
                            gradient: Some(2.into()),
                            total_norm,
                            record: None,
                        }),
                        _ => Expect::Definition,
                    };
                    let options = options.non_finite(NonFinite::Error);
                    cases.push(Case::of(format!("{name}/Error"), &contents, options, expect).all(dtype));
                }
            }
        }
    }
    // The first of many, wherever the partials of the others are joined.
    for first in [0_usize, 1, 255, 256, 300, 512, 600, 699] {
        let gradients = move || {
            let number = |index| if index < first { 0.5 } else { [NAN, 2.0, INF][(index - first) % 3] };
            (0..700).map(|index| vec![number(index)]).collect()
        };
        for norm_type in [NormType::L2, NormType::P(3.0)] {
            let options = options(Norm(1.0)).norm_type(norm_type).non_finite(Skip);
            let name = format!("policy/first_of_many/{first}/{norm_type:?}");
            cases.push(Case::new(name, gradients, options, Expect::Definition));
        }
    }
    // A gradient that is not measured is nobody's concern.
    for policy in [Propagate, Skip, Zero, Poison, NonFinite::Error] {
        let options = options(Norm(1.0)).non_finite(policy);
        let roles = [Role::of(F32), Role::of(BF16).unmeasured()];
        cases.push(
            row(format!("policy/unmeasured/{policy:?}"), &[&[3.0], &[1.0, NAN]], options).roles(&roles),
        );
    }
    cases
}

/// Powers of two, and those that are none; norms within the limit without them, and above it.
fn loss_scales() -> Vec<Case> {
    let mut cases = Vec::new();
    for scale in [1.0, 1024.0, 3.0, 0.5, 65536.0, 1e-3, 1e30, 1e-30] {
        for dtype in [F32, F16, BF16] {
            for (suffix, method) in [("clipped", Norm(1e-3)), ("within", Norm(1e37)), ("each", Own(1e-3))] {
                let name = format!("loss_scale/{scale:e}/{dtype:?}/{suffix}");
                cases.push(long(name, &[4097, 0, 7, 3], options(method).loss_scale(scale)).all(dtype));
            }
        }
        let name = format!("loss_scale/{scale:e}/coefficient_only");
        let alone = options(Norm(0.5)).loss_scale(scale).coefficient_only();
        cases.push(long(name, &[100, 3], alone));
    }
    // Where the limit is met only without it, or only with it.
    let lengths: &[&[f32]] = &[&[3.0, 0.0], &[-4.0]];
    for (scale, max_norm) in [(2.0, 2.6), (2.0, 2.4), (0.5, 9.9), (0.5, 10.1)] {
        let name = format!("loss_scale/{scale}/limit_{max_norm}");
        cases.push(row(name, lengths, options(Norm(max_norm)).loss_scale(scale)));
    }
    // What counts gradients has no scale.
    let count = options(Norm(1.0)).norm_type(NormType::P(0.0)).loss_scale(128.0);
    cases.push(row("loss_scale/count", &[&[128.0, 0.0], &[256.0], &[0.0]], count));
    // The norm leaves f32 with the scale, not without it; and the other way around.
    let huge: &[&[f32]] = &[&[3e38, -3e38], &[1e38]];
    let unscale = options(Norm(1.0)).loss_scale(1024.0);
    cases.push(row("loss_scale/norm_returns_to_f32", huge, unscale.clone()));
    cases.push(row("loss_scale/norm_leaves_f32", &[&[1e38]], options(Norm(1.0)).loss_scale(1e-3)));
    cases.push(row("loss_scale/f16_to_infinity", &[&[60000.0, -40000.0, 3.0]], {
        options(Norm(1e9)).loss_scale(0.5)
    }));
    let f16 = row("loss_scale/beyond_f16", &[&[60000.0, -40000.0, 32752.0, 3.0]], {
        options(Norm(1e9)).loss_scale(0.5)
    });
    cases.push(f16.all(F16));
    for (kind, number) in [("nan", NAN), ("infinity", INF)] {
        cases.push(row(format!("loss_scale/{kind}"), &[&[1.0, 2.0], &[number, 3.0]], unscale.clone()));
    }
    cases
}

/// Odd lengths, subnormals, ties, and the ends of each range.
fn narrow() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in NARROW {
        for (suite, method) in [
            ("clipped", Norm(0.5)),
            ("within", Norm(1e3)),
            ("clamped", Value(0.3)),
            ("zeroed", Norm(0.0)),
            ("each", Own(0.25)),
        ] {
            for lens in [[1, 3, 7, 9, 0], [7, 1, 1, 1, 3], [4095, 4097, 9, 1, 3], [8, 4096, 16, 2, 65537]] {
                let lens: &'static [usize] = Vec::leak(lens.to_vec());
                let name = format!("narrow/{dtype:?}/{suite}/{lens:?}");
                cases.push(long(name, lens, method).all(dtype));
            }
        }
    }
    // From the least subnormal of f16 to where it is normal, and a one beside which they are nothing.
    let subnormals: Vec<f32> = (0..40_u8).map(|n| f32::from(n) * (-24_f32).exp2()).collect();
    let edge: Vec<f32> = (1000..1050_u16).map(|n| -f32::from(n) * (-24_f32).exp2()).collect();
    // Halved these are ties, in every place.
    let ties: Vec<f32> = (2049..2100_u16).map(|n| f32::from(n - 1025) * (-20_f32).exp2()).collect();
    for max_norm in [1e-3, 0.4, 1e-7, 1e3] {
        let name = |content: &str| format!("narrow/{content}/{max_norm:e}");
        let subnormal = row(name("f16_subnormals"), &[&subnormals, &edge], Norm(max_norm * 1e-3));
        cases.push(subnormal.all(F16));
        cases.push(row(name("f16_becomes_subnormal"), &[&ties, &[1.0]], Norm(max_norm)).all(F16));
        let largest: &[&[f32]] = &[&[65504.0, -65504.0, 1.0], &[-0.0]];
        cases.push(row(name("f16_largest"), largest, Norm(max_norm)).all(F16));
        let huge: &[&[f32]] = &[&[3.3e38, -1e30], &[1e-40, 2.0]];
        cases.push(row(name("bf16_huge"), huge, Norm(max_norm)).all(BF16));
        let tiny: &[&[f32]] = &[&[1e-40, -3e-39], &[2e-38, 1e-39, 9.2e-41]];
        cases.push(row(name("bf16_tiny"), tiny, Norm(max_norm * 1e-38)).all(BF16));
    }
    // Three quarters of all significands: a quarter of them are ties, to both sides.
    let quarters = options(Norm(1.5)).norm_type(NormType::Inf).epsilon(Epsilon::None);
    for (dtype, ulp) in [(F16, 1024_u16), (BF16, 128)] {
        let numbers: Vec<f32> = (ulp..=2 * ulp).map(|n| f32::from(n) / f32::from(ulp)).collect();
        let negative: Vec<f32> = numbers.iter().map(|g| -g).collect();
        let name = format!("narrow/{dtype:?}/three_quarters");
        cases.push(row(name, &[&numbers, &negative], quarters.clone()).all(dtype));
    }
    let scale = options(Norm(1e30)).loss_scale(2.0);
    cases.push(row("narrow/f16/ties", &[&subnormals, &edge, &ties], scale).all(F16));
    cases
}

/// Bounds that the type does not hold, and numbers on both sides of what they are rounded to.
fn narrow_clamps() -> Vec<Case> {
    let numbers = [
        NAN,
        INF,
        -INF,
        65504.0,
        -65504.0,
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.1,
        -0.1,
        0.099_975_586,
        0.100_036_62,
        6e-8,
        -6e-8,
        6.1e-5,
        1e38,
        3e38,
        1e-40,
        70000.0,
    ];
    let ranges = [
        Value(0.0),
        Value(0.1),
        Value(1e-3),
        Value(1.000_5),
        // Half of the least subnormal of f16, a little more, and less.
        Value(2.980_232_2e-8),
        Value(2.980_233e-8),
        Value(1e-9),
        Value(65504.0),
        // The first that would round to infinity, and others beyond f16, or beyond bf16.
        Value(65520.0),
        Value(70000.0),
        Value(3.4e38),
        Value(f32::MAX),
        Value(INF),
        Range(70000.0, 80000.0),
        Range(-1e30, -1e20),
        Range(-1e-9, 1e-9),
        Range(1e-9, 2e-9),
        Range(0.099_98, 0.1),
        Range(-INF, 0.3),
        Range(INF, INF),
    ];
    let mut cases = Vec::new();
    for range in ranges {
        for dtype in NARROW {
            let name = format!("narrow/{dtype:?}/clamp/{range:?}");
            cases.push(row(name, &[&numbers, &numbers[1..]], range).all(dtype));
        }
    }
    cases
}

/// All types in one plan.
fn mixed() -> Vec<Case> {
    let types = [F32, F16, BF16].map(Role::of);
    let halves = [F16, BF16, F16, F32].map(Role::of);
    let mut cases = Vec::new();
    for (suite, options) in [
        ("clipped", options(Norm(0.5))),
        ("within", options(Norm(1e3))),
        ("l1", options(Norm(0.5)).norm_type(NormType::L1)),
        ("inf", options(Norm(0.5)).norm_type(NormType::Inf)),
        ("clamped", options(Value(0.3))),
        ("each", options(Own(0.5))),
        ("unscaled", options(Norm(0.5)).loss_scale(1024.0)),
    ] {
        for (order, roles) in [("f32_first", &types[..]), ("f16_first", &halves[..])] {
            let name = format!("mixed/{suite}/{order}");
            cases.push(long(name, &[3, 7, 9, 4097, 1, 1, 1, 0, 300, 8193, 5], options.clone()).roles(roles));
        }
        let name = format!("mixed/{suite}/extreme");
        let extreme: &[&[f32]] = &[&[1e30, -1e-40], &[65504.0, 6e-8], &[1e38, 1e-38, 0.0]];
        cases.push(row(name, extreme, options).roles(&types));
    }
    cases
}

/// Limits of their own, and gradients that are only measured, or only scaled.
fn groups() -> Vec<Case> {
    let f32 = Role::of(F32);
    let lens: &[usize] = &[5, 4097, 3, 0, 77, 1, 9, 300];
    let some = |name: &str, methods: &[Method], roles: &[Role]| {
        long(format!("group/{name}"), lens, Options::groups(methods)).roles(roles)
    };
    let two = [f32, f32.group(1)];
    let narrow =
        [Role::of(F16).group(1), Role::of(BF16), Role::of(F16), f32.group(2), Role::of(BF16).group(2)];
    let only = [f32.unmeasured(), f32, f32.unscaled()];
    let alone = [f32.unmeasured().unscaled(), Role::of(F16).unscaled(), Role::of(F16).unmeasured()];
    let all = [
        f32.unmeasured(),
        Role::of(F16).group(1).unscaled(),
        Role::of(F16),
        Role::of(BF16).group(1),
        f32.group(1).unmeasured(),
        f32.unscaled(),
        Role::of(BF16).group(2).unscaled(),
        Role::of(F16).group(2).unmeasured(),
    ];
    let mut cases = vec![
        some("two", &[Norm(0.5), Norm(1.0)], &two),
        some("two_one_within", &[Norm(1e3), Norm(0.5)], &two),
        some("two_own_limits", &[Own(0.5), Own(0.25)], &two),
        some("two_rms", &[Rms(0.1), Rms(0.2)], &two),
        some("two_clamps", &[Value(0.5), Range(-0.25, 0.1)], &two),
        some("of_which_one_is_empty", &[Norm(0.5), Norm(1.0), Norm(2.0)], &two),
        some("three_narrow", &[Norm(0.5), Norm(0.1), Norm(1e3)], &narrow),
        some("three_narrow_clamps", &[Value(0.5), Value(0.1), Value(1e3)], &narrow),
        some("measured_or_scaled", &[Norm(0.5)], &only),
        some("neither", &[Norm(0.5)], &alone),
        some("clamp_unscaled", &[Value(0.1)], &alone),
        some("own_norm_unmeasured", &[Own(0.1)], &only),
        some("rms_unmeasured", &[Rms(0.1)], &only),
        some("none_measured", &[Norm(0.5)], &[f32.unmeasured()]),
        some("none_scaled", &[Norm(0.5)], &[f32.unscaled()]),
        some("all", &[Norm(0.5), Norm(0.25), Norm(0.01)], &all),
        some("all_clamps", &[Value(0.5), Value(0.25), Value(0.01)], &all),
        some("all_own", &[Own(0.5), Own(0.25), Own(0.01)], &all),
    ];
    let unscale = |methods: &[Method]| Options::groups(methods).loss_scale(3.0);
    for (name, methods) in [("global", [Norm(0.5); 3]), ("own", [Own(0.5); 3]), ("rms", [Rms(0.01); 3])] {
        cases.push(long(format!("group/loss_scale/{name}"), lens, unscale(&methods)).roles(&all));
    }
    for norm_type in [NormType::L1, NormType::Inf, NormType::P(0.0), NormType::P(3.0), NormType::P(-1.0)] {
        let options = Options::groups(&[Norm(0.5), Norm(0.25), Norm(0.01)]).norm_type(norm_type);
        cases.push(long(format!("group/{norm_type:?}"), lens, options).roles(&all));
    }
    // What is not finite in one group is no concern of another.
    let odd: &[&[f32]] = &[&[3.0, 4.0], &[1.0], &[NAN, 1.0], &[INF], &[0.5], &[2.0]];
    for policy in [NonFinite::Propagate, NonFinite::Skip, NonFinite::Zero, NonFinite::Poison] {
        let roles = [f32, f32.group(1), f32.group(1), f32.group(2), f32.group(2), f32];
        let options = Options::groups(&[Norm(1.0), Norm(0.5), Norm(0.25)]).non_finite(policy);
        cases.push(row(format!("group/{policy:?}"), odd, options).roles(&roles));
    }
    cases
}

/// Each gradient by its own norm.
fn each() -> Vec<Case> {
    let contents: &[&[f32]] =
        &[&[3.0, -4.0], &[], &[0.3, 0.4], &[0.0, -0.0], &[1e30, 1e30, 1e30], &[1e-40], &[-12.0]];
    let odd: &[&[f32]] = &[&[3.0, -4.0], &[INF, 1.0], &[], &[NAN, 1.0], &[0.25]];
    let mut cases = Vec::new();
    for method in [Own(1.0), Own(0.0), Own(INF), Rms(0.5), Rms(0.0), Rms(1e38), Rms(INF)] {
        cases.push(row(format!("each/{method:?}"), contents, method));
        cases.push(row(format!("each/{method:?}/empty"), &[&[], &[]], method));
        let alone = options(method).coefficient_only();
        cases.push(row(format!("each/{method:?}/coefficient_only"), contents, alone));
        for policy in [NonFinite::Propagate, NonFinite::Skip, NonFinite::Zero, NonFinite::Poison] {
            let options = options(method).non_finite(policy);
            cases.push(row(format!("each/{method:?}/{policy:?}"), odd, options));
        }
        let options = options(method).loss_scale(4.0);
        cases.push(long(format!("each/{method:?}/long"), &[4097, 1, 0, 9000, 33], options));
    }
    for norm_type in [NormType::L1, NormType::Inf, NormType::P(0.0), NormType::P(0.5), NormType::P(-2.0)] {
        let options = options(Own(1.0)).norm_type(norm_type);
        cases.push(row(format!("each/{norm_type:?}"), contents, options));
    }
    let error = Error::NonFinite { gradient: Some(1.into()), total_norm: INF, record: Some(1) };
    let options = options(Own(1.0)).non_finite(NonFinite::Error);
    // The first gradient could be clipped, had there been no error.
    let within: &[&[f32]] = &[&[0.25], &[INF, 1.0], &[NAN]];
    cases.push(Case::of("each/error", within, options, Expect::Error(error)));
    cases
}

/// At the limit, a little above it, and where there is nothing to divide by.
fn epsilons() -> Vec<Case> {
    let epsilons = [Epsilon::PyTorch, Epsilon::None, Epsilon::Value(1.0), Epsilon::Value(1e-12)];
    let mut cases = Vec::new();
    for epsilon in epsilons {
        for max_norm in [0.0, 1e-45, 1e-30, 4.0, 5.0, 5.000_000_5, 6.0, INF] {
            for (content, gradients) in [
                ("triangle", [3.0, -4.0]),
                ("zeros", [0.0, -0.0]),
                ("tiny", [1e-8, 0.0]),
                ("least", [1e-45, 0.0]),
            ] {
                let name = format!("epsilon/{epsilon:?}/{max_norm:e}/{content}");
                cases.push(row(name, &[&gradients], options(Norm(max_norm)).epsilon(epsilon)));
            }
        }
        let name = format!("epsilon/{epsilon:?}/rms");
        cases.push(row(name, &[&[3.0, -4.0], &[0.0]], options(Rms(0.5)).epsilon(epsilon)));
    }
    cases
}

/// What others test, or do.
fn peers() -> Vec<Case> {
    let peer = |name: &str, gradients: &[&[f32]], options: Options, clipped: &[&[f32]]| {
        let clipped = clipped.iter().map(|gradient| gradient.to_vec()).collect();
        Case::of(name, gradients, options, Expect::Rounded(Peer { total_norm: None, clipped }))
    };
    let exactly = |method| options(method).epsilon(Epsilon::None);
    let x: &[f32] = &[-3.0, 0.0, 0.0, 4.0, 0.0, 0.0];
    let (one, two): (&[f32], &[f32]) = (&[-2.0, 0.0, 0.0, 4.0, 0.0, 0.0], &[1.0, -2.0]);
    // A mean of squares of 12.5, of 0.25, and of 2.
    let blocks: &[&[f32]] = &[&[3.0, 4.0], &[0.5, -0.5], &[2.0, 0.0]];
    let (root, of_two) = (12.5_f32.sqrt(), 2.0_f32.sqrt());
    vec![
        peer("tensorflow/clip_by_norm", &[x], exactly(Own(4.0)), &[&[-2.4, 0.0, 0.0, 3.2, 0.0, 0.0]]),
        peer("tensorflow/clip_by_norm/within", &[x], exactly(Own(6.0)), &[x]),
        peer("tensorflow/clip_by_norm/at_the_limit", &[x], exactly(Own(5.0)), &[x]),
        peer("tensorflow/clip_by_norm/zeros", &[&[0.0; 4]], exactly(Own(4.0)), &[&[0.0; 4]]),
        peer(
            "tensorflow/clip_by_global_norm",
            &[one, two],
            exactly(Norm(4.0)),
            &[&[-1.6, 0.0, 0.0, 3.2, 0.0, 0.0], &[0.8, -1.6]],
        ),
        peer(
            "optax/clip_by_block_rms",
            blocks,
            options(Rms(1.0)),
            &[&[3.0 / root, 4.0 / root], &[0.5, -0.5], &[2.0 / of_two, 0.0]],
        ),
        peer(
            "optax/clip_by_block_rms/0.25",
            blocks,
            options(Rms(0.25)),
            &[&[0.75 / root, 1.0 / root], &[0.25, -0.25], &[0.5 / of_two, 0.0]],
        ),
        // Half of what it was: unscaled, its norm is 2.5.
        peer(
            "pytorch/unscale_and_clip",
            &[&[3072.0], &[-4096.0]],
            exactly(Norm(2.5)).loss_scale(1024.0),
            &[&[1.5], &[-2.0]],
        ),
        peer(
            "pytorch/error_if_nonfinite=False",
            &[&[1.0, INF], &[2.0]],
            options(Norm(1.0)),
            &[&[0.0, NAN], &[0.0]],
        ),
    ]
}

/// Norms that f32 does not hold, and factors that it does not hold: for those it has fewer bits, or none.
fn far() -> Vec<Case> {
    let huge: &[&[f32]] = &[&[3e38, -3e38, 1.0], &[], &[3e38, 1e30, -0.0, 3e38]];
    let norms = [NormType::L2, NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(0.5)];
    let limits = [1e38, 1.0, 1e-2, 1e-10, 1e-37, 1e-40, 1e-45, 0.0];
    let mut cases = Vec::new();
    for norm_type in norms {
        for limit in limits {
            let name = |kind: &str| format!("far/{norm_type:?}/{limit:e}/{kind}");
            let to = |method| options(method).norm_type(norm_type);
            cases.push(row(name("together"), huge, to(Norm(limit))));
            cases.push(row(name("each"), huge, to(Own(limit))));
            cases.push(row(name("bf16"), huge, to(Norm(limit))).all(BF16));
            let skip = to(Norm(limit)).non_finite(NonFinite::Skip).epsilon(Epsilon::None);
            cases.push(row(name("skip"), huge, skip));
        }
    }
    for scale in [128.0, 0.25, 1e-3, 1e37, 1e-37] {
        for limit in [1.0, 1e-30] {
            let name = |kind: &str| format!("far/scale_{scale:e}/{limit:e}/{kind}");
            let scaled = options(Norm(limit)).loss_scale(scale);
            cases.push(row(name("f32"), huge, scaled.clone()));
            let halves: &[&[f32]] = &[&[60000.0, -1.0, 6e-8], &[3e38, 2.0], &[3e38; 3]];
            let types = [F16, BF16, F32].map(Role::of);
            cases.push(row(name("mixed"), halves, scaled.clone()).roles(&types));
            cases.push(row(name("f16"), &halves[..1], scaled.clone()).all(F16));
            cases.push(row(name("coefficient"), huge, scaled.coefficient_only()));
        }
    }
    // An epsilon that takes norm and sum beyond f32, or is what counts in it.
    for epsilon in [3e38, 1e30] {
        let loud = options(Norm(1.0)).epsilon(Epsilon::Value(epsilon));
        cases.push(row(format!("far/epsilon_{epsilon:e}"), &[&[2e38, 1e38]], loud.clone()));
        cases.push(row(format!("far/epsilon_{epsilon:e}/huge"), huge, loud));
    }
    // Long enough for whole vectors, tiles and edges; and groups of which one is ordinary.
    let long = || vec![vec![3e38; 4099], vec![1.0; 5], vec![-3e38; 8192]];
    for dtype in [F32, BF16] {
        cases.push(Case::new(format!("far/long/{dtype:?}"), long, Norm(1.0), Expect::Definition).all(dtype));
    }
    let groups = Options::groups(&[Norm(1.0), Norm(1.0)]);
    let roles = [Role::of(F32), Role::of(F32).group(1), Role::of(F32).unmeasured()];
    cases.push(Case::new("far/groups", long, groups, Expect::Definition).roles(&roles));
    cases
}

/// Every option beside every type of norm: what a norm does not see of the elements, policies and scales see.
fn options_and_norms() -> Vec<Case> {
    use NonFinite::{Poison, Propagate, Skip, Zero};
    const CONTENTS: [(&str, &[&[f32]]); 6] = [
        ("finite", &[&[128.0, -64.0], &[], &[256.0]]),
        ("zeros", &[&[128.0, 0.0], &[0.0, -0.0], &[256.0]]),
        ("nan", &[&[128.0, NAN], &[0.0], &[256.0]]),
        ("infinity", &[&[128.0, 1.0], &[-INF, 2.0], &[0.0]]),
        ("only_infinity", &[&[INF], &[-INF], &[]]),
        ("huge", &[&[3e38, -3e38], &[3e38, 1.0], &[2e38]]),
    ];
    let norms = [NormType::L1, NormType::L2, NormType::Inf].into_iter();
    let powers = [0.0, 0.5, 3.0, -1.0, -INF].map(NormType::P);
    let mut cases = Vec::new();
    for norm_type in norms.chain(powers) {
        for (content, gradients) in CONTENTS {
            for policy in [Propagate, Skip, Zero, Poison] {
                let name = |kind: &str| format!("options/{norm_type:?}/{content}/{policy:?}/{kind}");
                let to = |options: Options| options.norm_type(norm_type).non_finite(policy).loss_scale(128.0);
                let f32 = Role::of(F32);
                cases.push(row(name("together"), gradients, to(Norm(0.5).into())));
                cases.push(row(name("each"), gradients, to(Own(0.5).into())));
                let groups = to(Options::groups(&[Norm(0.5), Norm(0.25)]));
                let roles = [f32, f32.group(1), f32.unscaled()];
                cases.push(row(name("groups"), gradients, groups).roles(&roles));
                let relative = to(Method::Relative(0.1, 1e-3).into());
                let parameters: Vec<_> = gradients.iter().map(|own| f32.parameter(own)).collect();
                cases.push(row(name("relative"), gradients, relative).roles(&parameters));
            }
        }
    }
    cases
}

/// Options that make no sense.
fn errors() -> Vec<Case> {
    let norm = options(Norm(1.0));
    let f32 = Role::of(F32);
    let mut rows = Vec::new();
    for given in [0.0, -0.0, -1.0, NAN, INF, -INF, 1e-45] {
        rows.push((norm.clone().loss_scale(given), Error::LossScale { given }));
    }
    for given in [-1.0, -1e-45, NAN, INF, -INF] {
        rows.push((norm.clone().epsilon(Epsilon::Value(given)), Error::Epsilon { given }));
    }
    let given = NormType::P(NAN);
    rows.push((norm.clone().norm_type(given), Error::NormType { given }));
    for given in [NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(NAN)] {
        rows.push((options(Rms(1.0)).norm_type(given), Error::NormType { given }));
    }
    for method in [Value(1.0), Range(0.0, 1.0)] {
        let clip = if matches!(method, Value(_)) { "Clip::by_value" } else { "Clip::by_value_range" };
        for (options, what) in [
            (options(method).norm_type(NormType::L1), "norm_type"),
            (options(method).non_finite(NonFinite::Skip), "non_finite"),
            (options(method).loss_scale(2.0), "loss_scale"),
            (options(method).coefficient_only(), "coefficient_only"),
        ] {
            rows.push((options, Error::NeedsNorm { what, clip }));
        }
    }
    for (methods, second, option, given) in [
        (vec![Norm(1.0), Own(1.0)], 1, "scope", ["Global", "Tensor"]),
        (vec![Norm(1.0), Norm(2.0), Value(1.0)], 2, "kind", ["by norm", "by value"]),
        (vec![Value(1.0), Norm(1.0)], 1, "kind", ["by value", "by norm"]),
        (vec![Own(1.0), Rms(1.0)], 1, "scope", ["Tensor", "TensorRms"]),
    ] {
        let given = given.map(String::from);
        rows.push((Options::groups(&methods), Error::GroupsDiffer { first: 0, second, option, given }));
    }
    rows.push((Options::groups(&[]), Error::NoClip));
    // The invalid limit of a group that has no gradients.
    rows.push((Options::groups(&[Norm(1.0), Norm(-2.0)]), {
        Error::InGroup { group: 1, error: Box::new(Error::MaxNorm { given: -2.0 }) }
    }));
    let contents: &[&[f32]] = &[&[3.0], &[4.0]];
    let case = |(options, error)| {
        let name = format!("error/{options:?}");
        Case::of(name, contents, options, Expect::Error(error)).roles(&[f32])
    };
    let mut cases: Vec<_> = rows.into_iter().map(case).collect();
    for (groups, given) in [(1, 1), (1, 7), (2, 2)] {
        let options = Options::groups(&vec![Norm(1.0); groups]);
        let error = Expect::Error(Error::GroupWithoutClip { gradient: 1.into(), given, groups });
        let name = format!("error/group_{given}_of_{groups}");
        cases.push(Case::of(name, contents, options, error).roles(&[f32, f32.group(given)]));
    }
    cases
}
