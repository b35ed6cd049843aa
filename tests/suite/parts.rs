//! Gradients that are measured in parts: the bits of the plain plan, whatever the order, and no stale part.

use gradclip::loss_scale::LossScale;
use gradclip::stats::TensorStats;
use gradclip::{Clip, ClipPlan, ClipRecord, DType, Error, Gradient, NormType, Parameter, wgpu};

use crate::common::gpu::Gpu;
use crate::common::numbers::noise;
use crate::{gpu, gpu_with};

/// The buffers of a model: f32, f16 and bf16, several tiles, odd lengths.
struct Model {
    buffers: Vec<(wgpu::Buffer, DType)>,
    parameters: Vec<wgpu::Buffer>,
}

impl Model {
    fn new(gpu: &Gpu) -> Self {
        let lens =
            [(5000, DType::F32), (7, DType::F16), (4096, DType::BF16), (1, DType::F32), (9001, DType::F16)];
        let buffers = lens.iter().enumerate().map(|(seed, &(len, dtype))| {
            let numbers = noise(u32::try_from(seed).unwrap(), len);
            let buffer = match dtype {
                // An odd number of 16-bit elements needs a whole last word.
                DType::F16 => {
                    gpu.buffer_of(&padded(numbers.iter().map(|&g| half::f16::from_f32(g).to_bits())))
                }
                DType::BF16 => {
                    gpu.buffer_of(&padded(numbers.iter().map(|&g| half::bf16::from_f32(g).to_bits())))
                }
                _ => gpu.buffer(&numbers),
            };
            (buffer, dtype)
        });
        let parameters = lens
            .iter()
            .enumerate()
            .map(|(seed, &(len, _))| gpu.buffer(&noise(u32::try_from(seed).unwrap() + 9, len)));
        Self { buffers: buffers.collect(), parameters: parameters.collect() }
    }

    /// The gradients, with the part of each if there are parts.
    fn gradients(&self, parts: Option<[usize; 5]>) -> Vec<Gradient<'_>> {
        let lens = [5000, 7, 4096, 1, 9001];
        (0..5)
            .map(|index| {
                let (buffer, dtype) = &self.buffers[index];
                let parameter = Parameter::f32(&self.parameters[index]);
                let gradient = Gradient::new(buffer, *dtype)
                    .elements(0..lens[index])
                    .parameter(parameter)
                    .group(usize::from(index > 2))
                    .label(["a", "b", "c", "d", "e"][index]);
                parts.map_or(gradient.clone(), |parts| gradient.part(parts[index]))
            })
            .collect()
    }

    fn contents(&self, gpu: &Gpu) -> Vec<Vec<u32>> {
        self.buffers.iter().map(|(buffer, _)| gpu.read(buffer)).collect()
    }
}

fn padded(halves: impl Iterator<Item = u16>) -> Vec<u16> {
    let mut halves: Vec<_> = halves.collect();
    halves.resize(halves.len().next_multiple_of(2), 0);
    halves
}

fn bytes(records: &[ClipRecord]) -> Vec<u8> {
    bytemuck::cast_slice(records).to_vec()
}

fn read(gpu: &Gpu, plan: &ClipPlan) -> Result<Vec<ClipRecord>, Error> {
    gpu.submit(|encoder| plan.read_back_all(encoder)).wait()
}

