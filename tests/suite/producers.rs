//! Gradients that the kernel that produces them measures: the plan does not read them, and its bits are the same.

use gradclip::kernels::Producer;
use gradclip::{
    Clip, ClipPlan, ClipRecord, DType, Error, Gradient, GradientId, NormType, Parameter, Partials, wgpu,
};
use half::{bf16, f16};

use crate::common::gpu::{Gpu, Program};
use crate::common::numbers::noise;
use crate::{gpu, gpu_with};

/// A gradient, the kernel that copies it from a source, and its partials in a buffer that others share.
struct Produced {
    len: u64,
    dtype: DType,
    gradient: wgpu::Buffer,
    /// The first partial.
    first: u64,
    runs: u32,
    program: Program,
}

/// The kernel of a trainer: one workgroup produces a run. Its words come from `source`.
const KERNEL: &str = "
    @group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
    @group(0) @binding(1) var<storage, read_write> gradient: array<vec4<u32>>;
    @group(0) @binding(2) var<storage, read_write> partials: array<gradclip_Partial>;

    @compute @workgroup_size(gradclip_WORKGROUP_SIZE)
    fn backward(@builtin(workgroup_id) run: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
        let first = run.x * gradclip_WORKGROUP_SIZE * gradclip_VECTORS;
        var held: array<vec4<u32>, gradclip_VECTORS>;
        for (var k = 0u; k < gradclip_VECTORS; k += 1u) {
            let at = first + lane + k * gradclip_WORKGROUP_SIZE;
            if (at < arrayLength(&source)) {
                held[k] = source[at];
                gradient[at] = held[k];
            }
        }
        let in_run = PER_VECTOR * gradclip_WORKGROUP_SIZE * gradclip_VECTORS;
        let partial = gradclip_partial_of_run(lane, min(in_run, LENGTH - run.x * in_run), held);
        if (lane == 0u) {
            partials[FIRST + run.x] = partial;
        }
    }";

impl Produced {
    fn new(
        gpu: &Gpu,
        producer: Producer,
        numbers: &[f32],
        dtype: DType,
        partials: &wgpu::Buffer,
        first: u64,
    ) -> Self {
        let words: Vec<u32> = match dtype {
            DType::F16 => halves(numbers.iter().map(|&g| f16::from_f32(g).to_bits())),
            DType::BF16 => halves(numbers.iter().map(|&g| bf16::from_f32(g).to_bits())),
            _ => numbers.iter().map(|g| g.to_bits()).collect(),
        };
        // Whole vectors.
        let mut source = words;
        source.resize(source.len().next_multiple_of(4), 0);
        let (len, per_vector) = (numbers.len() as u64, 16 / dtype.size());
        let text = KERNEL.replace("PER_VECTOR", &format!("{per_vector}u"));
        let text = text.replace("LENGTH", &format!("{len}u")).replace("FIRST", &format!("{first}u"));
        let gradient = gpu.buffer_of(&vec![0_u32; source.len()]);
        let text = producer.wgsl().unwrap() + &text;
        let program = gpu.program(&text, &[&gpu.buffer_of(&source), &gradient, partials]);
        let runs = u32::try_from(len.div_ceil(producer.elements())).unwrap();
        Self { len, dtype, gradient, first, runs, program }
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        self.program.encode(encoder, self.runs);
    }

    fn gradient(&self) -> Gradient<'_> {
        Gradient::new(&self.gradient, self.dtype).elements(0..self.len)
    }
}

fn halves(bits: impl Iterator<Item = u16>) -> Vec<u32> {
    let bits: Vec<_> = bits.collect();
    bits.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 16).collect()
}

fn bytes(records: &[ClipRecord]) -> Vec<u8> {
    bytemuck::cast_slice(records).to_vec()
}

/// Contents of the gradients: ordinary, huge, tiny, with an infinity, with a NaN.
fn contents() -> Vec<(&'static str, Vec<Vec<f32>>)> {
    let plain = || vec![noise(1, 9000), noise(2, 13), noise(3, 4096), noise(4, 1)];
    let scaled = |scale: f32| plain().iter().map(|some| some.iter().map(|g| g * scale).collect()).collect();
    let with = |bad: f32| {
        let mut gradients = plain();
        gradients[2][4000] = bad;
        gradients
    };
    vec![
        ("plain", plain()),
        ("huge", scaled(1e30)),
        ("tiny", scaled(1e-38)),
        ("infinity", with(f32::INFINITY)),
        ("NaN", with(f32::NAN)),
        ("zeros", scaled(0.0)),
    ]
}

