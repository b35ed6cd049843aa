//! Plans whose gradients move: all state stays on the device.

use gradclip::loss_scale::LossScale;
use gradclip::{
    AutoClip, Clip, ClipPlan, DType, Error, Gradient, NonFinite, Parameter, Partials, ZClip, cpu, wgpu,
};

use crate::common::gpu::Gpu;
use crate::{gpu, gpu_with};

/// The gradients of a step, in new buffers; every other step in one buffer, in reversed order.
struct Moved(Vec<(wgpu::Buffer, u64)>);

impl Moved {
    fn new(gpu: &Gpu, numbers: [f32; 2], step: usize) -> Self {
        if step.is_multiple_of(2) {
            return Self(numbers.map(|number| (gpu.buffer(&[number]), 0)).into());
        }
        let arena = gpu.buffer(&[0.0, numbers[1], 0.0, numbers[0]]);
        Self(vec![(arena.clone(), 3), (arena, 1)])
    }

    fn gradients(&self) -> Vec<Gradient<'_>> {
        let mut gradients = Vec::new();
        for (group, (buffer, at)) in self.0.iter().enumerate() {
            gradients.push(Gradient::f32(buffer).elements(*at..at + 1).group(group));
        }
        gradients
    }

    fn contents(&self, gpu: &Gpu) -> Vec<f32> {
        self.0.iter().map(|(buffer, at)| gpu.read::<f32>(buffer)[usize::try_from(*at).unwrap()]).collect()
    }
}

#[test]
fn state_stays_when_gradients_move() {
    let gpu = gpu();
    let numbers = [[1.0, 2.0], [1.5, 1.0], [0.5, f32::NAN], [30.0, 1.1], [1.2, 40.0], [2.0, 2.0], [0.1, 9.0]];
    let scale = LossScale::new(4.0).unwrap().growth(2.0, 2).unwrap();
    let skip = |clip: Clip| clip.non_finite(NonFinite::Skip).count_steps().tensor_stats();
    for clip in [
        skip(Clip::by_global_norm(9.0).z_clip(ZClip { warm_up: 2, ..ZClip::default() })),
        skip(Clip::by_norm(9.0).auto_clip(AutoClip { percentile: 50.0, window: 3 })),
        Clip::by_global_norm(0.5)
            .dynamic_loss_scale(scale)
            .skip_above(5.0)
            .max_consecutive_skips(1)
            .tensor_stats(),
    ] {
        let groups = [clip; 2];
        let first = Moved::new(gpu, [0.0; 2], 0);
        let mut plan = gpu.clipper.prepare_groups(&first.gradients(), &groups).unwrap();
        let record_buffer = plan.record_buffer().unwrap().clone();
        let mut on_cpu = cpu::ClipPlan::new(&groups).unwrap();
        // Limits that are set on the plan stay, too.
        plan.set_max_norms(&gpu.queue, &[0.8, 0.9]).unwrap();
        on_cpu.set_max_norms(&[0.8, 0.9]).unwrap();
        for (step, numbers) in numbers.into_iter().enumerate() {
            let moved = Moved::new(gpu, numbers, step);
            plan.rebind(&moved.gradients()).unwrap();
            let (records, counts) = gpu.submit(|encoder| {
                plan.encode(encoder);
                (plan.read_back_all(encoder), plan.read_back_step_counts(encoder))
            });
            let mut after = numbers;
            let [a, b] = after.each_mut().map(|number| cpu::Gradient::f32(std::slice::from_mut(number)));
            let expected = on_cpu.clip(&mut [a, b.group(1)]).unwrap();
            for (record, expected) in records.wait().unwrap().iter().zip(expected) {
                if !record.non_finite() {
                    crate::assert_near(record.clip_coef, expected.clip_coef);
                }
                assert_eq!(
                    (record.skip(), record.total_norm.to_bits()),
                    (expected.skip(), expected.total_norm.to_bits())
                );
            }
            assert_eq!(counts.wait().unwrap(), on_cpu.step_counts(), "step {step} of {clip:?}");
            for (number, expected) in moved.contents(gpu).into_iter().zip(after) {
                assert!(
                    (number.is_nan() && expected.is_nan()) || (number - expected).abs() <= 1e-5,
                    "{number}"
                );
            }
        }
        assert_eq!(plan.record_buffer(), Some(&record_buffer), "other shaders have bound it");
        if let Some(scale) = on_cpu.loss_scale() {
            assert_eq!(&gpu.submit(|encoder| plan.read_back_loss_scale(encoder)).wait().unwrap(), scale);
        }
    }
}

