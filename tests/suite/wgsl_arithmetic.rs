//! The arithmetic of `shaders/lib`: square roots, reciprocals and products, rounded to nearest even on every adapter.
//!
//! A software adapter computes correctly rounded roots and quotients, and would pass without the corrections in the
//! shader. These tests therefore perturb the estimates that the shader corrects, by the maximum error that WGSL allows.

use crate::common::numbers::noise;
use crate::gpu;

const FUNCTIONS: &str = concat!(
    include_str!("../../shaders/lib/float_bits.wgsl"),
    include_str!("../../shaders/lib/correctly_rounded.wgsl"),
    include_str!("../../shaders/lib/extended.wgsl")
);

/// Calls `of_pair` for each pair of numbers.
const MAIN: &str = "
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> results: array<vec4<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < arrayLength(&pairs)) {
        results[id.x] = of_pair(pairs[id.x]);
    }
}
";

/// Computes a root, a reciprocal and a product of a pair of numbers.
const OF_PAIR: &str = "
fn of_pair(pair: vec2<u32>) -> vec4<u32> {
    let root = square_root(bitcast<f32>(pair.x));
    let significand = bitcast<f32>((pair.x & 0x7fffffu) | ONE);
    return vec4(
        bitcast<u32>(root),
        bitcast<u32>(reciprocal(significand)),
        nearest_f32(extended_product(extended(pair.x), extended(pair.y))),
        bitcast<u32>(significand),
    );
}
";

/// Returns the functions with estimates that are `units` units in the last place too large.
fn spoiled(units: i32) -> String {
    let spoil = format!(
        "\nfn spoiled(estimate: f32) -> f32 {{ return bitcast<f32>(u32(i32(bitcast<u32>(estimate)) + {units}i)); }}\n"
    );
    let root = FUNCTIONS
        .replace("u32(sqrt(", "u32(spoiled(sqrt(")
        .replace("power_of_two(-23)) * power_of_two(23))", "power_of_two(-23))) * power_of_two(23))");
    let both = root.replace("u32(power_of_two(24) / value)", "u32(spoiled(power_of_two(24) / value))");
    assert_eq!(
        both.matches("spoiled(").count(),
        2,
        "the shader no longer contains the expressions that this test replaces"
    );
    [&both, &spoil, OF_PAIR].concat()
}

/// Runs the function `of_pair` of a WGSL text for pairs of numbers.
pub(crate) fn run(source: &str, pairs: &[[f32; 2]]) -> Vec<[u32; 4]> {
    let gpu = gpu();
    let results = gpu.buffer_of(&vec![[0_u32; 4]; pairs.len()]);
    let program = gpu.program(&[source, MAIN].concat(), &[&gpu.buffer_of(pairs), &results]);
    gpu.submit(|encoder| program.encode(encoder, u32::try_from(pairs.len()).unwrap().div_ceil(64)));
    gpu.read(&results)
}

/// Returns positive normal numbers of every exponent, with random significands and with those at the edges.
pub(crate) fn numbers() -> Vec<f32> {
    let edges = [0, 1, 2, 0x3f_ffff, 0x40_0000, 0x40_0001, 0x7f_fffe, 0x7f_ffff];
    let mut numbers = Vec::new();
    for exponent in 1..255_u32 {
        let random = noise(exponent, 24).into_iter().map(|x| x.to_bits() & 0x7f_ffff);
        numbers.extend(random.chain(edges).map(|significand| f32::from_bits(exponent << 23 | significand)));
    }
    numbers
}

#[test]
fn roots_and_reciprocals_are_correctly_rounded_from_estimates_that_are_off() {
    let numbers = numbers();
    let pairs: Vec<_> = numbers.iter().map(|&x| [x, 1.0]).collect();
    for units in [-5, -2, -1, 0, 1, 2, 5] {
        for ([x, _], result) in pairs.iter().zip(run(&spoiled(units), &pairs)) {
            assert_eq!(f32::from_bits(result[0]), x.sqrt(), "the root of {x}, {units} units off");
            let significand = f32::from_bits(result[3]);
            assert_eq!(f32::from_bits(result[1]), 1.0 / significand, "1 / {significand}, {units} units off");
        }
    }
}

#[test]
fn products_are_correctly_rounded_with_subnormals() {
    let tiny = [1e-45, 3e-42, 1e-39, f32::MIN_POSITIVE];
    let mut pairs = Vec::new();
    for (x, y) in numbers().into_iter().zip(numbers().into_iter().rev()) {
        pairs.extend([[x, y], [-x, y.sqrt()], [x, 0.0], [-x, -0.0], [x, -x]]);
    }
    for x in tiny {
        pairs.extend(numbers().into_iter().flat_map(|y| [[x, y], [-y, x]]));
    }
    for ([x, y], [.., product, _]) in pairs.iter().zip(run(&spoiled(0), &pairs)) {
        let (found, expected) = (f32::from_bits(product), x * y);
        // A subnormal product is rounded twice: to 24 bits, and to its exponent.
        let off = found.to_bits().abs_diff(expected.to_bits());
        let most = u32::from(expected != 0.0 && expected.abs() < f32::MIN_POSITIVE);
        assert!(off <= most, "{x} * {y} is {found}, not {expected}");
    }
}
