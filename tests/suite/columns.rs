//! Gradients with columns: the same outcome as rows of the transposed matrix.

use gradclip::slices::{DeviceChoice, SliceClipper};
use gradclip::{Clip, ClipRecord, DType, Error, Gradient, NormType, Parameter, cpu, wgpu};
use half::bf16;

use crate::common::gpu::{Gpu, adapters, least_limits};
use crate::common::numbers::{bits, noise};
use crate::common::placement::Placement;
use crate::{gpu, gpu_with};

/// Numbers of rows and columns: several blocks of rows and of columns, and several chunks of the CPU path.
const SHAPES: [(usize, usize); 4] = [(1000, 300), (40_000, 3), (70, 2001), (2, 3000)];

/// Several blocks that have fewer rows, since the matrix is wide.
const WIDE: (usize, usize) = (140, 16_385);

fn transposed(rows: usize, matrix: &[f32]) -> Vec<f32> {
    let columns = matrix.len() / rows;
    (0..matrix.len()).map(|at| matrix[at % rows * columns + at / rows]).collect()
}

fn clips() -> [Clip; 4] {
    [
        Clip::by_norm(0.5),
        Clip::by_rms(0.25).loss_scale(2.0),
        Clip::by_norm(0.5).norm_type(NormType::L1),
        Clip::by_norm(0.5).norm_type(NormType::P(3.0)),
    ]
}

/// On the CPU a column has the bits of a row, for every number of chunks and of threads.
#[test]
fn columns_have_the_bits_of_rows_on_the_cpu() {
    for (rows, columns) in SHAPES {
        let matrix = noise(3, rows * columns);
        for clip in clips() {
            let mut by_columns = matrix.clone();
            let mut by_rows = transposed(rows, &matrix);
            let clipped =
                cpu::clip(&mut [cpu::Gradient::f32(&mut by_columns).columns(columns)], clip).unwrap();
            let expected = cpu::clip(&mut [cpu::Gradient::f32(&mut by_rows).rows(columns)], clip).unwrap();
            assert!(clipped == expected, "{rows} x {columns}, {clip:?}");
            assert!(
                bits(&[transposed(rows, &by_columns)]) == bits(&[by_rows]),
                "{rows} x {columns}, {clip:?}"
            );
        }
    }
}

/// On the GPU the sums have another order; 16-bit elements and a start at an odd element included.
#[test]
fn columns_agree_with_rows_on_the_gpu() {
    let gpu = gpu();
    for (rows, columns) in SHAPES.into_iter().chain([WIDE]) {
        let clips = if (rows, columns) == WIDE { clips()[..1].to_vec() } else { clips().to_vec() };
        for dtype in [DType::F32, DType::BF16] {
            let matrix: Vec<_> =
                noise(4, rows * columns).iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            let clip =
                |gradient: Vec<f32>, split: &dyn for<'a> Fn(Gradient<'a>) -> Gradient<'a>, clip: Clip| {
                    let placement = Placement::packed(&[(dtype, gradient.len())]);
                    let placed = gpu.place_typed(&placement, &[dtype], &[gradient]);
                    let gradients: Vec<_> = placed.gradients().into_iter().map(split).collect();
                    let plan = gpu.clipper.prepare(&gradients, clip).unwrap();
                    (gpu.records(&plan), placed.read(gpu).swap_remove(0))
                };
            for &options in &clips {
                let (records, after) =
                    clip(matrix.clone(), &|gradient| gradient.columns(columns as u64), options);
                let (expected, after_rows) =
                    clip(transposed(rows, &matrix), &|gradient| gradient.rows(columns as u64), options);
                let is_near = |a: f32, b: f32| (a - b).abs() <= 1e-5 * b.abs();
                let agrees = |(a, b): (&ClipRecord, &ClipRecord)| {
                    is_near(a.total_norm, b.total_norm)
                        && is_near(a.factor, b.factor)
                        && (a.max_magnitude, a.clipped(), a.non_finite())
                            == (b.max_magnitude, b.clipped(), b.non_finite())
                };
                assert_eq!((records.len(), expected.len()), (columns, columns));
                assert!(
                    records.iter().zip(&expected).all(agrees),
                    "{rows} x {columns}, {dtype:?}, {options:?}"
                );
                // A factor that differs in its last bits may round to the next bf16.
                let ulp = if dtype == DType::F32 { 1e-5 } else { 0.01 };
                let after = transposed(rows, &after);
                let agrees = |(a, b): (&f32, &f32)| (a - b).abs() <= ulp * b.abs();
                assert!(
                    after.iter().zip(&after_rows).all(agrees),
                    "{rows} x {columns}, {dtype:?}, {options:?}"
                );
            }
        }
    }
}

