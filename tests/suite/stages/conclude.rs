//! Stage `conclude`, and the finalize stage that does the same for a single record: steps that are counted and skipped, and a
//! loss scale on the device.

use gradclip::loss_scale::LossScale;
use gradclip::stats::StepCounts;
use gradclip::{AutoClip, Clip, ClipRecord, DType, Error, Gradient, NonFinite, ZClip, cpu, wgpu};

use crate::common::gpu::Gpu;
use crate::{gpu, gpu_with};

/// Returns the gradients of a step, which are in two groups.
fn grouped(step: u16) -> [f32; 3] {
    let odd = if step % 5 == 4 { f32::NAN } else { f32::from(step) };
    [0.25 * f32::from(step), 2.0, odd]
}

#[test]
fn the_device_counts_the_steps_of_each_record() {
    let gpu = gpu();
    let buffer = gpu.writable(12);
    let gradient = |at| Gradient::new(&buffer, DType::F32).elements(at..at + 1);
    let gradients = [gradient(0), gradient(1), gradient(2).group(1)];
    for clips in [vec![Clip::by_global_norm(2.5); 2], vec![Clip::by_norm(2.5); 2]] {
        let counting: Vec<_> = clips.iter().map(|clip| clip.count_steps()).collect();
        let plan = gpu.clipper.prepare_groups(&gradients, &counting).unwrap();
        let without = gpu.clipper.prepare_groups(&gradients, &clips).unwrap();
        assert_eq!(plan.dispatches(), without.dispatches() + 1);
        let mut on_cpu = cpu::ClipPlan::new(&clips).unwrap();
        let mut by_hand = vec![StepCounts::default(); plan.records()];
        for step in 0..17 {
            let mut numbers = grouped(step);
            gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&numbers));
            for (counts, record) in by_hand.iter_mut().zip(gpu.records(&plan)) {
                counts.add(&record);
            }
            let [a, b, c] = numbers.each_mut().map(|number| cpu::Gradient::f32(std::slice::from_mut(number)));
            on_cpu.clip(&mut [a, b, c.group(1)]).unwrap();
        }
        let counts = gpu.submit(|encoder| plan.read_back_step_counts(encoder)).wait().unwrap();
        assert_eq!(counts, by_hand);
        assert_eq!(counts, on_cpu.step_counts());
        assert_eq!((counts[0].steps, counts.last().unwrap().non_finite), (17, 3));

        plan.set_step_counts(&gpu.queue, &vec![StepCounts::default(); plan.records()]).unwrap();
        let counts = gpu.submit(|encoder| {
            plan.encode_norm(encoder);
            plan.read_back_step_counts(encoder)
        });
        assert_eq!(counts.wait().unwrap()[0].steps, 1);
    }
}

/// The outcome of the same steps on both paths.
struct Both {
    records: Vec<Vec<ClipRecord>>,
    counts: Vec<StepCounts>,
    /// The loss scale after each step.
    scales: Vec<f32>,
    after: Vec<Vec<f32>>,
}

/// Runs steps on both paths, each gradient of one element in the group of its index, and checks that they agree.
fn on_both(gpu: &Gpu, clips: &[Clip], steps: &[Vec<f32>]) -> Both {
    let elements = steps[0].len();
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 4 * elements as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let group = |index: usize| index.min(clips.len() - 1);
    let gradient =
        |index| Gradient::f32(&buffer).elements(index as u64..index as u64 + 1).group(group(index));
    let gradients: Vec<_> = (0..elements).map(gradient).collect();
    let plan = gpu.clipper.prepare_groups(&gradients, clips).unwrap();
    let mut on_cpu = cpu::ClipPlan::new(clips).unwrap();
    let is_dynamic = on_cpu.loss_scale().is_some();
    let mut both = Both { records: Vec::new(), counts: Vec::new(), scales: Vec::new(), after: Vec::new() };
    for numbers in steps {
        gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(numbers));
        let (records, counts, scale) = gpu.submit(|encoder| {
            plan.encode(encoder);
            let scale = is_dynamic.then(|| plan.read_back_loss_scale(encoder));
            (plan.read_back_all(encoder), plan.read_back_step_counts(encoder), scale)
        });
        both.records.push(records.wait().unwrap());
        both.counts = counts.wait().unwrap();
        if let Some(scale) = scale {
            let scale = scale.wait().unwrap();
            both.scales.push(scale.scale());
            on_cpu_step(&mut on_cpu, numbers, &both, &gpu.read(&buffer), group);
            assert_eq!(on_cpu.loss_scale(), Some(&scale));
        } else {
            on_cpu_step(&mut on_cpu, numbers, &both, &gpu.read(&buffer), group);
        }
        both.after.push(gpu.read(&buffer));
    }
    both
}