#[test]
fn parts_have_the_bits_of_the_plain_plan_in_any_order() {
    let roomy = gpu_with(|_| {});
    let tight = gpu_with(|limits| limits.max_storage_buffers_per_shader_stage = 4);
    let clips = [
        Clip::by_global_norm(1.0),
        Clip::by_global_norm(1.0).norm_type(NormType::L1).tensor_stats(),
        Clip::by_global_norm(1.0).norm_type(NormType::P(3.0)).tensor_stats(),
        Clip::by_norm(0.5).norm_type(NormType::Inf).tensor_stats(),
        Clip::by_parameter_norm(0.01, 1e-3).count_steps(),
    ];
    for (gpu, clips) in [(&roomy, &clips[..]), (&tight, &clips[1..2])] {
        for &clip in clips {
            let (plain, in_parts) = (Model::new(gpu), Model::new(gpu));
            let groups = [clip; 2];
            let plan = gpu.clipper.prepare_groups(&plain.gradients(None), &groups).unwrap();
            let stats = |plan: &ClipPlan| -> Vec<TensorStats> {
                gpu.submit(|encoder| plan.read_back_tensor_stats(encoder)).wait().unwrap_or_default()
            };
            let records = gpu.records(&plan);
            let (after, plain_stats) = (plain.contents(gpu), stats(&plan));
            assert!(records.iter().any(ClipRecord::clipped), "{clip:?}");

            let parted =
                gpu.clipper.prepare_groups(&in_parts.gradients(Some([2, 0, 1, 1, 2])), &groups).unwrap();
            assert_eq!((plan.parts(), parted.parts()), (0, 3));
            // In one encoder, then over several submissions, with a part encoded twice, then without parts.
            let before = in_parts.contents(gpu);
            for order in [vec![0, 1, 2], vec![2, 0, 1], vec![1, 1, 0, 2, 1]] {
                gpu.submit(|encoder| {
                    for &part in &order {
                        parted.encode_part(encoder, part).unwrap();
                    }
                });
                gpu.submit(|encoder| parted.encode_record(encoder)).unwrap();
                assert_eq!(bytes(&read(gpu, &parted).unwrap()), bytes(&records), "{clip:?}, {order:?}");
                assert_eq!(stats(&parted), plain_stats);
            }
            for &part in &[2, 1, 0] {
                gpu.submit(|encoder| parted.encode_part(encoder, part)).unwrap();
            }
            assert!(in_parts.contents(gpu) == before);
            gpu.submit(|encoder| {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                parted.encode_part_in_pass(&mut pass, 1)?;
                parted.encode_record_in_pass(&mut pass)?;
                parted.encode_scale_in_pass(&mut pass);
                Ok::<_, Error>(())
            })
            .unwrap();
            assert_eq!(bytes(&read(gpu, &parted).unwrap()), bytes(&records));
            assert!(in_parts.contents(gpu) == after, "{clip:?}");
        }
    }
}

#[test]
fn a_plan_in_parts_is_encoded_whole_too() {
    let gpu = gpu();
    let (plain, in_parts) = (Model::new(gpu), Model::new(gpu));
    let clips = [Clip::by_global_norm(1.0); 2];
    let plan = gpu.clipper.prepare_groups(&plain.gradients(None), &clips).unwrap();
    let parted = gpu.clipper.prepare_groups(&in_parts.gradients(Some([0, 1, 2, 3, 4])), &clips).unwrap();
    for _ in 0..2 {
        assert_eq!(bytes(&gpu.records(&plan)), bytes(&gpu.records(&parted)));
        assert!(plain.contents(gpu) == in_parts.contents(gpu));
    }
}

/// A missing part is an error of the ticket. Nothing is scaled, no state changes, and the next step is whole again.
#[test]
fn a_missing_part_is_never_stale() {
    let gpu = gpu();
    let scale = LossScale::new(2.0).unwrap().growth(2.0, 1).unwrap();
    for clip in [
        Clip::by_global_norm(1.0).tensor_stats().count_steps(),
        Clip::by_global_norm(1.0).norm_type(NormType::P(3.0)).tensor_stats().dynamic_loss_scale(scale),
        Clip::by_norm(1.0).tensor_stats().dynamic_loss_scale(scale),
        Clip::by_parameter_norm(0.01, 1e-3).tensor_stats().count_steps(),
    ] {
        let model = Model::new(gpu);
        let plan = gpu.clipper.prepare_groups(&model.gradients(Some([0, 1, 1, 1, 0])), &[clip; 2]).unwrap();
        let counts = || gpu.submit(|encoder| plan.read_back_step_counts(encoder)).wait().unwrap();
        let missing = |label: &str, index| {
            Err(Error::PartMissing { gradient: gradclip::GradientId { index, label: Some(label.into()) } })
        };
        // Nothing was ever encoded; then only part 0; then only part 1; then the record again, without new parts.
        let steps: [(&[usize], _, _); 5] =
            [(&[], "a", 0), (&[0], "b", 1), (&[1], "a", 0), (&[0, 1], "", 9), (&[], "a", 0)];
        for (step, (parts, label, index)) in steps.into_iter().enumerate() {
            let (before, steps_before) = (model.contents(gpu), counts()[0].steps);
            gpu.submit(|encoder| {
                for &part in parts {
                    plan.encode_part(encoder, part).unwrap();
                }
                plan.encode_record(encoder)
            })
            .unwrap();
            let stats = gpu.submit(|encoder| plan.read_back_tensor_stats(encoder)).wait();
            if index == 9 {
                assert!(read(gpu, &plan).is_ok() && stats.is_ok(), "{clip:?}");
                assert_eq!(counts()[0].steps, steps_before + 1);
                continue;
            }
            assert_eq!(read(gpu, &plan), missing(label, index), "step {step} of {clip:?}");
            assert_eq!(stats, Err(Error::NothingMeasured));
            gpu.submit(|encoder| plan.encode_scale(encoder));
            let ticket = gpu.submit(|encoder| plan.read_back(encoder));
            assert_eq!(ticket.wait().map(|_| Vec::new()), missing(label, index));
            assert!(model.contents(gpu)[index] == before[index], "step {step} of {clip:?}");
        }
        if let Ok(scale) = gpu.submit(|encoder| plan.read_back_loss_scale(encoder)).wait() {
            assert_eq!(scale.scale(), 4.0, "one whole step: {clip:?}");
        }
    }
}