/// The plan of one buffer needs other bindings than that of many, but the bits are the same.
#[test]
fn any_layout_has_the_same_bits() {
    let gpu = gpu_with(|limits| limits.max_storage_buffers_per_shader_stage = 6);
    let numbers: Vec<Vec<f32>> =
        (0..9).map(|seed| crate::common::numbers::noise(seed, 700 * (seed as usize + 1))).collect();
    let clip = Clip::by_global_norm(0.25);
    let separate = || -> Vec<wgpu::Buffer> { numbers.iter().map(|some| gpu.buffer(some)).collect() };
    let expected = separate();
    let list: Vec<_> = expected.iter().map(Gradient::f32).collect();
    let record = gpu.record(&gpu.clipper.prepare(&list, clip).unwrap());

    let arena = gpu.buffer(&numbers.concat());
    let mut end = 0;
    let in_arena: Vec<_> = numbers
        .iter()
        .map(|some| {
            end += some.len() as u64;
            Gradient::f32(&arena).elements(end - some.len() as u64..end)
        })
        .collect();
    let mut plan = gpu.clipper.prepare(&in_arena, clip).unwrap();
    assert_eq!(gpu.record(&plan), record);
    let moved = separate();
    plan.rebind(&moved.iter().map(Gradient::f32).collect::<Vec<_>>()).unwrap();
    assert_eq!(gpu.record(&plan), record);
    // Many buffers need other tables than one.
    let fresh = gpu.clipper.prepare(&moved.iter().map(Gradient::f32).collect::<Vec<_>>(), clip).unwrap();
    assert_eq!(plan.scratch_bytes(), fresh.scratch_bytes());
    let arena: Vec<f32> = gpu.read(&arena);
    for (moved, expected) in [&moved, &expected]
        .map(|all| all.iter().flat_map(|buffer| gpu.read::<f32>(buffer)).collect::<Vec<_>>())
        .into_iter()
        .zip([&arena, &arena])
    {
        assert!(&moved == expected);
    }
}

#[test]
fn a_clip_by_value_moves_with_its_loss_scale() {
    let gpu = gpu();
    let (one, other) = (gpu.buffer(&[8.0, 0.5]), gpu.buffer(&[0.25, 8.0]));
    let mut plan = gpu.clipper.prepare(&[Gradient::f32(&one)], Clip::by_value(1.0).loss_scale(2.0)).unwrap();
    plan.set_loss_scale(&gpu.queue, 0.5).unwrap();
    let scratch_bytes = plan.scratch_bytes();
    plan.rebind(&[Gradient::f32(&other)]).unwrap();
    assert_eq!(plan.scratch_bytes(), scratch_bytes);
    gpu.submit(|encoder| plan.encode(encoder));
    assert_eq!([gpu.read::<f32>(&one), gpu.read(&other)], [[8.0, 0.5], [0.5, 1.0]]);
}