/// The statistics are those of the whole gradient.
#[test]
fn columns_do_not_change_the_statistics() {
    let gpu = gpu();
    let mut matrix = noise(5, 600 * 7);
    (matrix[3], matrix[9], matrix[4000]) = (0.0, f32::NAN, f32::INFINITY);
    let other = noise(6, 50);
    for norm_type in [NormType::L2, NormType::Inf, NormType::P(0.0)] {
        let clip = Clip::by_norm(0.5).norm_type(norm_type).tensor_stats();
        let buffers = [&matrix, &other].map(|gradient| gpu.buffer(gradient));
        let stats = |columns: u64| {
            let gradients = [Gradient::f32(&buffers[1]), Gradient::f32(&buffers[0]).columns(columns)];
            let plan = gpu.clipper.prepare(&gradients, clip.coefficient_only()).unwrap();
            let ticket = gpu.submit(|encoder| {
                plan.encode(encoder);
                plan.read_back_tensor_stats(encoder)
            });
            ticket.wait().unwrap()
        };
        let on_cpu = |columns| {
            let (mut one, mut matrix) = (other.clone(), matrix.clone());
            let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
            plan.clip(&mut [cpu::Gradient::f32(&mut one), cpu::Gradient::f32(&mut matrix).columns(columns)])
                .unwrap();
            plan.tensor_stats().to_vec()
        };
        for (split, whole) in [(stats(7), stats(1)), (on_cpu(7), on_cpu(1))] {
            assert_eq!(split.len(), 2);
            for (split, whole) in split.iter().zip(&whole) {
                assert_eq!((split.zeros, split.non_finite), (whole.zeros, whole.non_finite));
                assert_eq!(split.max_magnitude.to_bits(), whole.max_magnitude.to_bits());
                let is_near = (split.norm - whole.norm).abs() <= 1e-5 * whole.norm;
                assert!(is_near || split.norm.to_bits() == whole.norm.to_bits(), "{split:?}, {whole:?}");
            }
        }
    }
}

/// The parts of a plan measure columns with the bits of the plain plan. A part that is not measured is an error.
#[test]
fn columns_are_measured_in_parts() {
    const COLUMNS: [u64; 4] = [7, 1, 300, 2];
    fn list<'a>(
        buffers: &'a [wgpu::Buffer; 4],
        weights: &'a [wgpu::Buffer; 4],
        parts: Option<[usize; 4]>,
    ) -> Vec<Gradient<'a>> {
        let gradient = |index: usize| {
            let parameter = Parameter::f32(&weights[index]);
            let gradient = Gradient::f32(&buffers[index]).columns(COLUMNS[index]).parameter(parameter);
            parts.map_or(gradient.clone(), |parts| gradient.part(parts[index]))
        };
        (0..4).map(gradient).collect()
    }
    // Several banks of partials, and one.
    let tight = gpu_with(|limits| limits.max_storage_buffers_per_shader_stage = 4);
    for gpu in [gpu(), &tight] {
        for norm_type in [NormType::L2, NormType::P(3.0)] {
            let clip = Clip::by_parameter_norm(0.1, 1e-3).norm_type(norm_type);
            let numbers = [noise(10, 600 * 7), noise(11, 50), noise(12, 3 * 300), noise(13, 90)];
            let [weights, plain, parted] = [-1.0, 1.0, 1.0].map(|sign| {
                numbers.each_ref().map(|some| gpu.buffer(&some.iter().map(|x| sign * x).collect::<Vec<_>>()))
            });
            let whole = gpu.clipper.prepare(&list(&plain, &weights, None), clip).unwrap();
            let plan = gpu.clipper.prepare(&list(&parted, &weights, Some([1, 0, 0, 1])), clip).unwrap();
            let expected = gpu.records(&whole);
            assert!(expected.iter().all(ClipRecord::clipped));
            let measure = |parts: &[usize]| {
                let ticket = gpu.submit(|encoder| {
                    for &part in parts {
                        plan.encode_part(encoder, part).unwrap();
                    }
                    plan.encode_record(encoder).unwrap();
                    plan.read_back_all(encoder)
                });
                ticket.wait()
            };
            assert_eq!(measure(&[0]), Err(Error::PartMissing { gradient: 0.into() }));
            assert_eq!(measure(&[1, 0]).as_ref(), Ok(&expected), "{norm_type:?}");
            assert_eq!(measure(&[1]), Err(Error::PartMissing { gradient: 1.into() }));
            assert_eq!(measure(&[0, 1]).as_ref(), Ok(&expected), "{norm_type:?}");
            gpu.submit(|encoder| plan.encode_scale(encoder));
            for (parted, plain) in parted.iter().zip(&plain) {
                assert!(gpu.read::<u32>(parted) == gpu.read::<u32>(plain), "{norm_type:?}");
            }
        }
    }
}

/// Host slices have columns on both devices.
#[test]
fn host_slices_have_columns() {
    let matrix = noise(7, 30 * 11);
    let weight = noise(8, 30 * 11);
    let clip = Clip::by_parameter_norm(0.1, 1e-3);
    let clipped = [DeviceChoice::Cpu, DeviceChoice::Gpu].map(|choice| {
        let mut gradient = matrix.clone();
        let parameter = cpu::Parameter::f32(&weight);
        let mut gradients = [cpu::Gradient::f32(&mut gradient).columns(11).parameter(parameter)];
        let clipped = SliceClipper::new(&choice).unwrap().clip(&mut gradients, clip).unwrap();
        assert_eq!(clipped.record.len(), 11);
        gradient
    });
    assert_ne!(clipped[0], matrix);
    for (a, b) in clipped[0].iter().zip(&clipped[1]) {
        assert!((a - b).abs() <= 1e-5 * a.abs());
    }
}

/// A block of rows must fit into a binding.
#[test]
fn a_binding_must_hold_a_block_of_rows() {
    let gpu = Gpu::open(&adapters()[0], least_limits());
    let buffer = gpu.buffer(&noise(9, 100 * 700));
    let prepare =
        |columns| gpu.clipper.prepare(&[Gradient::f32(&buffer).columns(columns)], Clip::by_norm(1.0));
    prepare(250).unwrap();
    assert!(matches!(prepare(700), Err(Error::DeviceLimit { what: "a clip of columns", .. })));
}