#[test]
fn produced_partials_have_the_bits_of_the_norm_pass() {
    let roomy = gpu_with(|_| {});
    let seven = gpu_with(|limits| limits.max_storage_buffers_per_shader_stage = 7);
    let clip = Clip::by_global_norm(1.0);
    for (gpu, dtype, clip) in [
        (&roomy, DType::F32, clip),
        (&roomy, DType::F16, clip.norm_type(NormType::L1)),
        (&roomy, DType::BF16, clip.tensor_stats()),
        (&seven, DType::F32, clip.norm_type(NormType::Inf).tensor_stats()),
        (&seven, DType::F16, clip.tensor_stats()),
        (&seven, DType::F32, Clip::by_norm(0.1).count_steps()),
    ] {
        let producer = Producer::new(clip, dtype).unwrap();
        for (name, numbers) in contents() {
            // One buffer holds the partials of all gradients but the last, out of order and with gaps.
            let partials = gpu.buffer_of(&vec![0_u32; 4096]);
            let firsts = [40, 7, 33, 90];
            let produced: Vec<_> = numbers
                .iter()
                .zip(firsts)
                .map(|(numbers, first)| Produced::new(gpu, producer, numbers, dtype, &partials, first))
                .collect();
            let declared: Vec<_> = produced
                .iter()
                .enumerate()
                .map(|(index, produced)| {
                    let at = produced.first * producer.partial_bytes();
                    let partials = Partials::new(&partials, producer.elements()).offset(at);
                    if index == 3 { produced.gradient() } else { produced.gradient().partials(partials) }
                })
                .collect();
            let plain: Vec<_> = produced.iter().map(Produced::gradient).collect();
            let [plain, declared] = [plain, declared].map(|list| gpu.clipper.prepare(&list, clip).unwrap());
            let run = |plan: &ClipPlan| {
                let (records, stats) = gpu.submit(|encoder| {
                    for produced in &produced {
                        produced.encode(encoder);
                    }
                    plan.encode(encoder);
                    (plan.read_back_all(encoder), plan.read_back_tensor_stats(encoder))
                });
                let after: Vec<Vec<u32>> =
                    produced.iter().map(|produced| gpu.read(&produced.gradient)).collect();
                let stats = stats.wait().unwrap_or_default();
                (bytes(&records.wait().unwrap()), bytemuck::cast_slice::<_, u8>(&stats).to_vec(), after)
            };
            let expected = run(&plain);
            for _ in 0..2 {
                assert!(run(&declared) == expected, "{name}, {dtype:?}, {clip:?}");
            }
        }
    }
}

/// With partials of every gradient, no dispatch of a clip reads a gradient.
#[test]
fn nothing_is_read_again() {
    let gpu = gpu();
    let clip = Clip::by_global_norm(1.0).coefficient_only();
    let producer = Producer::new(clip, DType::F32).unwrap();
    let partials = gpu.buffer_of(&[0_u32; 64]);
    let produced = Produced::new(gpu, producer, &[3.0, 4.0], DType::F32, &partials, 0);
    let gradient =
        produced.gradient().label("weight").partials(Partials::new(&partials, producer.elements()));
    let plan = gpu.clipper.prepare(&[gradient], clip).unwrap();
    assert_eq!(plan.dispatches(), 1);
    let step = |is_produced: bool| {
        let ticket = gpu.submit(|encoder| {
            if is_produced {
                produced.encode(encoder);
            }
            plan.encode(encoder);
            plan.read_back(encoder)
        });
        ticket.wait()
    };
    // A kernel that did not run is an error, before the first step and after it.
    let missing = Error::PartMissing { gradient: GradientId { index: 0, label: Some("weight".into()) } };
    assert_eq!(step(false), Err(missing.clone()));
    assert_eq!(step(true).unwrap().total_norm, 5.0);
    assert_eq!(step(false), Err(missing));
    assert_eq!(step(true).unwrap().total_norm, 5.0);
}

