//! Square roots, reciprocals and products of a conclusion, rounded to nearest even by whatever adapter.
//!
//! A software adapter rounds its own to nearest, and would pass without any correction. So the estimates that the shader
//! corrects are spoiled here, by as much as WGSL lets a device be off.

use gradclip::CLIP_RECORD_WGSL;
use gradclip::wgpu::{self, BufferUsages, util::DeviceExt as _};

use crate::common::noise;
use crate::gpu;

const FUNCTIONS: &str =
    concat!(include_str!("../../shaders/float_bits.wgsl"), "\n", include_str!("../../shaders/exact.wgsl"));

/// What each invocation does with a pair of numbers.
const MAIN: &str = "
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> results: array<vec4<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < arrayLength(&pairs)) {
        let pair = pairs[id.x];
        let root = square_root(bitcast<f32>(pair.x));
        let significand = bitcast<f32>((pair.x & 0x7fffffu) | ONE);
        results[id.x] = vec4(
            bitcast<u32>(root),
            bitcast<u32>(reciprocal(significand)),
            nearest_f32(wide_product(wide(pair.x), wide(pair.y))),
            bitcast<u32>(significand),
        );
    }
}
";

/// The shader with estimates that are so many units in the last place too large.
fn spoiled(units: i32) -> String {
    let spoil = format!(
        "\nfn spoiled(estimate: f32) -> f32 {{ return bitcast<f32>(u32(i32(bitcast<u32>(estimate)) + {units}i)); }}\n"
    );
    let root = FUNCTIONS
        .replace("u32(sqrt(", "u32(spoiled(sqrt(")
        .replace("power_of_two(-23)) * power_of_two(23))", "power_of_two(-23))) * power_of_two(23))");
    let both = root.replace("u32(power_of_two(24) / value)", "u32(spoiled(power_of_two(24) / value))");
    assert_eq!(both.matches("spoiled(").count(), 2, "the shader computes its estimates in another way now");
    [&both, &spoil, MAIN].concat()
}

fn run(source: &str, pairs: &[[f32; 2]]) -> Vec<[u32; 4]> {
    let gpu = gpu();
    let pairs = gpu.buffer_of(pairs);
    let size = 2 * pairs.size();
    let results = gpu.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: None,
        contents: &vec![0; usize::try_from(size).unwrap()],
        usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC,
    });
    let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[
            wgpu::BindGroupEntry { binding: 0, resource: pairs.as_entire_binding() },
            wgpu::BindGroupEntry { binding: 1, resource: results.as_entire_binding() },
        ],
    });
    gpu.submit(|encoder| {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        pass.dispatch_workgroups(u32::try_from(size / 16).unwrap().div_ceil(64), 1, 1);
    });
    gpu.read(&results)
}

/// What an optimizer's shader multiplies by, that of a record whose factor is the second number times 2^-200.
const OPTIMIZER: &str = "
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> results: array<vec4<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < arrayLength(&pairs)) {
        let pair = pairs[id.x];
        var record: ClipRecord;
        record.factor_significand = bitcast<f32>((pair.y & 0x807fffffu) | 0x3f800000u);
        record.factor_exponent = i32((pair.y >> 23u) & 0xffu) - 127 - 200;
        let scaled = clip_record_scaled(record, bitcast<f32>(pair.x));
        record.factor = bitcast<f32>(pair.y);
        record.factor_exponent += 200;
        let plain = clip_record_scaled(record, bitcast<f32>(pair.x));
        results[id.x] = vec4(bitcast<u32>(scaled), bitcast<u32>(plain), 0u, 0u);
    }
}
";

/// Normal numbers above zero of every exponent: random ones, and those at the edges of a significand.
fn numbers() -> Vec<f32> {
    let edges = [0, 1, 2, 0x3f_ffff, 0x40_0000, 0x40_0001, 0x7f_fffe, 0x7f_ffff];
    let mut numbers = Vec::new();
    for exponent in 1..255_u32 {
        let random = noise(exponent, 24).into_iter().map(|x| x.to_bits() & 0x7f_ffff);
        numbers.extend(random.chain(edges).map(|significand| f32::from_bits(exponent << 23 | significand)));
    }
    numbers
}

#[test]
fn estimates_that_are_off_are_settled_to_the_last_bit() {
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
fn products_are_those_of_a_processor_with_subnormals() {
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
        // A significand is rounded first, and a subnormal product then once more.
        let off = found.to_bits().abs_diff(expected.to_bits());
        let most = u32::from(expected != 0.0 && expected.abs() < f32::MIN_POSITIVE);
        assert!(off <= most, "{x} * {y} is {found}, not {expected}");
    }
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
fn an_optimizer_applies_factors_that_f32_does_not_hold() {
    let mut pairs: Vec<_> = numbers().into_iter().zip(numbers().into_iter().rev().map(f32::sqrt)).collect();
    // The exponents of the second are from -64 to 63; the products of the last ones are normal.
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
    assert!(normal > 100, "{normal} products that are normal are no test");
}