fn on_cpu_step(
    plan: &mut cpu::ClipPlan,
    numbers: &[f32],
    both: &Both,
    on_gpu: &[f32],
    group: impl Fn(usize) -> usize,
) {
    let mut after = numbers.to_vec();
    let mut gradients: Vec<_> = after
        .iter_mut()
        .enumerate()
        .map(|(index, number)| cpu::Gradient::f32(std::slice::from_mut(number)).group(group(index)))
        .collect();
    let records = plan.clip(&mut gradients).unwrap();
    let bytes = |records: &[ClipRecord]| bytemuck::cast_slice::<_, u8>(records).to_vec();
    assert_eq!(
        bytes(both.records.last().unwrap()),
        bytes(&records),
        "{:?}, not {records:?}",
        both.records.last()
    );
    assert_eq!(both.counts, plan.step_counts());
    let bits = |numbers: &[f32]| -> Vec<u32> {
        // NaNs may differ in sign and payload.
        numbers.iter().map(|number| if number.is_nan() { f32::NAN } else { *number }.to_bits()).collect()
    };
    assert_eq!(bits(on_gpu), bits(&after));
}

/// Devices on which one record is concluded by finalize, and by a stage of its own.
fn with_and_without_room() -> [Gpu; 2] {
    [gpu_with(|_| {}), gpu_with(|limits| limits.max_storage_buffers_per_shader_stage = 5)]
}

#[test]
fn a_single_record_is_concluded_without_a_dispatch() {
    let [roomy, tight] = with_and_without_room();
    for (gpu, more) in [(roomy, 0), (tight, 1)] {
        // Larger than a small clip, which is a single dispatch.
        let buffer = gpu.writable(5 * 4 * 4096);
        let dispatches = |clip| gpu.clipper.prepare(&[Gradient::f32(&buffer)], clip).unwrap().dispatches();
        let clip = Clip::by_global_norm(1.0);
        let plain = dispatches(clip);
        for clip in [
            clip.count_steps(),
            clip.skip_above(10.0),
            clip.dynamic_loss_scale(LossScale::default()).skip_above(5.0).max_consecutive_skips(2),
        ] {
            assert_eq!(dispatches(clip), plain + more);
            assert_eq!(dispatches(clip.tensor_stats()), plain + more + 1);
        }
    }
}

#[test]
fn steps_above_the_second_limit_are_skipped_up_to_a_number_in_a_row() {
    let norms =
        [0.5, 3.0, 11.0, 12.0, 13.0, 14.0, 9.0, f32::INFINITY, 20.0, f32::NAN, 21.0, 22.0, 10.0, 3e38];
    let steps: Vec<_> = norms.iter().map(|&norm| vec![norm]).collect();
    let clip = Clip::by_global_norm(2.0).skip_above(10.0);
    for gpu in &with_and_without_room() {
        for (clip, skipped) in [
            // With the default policy, an infinity or a NaN is no reason to skip.
            (clip, vec![2, 3, 4, 5, 8, 10, 11, 13]),
            (clip.max_consecutive_skips(2), vec![2, 3, 5, 8, 10, 13]),
            (clip.max_consecutive_skips(1).non_finite(NonFinite::Skip), vec![2, 4, 7, 8, 9, 11, 13]),
        ] {
            let both = on_both(gpu, &[clip], &steps);
            for (step, (records, after)) in both.records.iter().zip(&both.after).enumerate() {
                assert_eq!(records[0].skip(), skipped.contains(&step), "step {step} of {clip:?}");
                if records[0].skip() {
                    assert_eq!(records[0].factor, 1.0);
                    assert_eq!(after[0].to_bits(), norms[step].to_bits());
                } else if norms[step].is_finite() {
                    assert!(after[0] <= 2.0);
                }
            }
            let [counts] = both.counts[..] else { panic!("one record") };
            assert_eq!((counts.steps, counts.skipped as usize), (14, skipped.len()));
            assert_eq!(counts.taken() as usize, 14 - skipped.len());
        }
    }
}