/// Other sizes of workgroups and runs give other bits, but the same norm.
#[test]
fn runs_may_have_any_length() {
    let gpu = gpu();
    let numbers = noise(5, 20_011);
    let clip = Clip::by_global_norm(1.0);
    for dtype in [DType::F32, DType::BF16] {
        for (workgroup_size, vectors) in [(256, 1), (64, 5), (32, 16), (1, 3), (128, 40)] {
            let producer = Producer::new(clip, dtype).unwrap().shape(workgroup_size, vectors);
            let partials = gpu.buffer_of(&vec![0_u32; 1 << 13]);
            let produced = Produced::new(gpu, producer, &numbers, dtype, &partials, 0);
            let declared = produced.gradient().partials(Partials::new(&partials, producer.elements()));
            let [plain, declared] = [produced.gradient(), declared]
                .map(|gradient| gpu.clipper.prepare(&[gradient], clip.coefficient_only()).unwrap());
            gpu.submit(|encoder| produced.encode(encoder));
            let [norm, expected] = [&declared, &plain].map(|plan| gpu.record(plan).total_norm);
            crate::assert_near(norm, expected);
        }
    }
}

/// Each row of a clip by row starts a new run.
#[test]
fn rows_have_partials_of_their_own() {
    let gpu = gpu();
    let clip = Clip::by_norm(1.0);
    let producer = Producer::new(clip, DType::F32).unwrap().shape(1, 1);
    let partials = gpu.buffer_of(&[0_u32; 64]);
    // Runs of 4 elements: two for each row of 8, which one dispatch produces.
    let numbers: Vec<f32> = (0..24_u8).map(f32::from).collect();
    let produced = Produced::new(gpu, producer, &numbers, DType::F32, &partials, 2);
    let declared = produced.gradient().rows(3).partials(Partials::new(&partials, 4).offset(16));
    let plan = gpu.clipper.prepare(&[declared], clip).unwrap();
    gpu.submit(|encoder| produced.encode(encoder));
    for (row, record) in gpu.records(&plan).iter().enumerate() {
        let squares: f64 = numbers[8 * row..8 * row + 8].iter().map(|g| f64::from(g * g)).sum();
        crate::assert_near(record.total_norm, squares.sqrt());
    }
}

#[test]
fn invalid_partials_are_errors() {
    let gpu = gpu();
    let clip = Clip::by_global_norm(1.0);
    let buffer = gpu.buffer(&[1.0; 100]);
    let partials = gpu.buffer_of(&[0_u32; 64]);
    let gradient = |at: u64| Gradient::f32(&buffer).elements(at..at + 50);
    let prepare = |first: Partials<'_>, second: Partials<'_>, clip| {
        let list = [gradient(0).partials(first).label("w"), gradient(50).partials(second)];
        gpu.clipper.prepare(&list, clip).map(|_| ()).unwrap_err().to_string()
    };
    let fine = Partials::new(&partials, 16).offset(128);
    let uniform = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 64,
        usage: wgpu::BufferUsages::UNIFORM,
        mapped_at_creation: false,
    });
    // A clip of all gradients together ignores columns.
    let columns = |clip| {
        let gradient = gradient(0).label("w").columns(2).partials(Partials::new(&partials, 16));
        gpu.clipper.prepare(&[gradient], clip).map(|_| ())
    };
    assert_eq!(columns(clip), Ok(()));
    assert_eq!(
        columns(Clip::by_norm(1.0)).unwrap_err().to_string(),
        "gradient 0 (\"w\") has partials and columns, but partials cover runs of a row, not columns"
    );
    for (first, clip, expected) in [
        (
            Partials::new(&partials, 0),
            clip,
            "the partials of gradient 0 (\"w\") have 0 elements each, but they need at least 1",
        ),
        (
            Partials::new(&partials, 16).offset(4),
            clip,
            "the partials of gradient 0 (\"w\"): its offset is 4 bytes, but it must be a multiple of 8",
        ),
        (
            Partials::new(&partials, 16).offset(8),
            clip.tensor_stats(),
            "the partials of gradient 0 (\"w\"): its offset is 8 bytes, but it must be a multiple of 16",
        ),
        // 50 elements have 4 partials of 16.
        (
            Partials::new(&partials, 16).offset(232),
            clip,
            "the partials of gradient 0 (\"w\"): its range is bytes 232..264, but it must not end before it begins, nor \
             past the 256 bytes of its buffer",
        ),
        (
            Partials::new(&partials, 1).offset(u64::MAX - 7),
            clip,
            "the partials of gradient 0 (\"w\"): its range is bytes 18446744073709551608..18446744073709551615, but it \
             must not end before it begins, nor past the 256 bytes of its buffer",
        ),
        (
            Partials::new(&uniform, 16),
            clip,
            "the partials of gradient 0 (\"w\"): its buffer was created with the usages BufferUsages(UNIFORM), but it \
             needs STORAGE",
        ),
        (
            Partials::new(&partials, 16),
            clip.norm_type(NormType::P(3.0)),
            "gradient 0 (\"w\") has partials, but only the L1, the L2 and the infinity norm can be computed from them",
        ),
        (
            Partials::new(&partials, 16).offset(104),
            clip,
            "the partials of one of gradients 0 (\"w\") and 1 overlap with the other, its parameter or its partials, in \
             bytes 128..136 of one buffer",
        ),
        (
            Partials::new(&buffer, 16).offset(200),
            clip,
            "the partials of one of gradients 0 (\"w\") and 1 overlap with the other, its parameter or its partials, in \
             bytes 200..232 of one buffer",
        ),
    ] {
        assert_eq!(prepare(first, fine, clip), expected);
    }
    // A clip that measures nothing does not read them.
    let list = [gradient(0).partials(Partials::new(&uniform, 0))];
    for clip in [Clip::by_value(0.5), Clip::by_supplied_norm(1.0)] {
        assert!(gpu.clipper.prepare(&list, clip).is_ok());
    }
    assert!(
        gpu.clipper.prepare(&[gradient(0).unmeasured().partials(Partials::new(&partials, 0))], clip).is_ok()
    );
}