#[test]
fn another_list_is_an_error_and_changes_nothing() {
    let gpu = gpu();
    let clip = Clip::by_parameter_norm(0.1, 1e-3);
    let (buffer, parameters) = (gpu.buffer(&[3.0; 8]), gpu.buffer(&[1.0; 8]));
    let partials = gpu.buffer_of(&[0_u32; 8]);
    let parameter = Parameter::f32(&parameters).elements(0..4);
    let fine = || Gradient::f32(&buffer).elements(0..4).parameter(parameter.clone()).label("w");
    let mut plan = gpu.clipper.prepare_groups(&[fine()], &[clip; 2]).unwrap();
    let halves = Gradient::new(&buffer, DType::F16).elements(0..4).parameter(parameter.clone());
    let shorter = Gradient::f32(&buffer).elements(4..6).parameter(Parameter::f32(&parameters).elements(0..2));
    for (given, expected) in [
        (vec![], "0 gradients were given, but the plan was prepared for 1"),
        (vec![shorter], "gradient 0: its number of elements is 2, but the plan was prepared for 4"),
        (vec![halves], "gradient 0: its element type is f16, but the plan was prepared for f32"),
        (vec![fine().group(1)], "gradient 0 (\"w\"): its group is 1, but the plan was prepared for 0"),
        (
            vec![fine().rows(2)],
            "gradient 0 (\"w\"): its number of rows is 2, but the plan was prepared for 1",
        ),
        (
            vec![fine().columns(2)],
            "gradient 0 (\"w\"): its number of columns is 2, but the plan was prepared for 1",
        ),
        (
            vec![fine().unscaled()],
            "gradient 0 (\"w\"): its share in the scaling is false, but the plan was prepared for true",
        ),
        (
            vec![fine().partials(Partials::new(&partials, 4))],
            "gradient 0 (\"w\"): its length of partials is 4, but the plan was prepared for none",
        ),
        (
            vec![fine().elements(0..9)],
            "gradient 0 (\"w\"): its range is bytes 0..36, but it must not end before it begins, nor past the 32 bytes of \
             its buffer",
        ),
    ] {
        assert_eq!(plan.rebind(&given).unwrap_err().to_string(), expected);
    }
    let foreign = gpu_with(|_| {});
    let elsewhere = foreign.buffer(&[1.0; 4]);
    let moved = [Gradient::f32(&elsewhere).parameter(parameter.clone())];
    assert!(matches!(plan.rebind(&moved), Err(Error::BufferRejected { gradient: Some(_), .. })));
    let record = gpu.record(&plan);
    assert_eq!(record.total_norm, 6.0, "the old gradients are still bound");
    assert_eq!(gpu.read::<f32>(&buffer)[4..], [3.0; 4]);
}

/// A gradient in parts stays in its part; the partials of the old buffers do not count.
#[test]
fn parts_move_between_steps() {
    let gpu = gpu();
    let buffers: Vec<_> = [3.0, 4.0, 6.0, 8.0].map(|number| gpu.buffer(&[number])).into();
    let list = |first: usize| -> Vec<Gradient<'_>> {
        buffers[first..first + 2]
            .iter()
            .enumerate()
            .map(|(part, buffer)| Gradient::f32(buffer).part(part))
            .collect()
    };
    let mut plan = gpu.clipper.prepare(&list(0), Clip::by_global_norm(1.0).coefficient_only()).unwrap();
    let record = |plan: &ClipPlan, parts: &[usize]| {
        let ticket = gpu.submit(|encoder| {
            for &part in parts {
                plan.encode_part(encoder, part).unwrap();
            }
            plan.encode_record(encoder).unwrap();
            plan.read_back(encoder)
        });
        ticket.wait()
    };
    assert_eq!(record(&plan, &[0, 1]).unwrap().total_norm, 5.0);
    gpu.submit(|encoder| plan.encode_part(encoder, 0)).unwrap();
    plan.rebind(&list(2)).unwrap();
    assert_eq!(record(&plan, &[1]), Err(Error::PartMissing { gradient: 0.into() }));
    assert_eq!(record(&plan, &[0, 1]).unwrap().total_norm, 10.0);
    // Without parts there would be none to encode.
    let one = |part: bool| {
        let gradient = Gradient::f32(&buffers[0]);
        if part { gradient.part(0) } else { gradient }
    };
    for part in [false, true] {
        let mut plan = gpu.clipper.prepare(&[one(part)], Clip::by_global_norm(1.0)).unwrap();
        let error = plan.rebind(&[one(!part)]).unwrap_err();
        assert!(matches!(error, Error::RebindMismatch { what: "number of parts", .. }), "{error}");
        assert_eq!(plan.parts(), usize::from(part));
    }
}
