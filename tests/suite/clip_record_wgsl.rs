//! `CLIP_RECORD_WGSL`: records in the caller's shader.

use gradclip::{CLIP_RECORD_WGSL, Clip};

use crate::gpu;
use crate::wgsl_arithmetic::{numbers, run};

/// Multiplies the first number of a pair by the factor of a record, as an optimizer does. The first result has the
/// second number times 2^-200 as its factor, the second result the second number.
const OPTIMIZER: &str = "
fn of_pair(pair: vec2<u32>) -> vec4<u32> {
    var record: ClipRecord;
    record.factor_significand = bitcast<f32>((pair.y & 0x807fffffu) | 0x3f800000u);
    record.factor_exponent = i32((pair.y >> 23u) & 0xffu) - 127 - 200;
    let scaled = clip_record_scaled(record, bitcast<f32>(pair.x));
    record.factor = bitcast<f32>(pair.y);
    record.factor_exponent += 200;
    let plain = clip_record_scaled(record, bitcast<f32>(pair.x));
    return vec4(bitcast<u32>(scaled), bitcast<u32>(plain), 0u, 0u);
}
";

#[test]
#[expect(clippy::cast_possible_truncation, reason = "rounding is intended")]
fn an_optimizer_multiplies_by_factors_beyond_f32() {
    let mut pairs: Vec<_> = numbers().into_iter().zip(numbers().into_iter().rev().map(f32::sqrt)).collect();
    // The exponents of the second numbers range from -64 to 63. The products of the last pairs are normal.
    pairs.extend(numbers().into_iter().map(|x| (-x, 1e19)));
    pairs.extend([(0.0, 1.0), (-0.0, 1.0), (1e-40, 1e19), (f32::MAX, 1.8e19), (-f32::MAX, -1.8e19)]);
    let pairs: Vec<_> = pairs.into_iter().map(|(x, y)| [x, y]).collect();
    let mut normal = 0;
    for ([x, y], [scaled, plain, ..]) in
        pairs.iter().zip(run(&[CLIP_RECORD_WGSL, OPTIMIZER].concat(), &pairs))
    {
        let [scaled, plain] = [scaled, plain].map(f32::from_bits);
        assert!(plain == x * y || (x * y).is_subnormal() || x.is_subnormal(), "{x} * {y} is {plain}");
        let expected = (f64::from(*x) * f64::from(*y) * (-200_f64).exp2()) as f32;
        // A subnormal product is rounded twice, or flushed.
        let off = scaled.to_bits().abs_diff(expected.to_bits());
        let is_tiny = expected.abs() < f32::MIN_POSITIVE;
        assert!(
            off <= u32::from(is_tiny) || is_tiny && scaled == 0.0,
            "{scaled:e}, not {expected:e}, of {x} and {y}"
        );
        normal += u32::from(!is_tiny);
    }
    assert!(normal > 100, "only {normal} products are normal");
}

/// The shader of an optimizer binds the record, in the encoder that writes it.
#[test]
fn a_shader_reads_the_record() {
    const SHADER: &str = "
        @group(0) @binding(0) var<uniform> record: ClipRecord;
        @group(0) @binding(1) var<storage, read_write> seen: array<f32>;
        @compute @workgroup_size(1) fn main() {
            seen[0] = record.total_norm;
            seen[1] = record.clip_coef;
            seen[2] = record.max_magnitude;
            seen[3] = select(0.0, 1.0, (record.flags & CLIP_RECORD_CLIPPED) != 0u);
            seen[4] = select(0.0, 1.0, (record.flags & CLIP_RECORD_NON_FINITE) != 0u);
        }";
    let gpu = gpu();
    let source = [CLIP_RECORD_WGSL, SHADER].concat();
    let seen = gpu.buffer(&[-1.0; 5]);
    for (gradient, expected) in [
        ([3.0, -4.0], [5.0, 0.2, 4.0, 1.0, 0.0]),
        ([0.3, -0.4], [0.5, 1.0, 0.4, 0.0, 0.0]),
        ([f32::INFINITY, 0.0], [f32::INFINITY, 0.0, f32::INFINITY, 1.0, 1.0]),
    ] {
        let placed = gpu.place_packed(&[gradient.to_vec()]);
        let plan =
            gpu.clipper.prepare(&placed.gradients(), Clip::by_global_norm(1.0).coefficient_only()).unwrap();
        let program = gpu.program(&source, &[plan.record_buffer().unwrap(), &seen]);
        gpu.submit(|encoder| {
            plan.encode(encoder);
            program.encode(encoder, 1);
        });
        for (seen, expected) in gpu.read::<f32>(&seen).into_iter().zip(expected) {
            assert!(seen == expected || (seen - expected).abs() < 1e-6, "{seen}, not {expected}");
        }
    }
}