#[test]
fn each_record_is_skipped_on_its_own() {
    let steps = [vec![1.0, 50.0], vec![60.0, 2.0], vec![7.0, 8.0]];
    for clips in
        [vec![Clip::by_norm(4.0).skip_above(20.0)], vec![Clip::by_global_norm(4.0).skip_above(20.0); 2]]
    {
        let both = on_both(gpu(), &clips, &steps);
        let skips: Vec<Vec<bool>> =
            both.records.iter().map(|records| records.iter().map(ClipRecord::skip).collect()).collect();
        assert_eq!(skips, [[false, true], [true, false], [false, false]]);
        assert_eq!(both.counts.iter().map(StepCounts::taken).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(both.after[1][0], 60.0);
    }
}

#[test]
fn a_norm_beyond_f32_exceeds_every_second_limit() {
    let gpu = gpu();
    for (limit, is_skipped) in [(3e38, true), (f32::INFINITY, false)] {
        let buffer = gpu.buffer(&[3e38; 4]);
        let clip = Clip::by_global_norm(1.0).skip_above(limit);
        let record = gpu.record(&gpu.clipper.prepare(&[Gradient::f32(&buffer)], clip).unwrap());
        assert_eq!((record.skip(), record.total_norm), (is_skipped, f32::INFINITY));
        let mut gradient = [3e38; 4];
        assert_eq!(cpu::clip(&mut [cpu::Gradient::f32(&mut gradient)], clip).unwrap(), [record]);
    }
}

/// The states of `torch.amp.GradScaler`, by its rule in f64: a scale, and the good steps since it last changed.
fn grad_scaler(overflows: &[bool], mut scale: f64, growth: f64, backoff: f64, interval: u32) -> Vec<f64> {
    let mut tracker = 0;
    let mut after = |&overflow: &bool| {
        tracker = if overflow { 0 } else { tracker + 1 };
        if overflow {
            scale *= backoff;
        } else if tracker == interval {
            tracker = 0;
            scale *= growth;
        }
        scale
    };
    overflows.iter().map(&mut after).collect()
}

#[test]
fn a_loss_scale_on_the_device_follows_grad_scaler() {
    let overflows: Vec<bool> = (0..60).map(|step| [0, 1, 7, 20, 33, 34, 58].contains(&step)).collect();
    // Exact, so that f32 has the values of f64.
    let expected = grad_scaler(&overflows, 65536.0, 2.0, 0.5, 4);
    assert_eq!((expected[1], expected[59]), (16384.0, 65536.0 * 2.0_f64.powi(12 - 7)));
    let options = LossScale::default().growth(2.0, 4).unwrap();
    for gpu in &with_and_without_room() {
        for clips in [
            vec![Clip::by_global_norm(1.0)],
            vec![Clip::by_global_norm(1.0); 2],
            vec![Clip::by_norm(1.0)],
            vec![Clip::by_global_norm(9.0).z_clip(ZClip { warm_up: 3, ..ZClip::default() })],
            vec![Clip::by_global_norm(9.0).auto_clip(AutoClip::default())],
        ] {
            let mut scale = 65536.0_f32;
            let mut steps = Vec::new();
            for (&overflow, &next) in overflows.iter().zip(&expected) {
                // The second gradient overflows. The loss, and so the gradients, are scaled.
                steps.push(vec![3.0 * scale, if overflow { f32::INFINITY } else { 4.0 * scale }]);
                #[expect(clippy::cast_possible_truncation, reason = "a power of two")]
                let next = next as f32;
                scale = next;
            }
            let clips: Vec<_> = clips.iter().map(|clip| clip.dynamic_loss_scale(options)).collect();
            let both = on_both(gpu, &clips, &steps);
            assert_eq!(both.scales.iter().copied().map(f64::from).collect::<Vec<_>>(), expected);
            for (records, &overflow) in both.records.iter().zip(&overflows) {
                assert_eq!(records.last().unwrap().skip(), overflow);
                assert!(records.iter().all(|record| !record.scale_at_floor()));
                if !overflow {
                    assert_eq!(records[0].total_norm, if records.len() == 1 { 5.0 } else { 3.0 });
                }
            }
            let last = both.counts.last().unwrap();
            assert_eq!((last.steps, last.skipped, last.taken()), (60, 7, 53));
        }
    }
}

/// Scales that are no powers of two are multiplied and inverted to the same bits on both paths, and stop at the floor with a word.
#[test]
fn a_loss_scale_stops_at_its_floor_and_stays_finite() {
    let scale =
        LossScale::new(1e6).unwrap().growth(1.7, 2).unwrap().backoff(0.3).unwrap().floor(0.7).unwrap();
    let growing = LossScale::new(1e38).unwrap().growth(1.9, 1).unwrap();
    for gpu in &with_and_without_room() {
        let mut steps = vec![vec![f32::NAN]; 14];
        steps.extend(vec![vec![2.0]; 9]);
        let clip = Clip::by_global_norm(1.0).dynamic_loss_scale(scale);
        let both = on_both(gpu, &[clip], &steps);
        let at_floor: Vec<_> = both.records.iter().map(|records| records[0].scale_at_floor()).collect();
        let expected: Vec<_> = (0..23).map(|step| (11..14).contains(&step)).collect();
        assert_eq!(at_floor, expected);
        assert_eq!((both.scales[11], both.scales[13], both.scales[14]), (0.7, 0.7, 0.7));
        assert!(both.scales[22] > 4.0);

        let clip = Clip::by_global_norm(1.0).dynamic_loss_scale(growing);
        let both = on_both(gpu, &[clip], &vec![vec![1e38]; 4]);
        assert_eq!(both.scales, [1.9e38_f32, 1.9e38, 1.9e38, 1.9e38]);
    }
}

#[test]
fn a_loss_scale_is_saved_restored_and_bound() {
    let gpu = gpu();
    let buffer = gpu.buffer(&[f32::INFINITY]);
    let gradients = [Gradient::f32(&buffer)];
    let clip = Clip::by_global_norm(1.0);
    let plan = gpu.clipper.prepare(&gradients, clip.dynamic_loss_scale(LossScale::default())).unwrap();
    let before = gpu.submit(|encoder| plan.read_back_loss_scale(encoder)).wait().unwrap();
    assert_eq!(before, LossScale::default());
    let restored = LossScale::new(1000.0).unwrap().backoff(0.25).unwrap().growth(3.0, 77).unwrap();
    plan.set_dynamic_loss_scale(&gpu.queue, restored).unwrap();
    gpu.record(&plan);
    let after = gpu.submit(|encoder| plan.read_back_loss_scale(encoder)).wait().unwrap();
    assert_eq!((after.scale(), after.state().interval), (250.0, 77));

    // A shader of the caller reads the scale and the count.
    let output = gpu.buffer(&[0.0; 2]);
    let shader = [
        gradclip::loss_scale::LOSS_SCALE_WGSL,
        gradclip::stats::STEP_COUNTS_WGSL,
        "@group(0) @binding(0) var<storage, read> loss_scale: LossScale;
         @group(0) @binding(1) var<storage, read> counts: array<StepCounts>;
         @group(0) @binding(2) var<storage, read_write> output: array<f32>;
         @compute @workgroup_size(1) fn main() {
             output[0] = loss_scale.scale;
             output[1] = f32(step_counts_taken(counts[0]));
         }",
    ]
    .concat();
    let [scale, counts] = [plan.loss_scale_buffer(), plan.step_counts_buffer()].map(Option::unwrap);
    let program = gpu.program(&shader, &[scale, counts, &output]);
    gpu.submit(|encoder| program.encode(encoder, 1));
    assert_eq!(gpu.read::<f32>(&output), [250.0, 0.0]);
    assert!(scale.usage().contains(wgpu::BufferUsages::UNIFORM));

    let what = "set_loss_scale";
    assert_eq!(plan.set_loss_scale(&gpu.queue, 2.0), Err(Error::DynamicLossScale { what }));
    let what = "copy_inverse_loss_scale";
    let number = gpu.buffer(&[1.0]);
    let copied = plan.copy_inverse_loss_scale(&mut gpu.encoder(), &number, 0);
    assert_eq!(copied, Err(Error::DynamicLossScale { what }));
    let fixed = gpu.clipper.prepare(&gradients, clip.loss_scale(2.0)).unwrap();
    let none = Error::NotEnabled { what: "dynamic loss scale", with: "dynamic_loss_scale" };
    assert_eq!(fixed.set_dynamic_loss_scale(&gpu.queue, restored), Err(none.clone()));
    assert_eq!(gpu.submit(|encoder| fixed.read_back_loss_scale(encoder)).wait(), Err(none.clone()));
    assert!(fixed.loss_scale_buffer().is_none() && fixed.step_counts_buffer().is_none());
    let mut on_cpu = cpu::ClipPlan::new(&[clip]).unwrap();
    assert_eq!(on_cpu.set_dynamic_loss_scale(restored), Err(none));
    let mut on_cpu = cpu::ClipPlan::new(&[clip.dynamic_loss_scale(restored)]).unwrap();
    assert_eq!(on_cpu.set_loss_scale(2.0), Err(Error::DynamicLossScale { what: "set_loss_scale" }));
}

/// A norm that nobody has supplied is no step.
#[test]
fn a_missing_norm_changes_no_state() {
    let gpu = gpu();
    let buffer = gpu.buffer(&[8.0]);
    let scale = LossScale::new(4.0).unwrap().growth(2.0, 1).unwrap();
    let clip = Clip::by_supplied_norm(1.0).dynamic_loss_scale(scale);
    let plan = gpu.clipper.prepare(&[Gradient::f32(&buffer)], clip).unwrap();
    let state = || {
        let (scale, counts) = gpu.submit(|encoder| {
            plan.encode(encoder);
            (plan.read_back_loss_scale(encoder), plan.read_back_step_counts(encoder))
        });
        (scale.wait().unwrap().scale(), counts.wait().unwrap()[0].steps)
    };
    assert_eq!(state(), (4.0, 0));
    plan.supply_norm(&gpu.queue, 2.0).unwrap();
    assert_eq!(state(), (8.0, 1));
}