/// A partial of the L2 norm, in its form in memory.
fn partial(sum: f32, largest: f32) -> [u32; 2] {
    [sum.to_bits(), !largest.to_bits()]
}

/// A clip of all gradients together ignores rows, and so does the check of their partials.
#[test]
fn rows_of_a_joint_norm_have_no_partials_of_their_own() {
    let gpu = gpu();
    let buffer = gpu.buffer(&[1.0; 128]);
    let partials = gpu.buffer_of(&[partial(64.0, 1.0); 2]);
    let list = [0, 1].map(|at| {
        let partials = Partials::new(&partials, 4096).offset(8 * at);
        Gradient::f32(&buffer).elements(64 * at..64 * at + 64).rows(64).partials(partials)
    });
    let plan = gpu.clipper.prepare(&list, Clip::by_global_norm(1.0)).unwrap();
    crate::assert_near(gpu.record(&plan).total_norm, 128_f64.sqrt());
}

/// The plan resets partials, which must not destroy a parameter.
#[test]
fn partials_in_a_parameter_are_an_error() {
    let gpu = gpu();
    let (one, other) = (gpu.buffer(&[3.0; 4]), gpu.buffer(&[3.0; 4]));
    let arena = gpu.buffer(&[1.0; 64]);
    let parameter = |range| Parameter::f32(&arena).elements(range);
    // A gradient of few elements shares a part of the parameter of another.
    for (offset, overlap) in [(0, Some("0..8")), (8, Some("8..16")), (16, None), (64, None)] {
        let list = [
            Gradient::f32(&one).parameter(parameter(0..4)),
            Gradient::f32(&other)
                .elements(0..1)
                .parameter(parameter(1..2))
                .partials(Partials::new(&arena, 4).offset(offset)),
        ];
        let prepared = gpu.clipper.prepare(&list, Clip::by_parameter_norm(0.01, 1e-3));
        let message = prepared.map(|_| ()).map_err(|error| error.to_string());
        let Some(bytes) = overlap else {
            assert_eq!(message, Ok(()));
            continue;
        };
        let message = message.unwrap_err();
        assert!(
            message.ends_with(&format!("its parameter or its partials, in bytes {bytes} of one buffer")),
            "{message}"
        );
    }
}

/// Kernels leave the partials of a gradient, but not those of its parameter. A limit without its norm would be that of the floor.
#[test]
fn parameters_that_were_not_measured_are_an_error() {
    let gpu = gpu();
    let (buffer, parameters) = (gpu.buffer(&[3.0, 4.0]), gpu.buffer(&[30.0, 40.0]));
    let clip = Clip::by_parameter_norm(0.01, 1e-3);
    for in_part in [false, true] {
        let partials = gpu.buffer_of(&[partial(25.0, 4.0); 2]);
        let gradient = Gradient::f32(&buffer)
            .parameter(Parameter::f32(&parameters))
            .partials(Partials::new(&partials, 4096).offset(8));
        let gradient = if in_part { gradient.part(0) } else { gradient };
        let plan = gpu.clipper.prepare(&[gradient], clip).unwrap();
        let ticket = gpu.submit(|encoder| {
            plan.encode_record(encoder).unwrap();
            plan.encode_scale(encoder);
            plan.read_back(encoder)
        });
        assert_eq!(ticket.wait(), Err(Error::PartMissing { gradient: 0.into() }));
        assert_eq!(gpu.read::<f32>(&buffer), [3.0, 4.0]);
    }
    let partials = gpu.buffer_of(&partial(25.0, 4.0));
    let gradient = Gradient::f32(&buffer)
        .parameter(Parameter::f32(&parameters))
        .partials(Partials::new(&partials, 4096));
    let plan = gpu.clipper.prepare(&[gradient], clip).unwrap();
    crate::assert_near(gpu.record(&plan).clip_coef, 0.1);
}