/// Another plan that copies the norm of such a record has no norm either.
#[test]
fn the_norm_of_a_missing_part_is_no_supplied_norm() {
    let gpu = gpu();
    let (one, other) = (gpu.buffer(&[3.0, 4.0]), gpu.buffer(&[6.0]));
    let gradients = [0_u8, 1].map(|part| {
        let at = u64::from(part);
        Gradient::f32(&one).elements(at..at + 1).part(part.into())
    });
    let measuring = gpu.clipper.prepare(&gradients, Clip::by_global_norm(1.0).coefficient_only()).unwrap();
    let scaling = gpu.clipper.prepare(&[Gradient::f32(&other)], Clip::by_supplied_norm(1.0)).unwrap();
    let step = |parts: &[usize]| {
        let ticket = gpu.submit(|encoder| {
            for &part in parts {
                measuring.encode_part(encoder, part).unwrap();
            }
            if !parts.is_empty() {
                measuring.encode_record(encoder).unwrap();
            }
            scaling.copy_norm(encoder, measuring.record_buffer().unwrap(), 0).unwrap();
            scaling.encode(encoder);
            scaling.read_back(encoder)
        });
        (ticket.wait().map(|record| record.total_norm), gpu.read::<f32>(&other)[0])
    };
    // Before the first step, with a part, and with both.
    assert_eq!(step(&[]), (Err(Error::NormNotSupplied), 6.0));
    assert_eq!(step(&[1]), (Err(Error::NormNotSupplied), 6.0));
    let (norm, after) = step(&[0, 1]);
    assert_eq!(norm, Ok(5.0));
    crate::assert_near(after, 6.0 / 5.000_001);
}

#[test]
fn parts_that_do_not_exist_are_errors() {
    let gpu = gpu();
    let buffer = gpu.buffer(&[1.0; 8]);
    let gradients =
        |part| [Gradient::f32(&buffer).elements(0..4), Gradient::f32(&buffer).elements(4..8).part(part)];
    let clip = Clip::by_global_norm(1.0);
    let plan = gpu.clipper.prepare(&gradients(1), clip).unwrap();
    let part = |plan: &ClipPlan, part| plan.encode_part(&mut gpu.encoder(), part);
    assert_eq!(part(&plan, 1), Ok(()));
    assert_eq!(part(&plan, 2), Err(Error::NoSuchPart { given: 2, parts: 2 }));
    for given in [2, usize::MAX] {
        let error = gpu.clipper.prepare(&gradients(given), clip).unwrap_err();
        assert_eq!(error, Error::Part { gradient: 1.into(), given, gradients: 2 });
    }
    let plain = gpu.clipper.prepare(&[Gradient::f32(&buffer)], clip).unwrap();
    assert_eq!(part(&plain, 0), Err(Error::NoSuchPart { given: 0, parts: 0 }));
    assert_eq!(plain.encode_record(&mut gpu.encoder()), Err(Error::NoSuchPart { given: 0, parts: 0 }));
    // Clips that measure nothing ignore parts.
    for clip in [Clip::by_value(0.5), Clip::by_supplied_norm(1.0)] {
        let plan = gpu.clipper.prepare(&gradients(1), clip).unwrap();
        assert_eq!((plan.parts(), part(&plan, 0)), (0, Err(Error::NoSuchPart { given: 0, parts: 0 })));
    }
}

/// Each part costs its own dispatches, and nothing else does.
#[test]
fn a_part_costs_one_dispatch() {
    let gpu = gpu();
    let buffers: Vec<_> = (0..6).map(|_| gpu.buffer(&[1.0; 64])).collect();
    let gradients = |parts: usize| -> Vec<_> {
        buffers.iter().enumerate().map(|(index, buffer)| Gradient::f32(buffer).part(index % parts)).collect()
    };
    let clip = Clip::by_global_norm(1.0);
    for parts in 1..6 {
        let plan = gpu.clipper.prepare(&gradients(parts), clip).unwrap();
        // The parts, the record, and the scale pass.
        assert_eq!(plan.dispatches(), parts + 2);
    }
}