/// Each buffer with partials takes a binding.
#[test]
fn too_many_buffers_with_partials_are_an_error() {
    let gpu = gpu();
    let buffers: Vec<_> = (0..4).map(|_| (gpu.buffer(&[1.0; 4]), gpu.buffer_of(&[0_u32; 4]))).collect();
    let list = |count: usize| -> Vec<_> {
        buffers[..count]
            .iter()
            .map(|(gradient, partials)| Gradient::f32(gradient).partials(Partials::new(partials, 4)))
            .collect()
    };
    let clip = Clip::by_global_norm(1.0);
    assert!(gpu.clipper.prepare(&list(3), clip).is_ok());
    let error = gpu.clipper.prepare(&list(4), clip).unwrap_err();
    let name = "max_storage_buffers_per_shader_stage";
    assert_eq!(
        error,
        Error::DeviceLimit { what: "the number of buffers with partials", name, needed: 12, allowed: 8 }
    );
    let least = gpu_with(|limits| limits.max_storage_buffers_per_shader_stage = 4);
    let (gradient, partials) = (least.buffer(&[1.0; 4]), least.buffer_of(&[0_u32; 4]));
    let one = [Gradient::f32(&gradient).partials(Partials::new(&partials, 4))];
    let error = least.clipper.prepare(&one, clip).unwrap_err();
    assert!(matches!(error, Error::DeviceLimit { needed: 6, allowed: 5, .. }), "{error:?}");
}

#[test]
fn invalid_producers_are_errors() {
    let clip = Clip::by_global_norm(1.0);
    let producer = |clip| Producer::new(clip, DType::F32).map(|_| ());
    assert_eq!(producer(Clip::by_global_norm(-1.0)), Err(Error::MaxNorm { given: -1.0 }));
    let given = NormType::P(0.5);
    assert_eq!(producer(clip.norm_type(given)), Err(Error::NormType { given }));
    for (clip, name) in
        [(Clip::by_value(1.0), "Clip::by_value"), (Clip::by_supplied_norm(1.0), "Clip::by_supplied_norm")]
    {
        assert_eq!(producer(clip), Err(Error::NeedsNorm { what: "a producer", clip: name }));
    }
    let producer = Producer::new(clip, DType::F16).unwrap();
    for (workgroup_size, vectors) in [(0, 1), (96, 1), (2048, 1), (64, 0), (64, 1025)] {
        let error = Error::Producer { workgroup_size, vectors };
        assert_eq!(producer.shape(workgroup_size, vectors).wgsl(), Err(error));
    }
    assert_eq!(producer.shape(u32::MAX, u32::MAX).elements(), u64::MAX);
}

/// The JavaScript tests have no crate to ask for the code of a producer, so they keep a copy.
#[test]
fn the_copy_of_the_javascript_tests_is_current() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/js/test/support");
    if !std::fs::exists(folder).unwrap() {
        // The published crate comes without the npm package.
        return;
    }
    let l2 = Clip::by_global_norm(1.0);
    let entry = |name: &str, clip: Clip, dtype: DType| {
        let producer = Producer::new(clip, dtype).unwrap();
        let wgsl = producer.wgsl().unwrap();
        assert!(!wgsl.contains(['`', '$', '\\']), "a template literal must quote it");
        let [elements, bytes] = [producer.elements(), producer.partial_bytes()];
        format!("\n  {name}: {{ elements: {elements}, partialBytes: {bytes}, wgsl: `\n{wgsl}` }},")
    };
    let text = "// Code of `kernels::Producer`, and the elements of its runs. A test of the crate in producers.rs checks this copy.\n"
        .to_owned()
        + "export const producers = {"
        + &entry("f32", l2, DType::F32)
        + &entry("f16WithStats", l2.tensor_stats(), DType::F16)
        + "\n};\n";
    let path = format!("{folder}/producer.js");
    if std::fs::read_to_string(&path).is_ok_and(|copy| copy == text) {
        return;
    }
    let current = concat!(env!("CARGO_TARGET_TMPDIR"), "/producer.js");
    std::fs::write(current, text).unwrap();
    panic!("{path} is not current: replace it with {current}");
}
