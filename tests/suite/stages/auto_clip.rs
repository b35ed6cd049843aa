//! Stage `auto_clip`: limits that are percentiles of the last norms.

use gradclip::stats::{NormWindow, StepCounts};
use gradclip::{
    AutoClip, Clip, ClipPlan, ClipRecord, DType, Epsilon, Error, Gradient, NonFinite, NormType, cpu, wgpu,
};

use crate::common::gpu::{Gpu, least_limits};
use crate::gpu;

/// `numpy.percentile` with linear interpolation, in f64.
fn numpy_percentile(norms: &[f32], percentile: f32) -> f64 {
    let mut sorted: Vec<f64> = norms.iter().copied().map(f64::from).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    let position = last as f64 * (f64::from(percentile) / 100.0);
    let share = position - position.floor();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of the window")]
    let index = position as usize;
    let low = sorted[index];
    let distance = sorted[last.min(index + 1)] - low;
    if share >= 0.5 { low + distance - distance * (1.0 - share) } else { low + distance * share }
}

/// The definition of the limit, in f64.
struct Reference {
    auto_clip: AutoClip,
    norms: Vec<f32>,
}

impl Reference {
    fn new(auto_clip: AutoClip) -> Self {
        Self { auto_clip, norms: Vec::new() }
    }

    /// Adds the norm of a step, and checks the coefficient of its record and the window after it.
    #[track_caller]
    fn check(&mut self, record: &ClipRecord, window: &NormWindow) {
        let norm = record.total_norm.min(f32::MAX);
        let mut expected = 1.0;
        if !record.non_finite() && norm > 0.0 {
            self.norms.push(norm);
            let surplus = self.norms.len().saturating_sub(self.auto_clip.window as usize);
            self.norms.drain(..surplus);
            let limit = numpy_percentile(&self.norms, self.auto_clip.percentile);
            // The reciprocal of a subnormal norm might overflow, so its coefficient is 1, as for any other limit.
            if limit < norm.into() && norm >= f32::MIN_POSITIVE {
                expected = limit / f64::from(norm);
            }
        }
        assert_eq!(window.norms, self.norms, "{:?}", self.auto_clip);
        let coef = f64::from(record.clip_coef);
        // Both the limit and the coefficient may be subnormal.
        let spacing = f64::from(f32::from_bits(1)) / f64::from(norm.max(f32::MIN_POSITIVE))
            + f64::from(f32::MIN_POSITIVE);
        let is_near = (coef - expected).abs() <= 1e-6 * expected + spacing;
        assert!(record.non_finite() || is_near, "{:?}: {coef}, not {expected}", self.auto_clip);
    }
}

/// A plan that clips a gradient of one element at every step.
trait Steps {
    /// Clips, and returns the record and the window after the step.
    fn step(&mut self, gradient: f32) -> (ClipRecord, NormWindow);

    fn restore(&mut self, window: &NormWindow);
}

impl Steps for cpu::ClipPlan {
    fn step(&mut self, gradient: f32) -> (ClipRecord, NormWindow) {
        let records = self.clip(&mut [cpu::Gradient::f32(&mut [gradient])]).unwrap();
        (records[0], self.norm_windows()[0].clone())
    }

    fn restore(&mut self, window: &NormWindow) {
        self.set_norm_windows(std::slice::from_ref(window)).unwrap();
    }
}

struct OnGpu {
    gpu: &'static Gpu,
    plan: ClipPlan,
    gradient: wgpu::Buffer,
}

impl OnGpu {
    fn new(clip: Clip) -> Self {
        let gpu = gpu();
        let gradient = gpu.writable(4);
        let plan = gpu.clipper.prepare(&[Gradient::new(&gradient, DType::F32)], clip).unwrap();
        Self { gpu, plan, gradient }
    }
}

impl Steps for OnGpu {
    fn step(&mut self, gradient: f32) -> (ClipRecord, NormWindow) {
        self.gpu.queue.write_buffer(&self.gradient, 0, bytemuck::bytes_of(&gradient));
        let (record, windows) = self.gpu.submit(|encoder| {
            self.plan.encode(encoder);
            (self.plan.read_back(encoder), self.plan.read_back_norm_windows(encoder))
        });
        (record.wait().unwrap(), windows.wait().unwrap().remove(0))
    }

    fn restore(&mut self, window: &NormWindow) {
        self.plan.set_norm_windows(&self.gpu.queue, std::slice::from_ref(window)).unwrap();
    }
}

fn clip(auto_clip: AutoClip) -> Clip {
    Clip::by_global_norm(f32::INFINITY).epsilon(Epsilon::None).auto_clip(auto_clip)
}

fn on_both_paths(clip: Clip) -> [Box<dyn Steps>; 2] {
    [Box::new(OnGpu::new(clip)), Box::new(cpu::ClipPlan::new(&[clip]).unwrap())]
}

/// Norms between 1 and 4, with ties, and a spike at every 17th step.
fn norms(len: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let norm = |step| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let uniform = (state >> 8) as f32 / (1 << 24) as f32;
        let norm = (2.0 * uniform).exp2();
        match step % 17 {
            // One of a few values.
            1..=5 => (4.0 * norm).round() / 4.0,
            16 => 1e5 * norm,
            _ => norm,
        }
    };
    (0..len).map(norm).collect()
}

/// Compares both paths with the f64 definition, and with each other.
#[track_caller]
fn check_steps(auto_clip: AutoClip, gradients: &[f32], start: &[f32]) {
    for mut steps in on_both_paths(clip(auto_clip)) {
        let mut reference = Reference::new(auto_clip);
        reference.norms = start.to_vec();
        steps.restore(&NormWindow { norms: start.to_vec() });
        for &gradient in gradients {
            let (record, window) = steps.step(gradient);
            reference.check(&record, &window);
        }
    }
}

#[test]
fn limits_are_the_percentiles_of_numpy() {
    for percentile in [0.0, 10.0, 99.9] {
        check_steps(AutoClip { percentile, window: 37 }, &norms(300), &[]);
    }
    for (percentile, window) in
        [(10.0, 1), (50.0, 1), (25.0, 2), (50.0, 3), (33.3, 11), (100.0, 7), (1e-4, 20), (90.0, 257)]
    {
        check_steps(AutoClip { percentile, window }, &norms(60), &[]);
    }
}

/// A sort of the largest window, which is full after a few steps and then wraps around.
#[test]
fn the_largest_window_is_sorted() {
    let all = norms(1060);
    for percentile in [10.0, 62.5] {
        let auto_clip = AutoClip { percentile, ..AutoClip::default() };
        assert_eq!(auto_clip.window, AutoClip::MAX_WINDOW);
        check_steps(auto_clip, &all[1015..], &all[..1015]);
    }
    // In order, in reverse order, and all equal.
    let rising: Vec<f32> = (1..=1024_u16).map(f32::from).collect();
    let falling: Vec<f32> = rising.iter().rev().copied().collect();
    for start in [&rising, &falling, &vec![3.0; 1024]] {
        check_steps(AutoClip::default(), &[2048.0, 0.5, 3.0, 700.0], start);
    }
}

/// Figures that were computed by hand: norms, and the limit of the last one.
#[test]
fn limits_are_those_of_a_calculation_by_hand() {
    let cases: [(f32, u32, &[f32], f32); 7] = [
        // The position is 1, which is a norm.
        (10.0, 11, &[20.0, 10.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 110.0], 20.0),
        // The position is 0.75: 1 + 0.75 · (2 - 1).
        (25.0, 4, &[4.0, 1.0, 2.0, 8.0], 1.75),
        // The position is 2.7: 3 + 0.7 · (100 - 3).
        (90.0, 1024, &[1.0, 2.0, 3.0, 100.0], 70.9),
        // Only 3, 8 and 9 are in the window.
        (50.0, 3, &[1.0, 1.0, 1.0, 8.0, 3.0, 9.0], 8.0),
        // The smallest norm, and the mean of two.
        (0.0, 5, &[5.0, 3.0, 4.0], 3.0),
        (50.0, 2, &[2.0, 7.0, 1.0, 6.0], 3.5),
        // Integers and fractions that f32 cannot hold exactly: 1 + 0.3 · (1e6 - 1).
        (30.0, 2, &[1.0, 1e6], 300_000.7),
    ];
    for (percentile, window, norms, limit) in cases {
        let auto_clip = AutoClip { percentile, window };
        for mut steps in on_both_paths(clip(auto_clip)) {
            let (record, _) = norms.iter().map(|&norm| steps.step(norm)).last().unwrap();
            let expected = limit / norms[norms.len() - 1];
            let is_near = (record.clip_coef - expected).abs() <= 5e-7 * expected;
            assert!(is_near && record.clipped(), "{auto_clip:?}, {norms:?}: {record:?}, not {expected}");
        }
        let mut state = NormWindow::default();
        let last = norms.iter().map(|&norm| auto_clip.limit(&mut state, norm)).last().unwrap();
        assert_eq!(last, Some(limit));
    }
}

/// A position that is an integer is a norm, however much larger the next one is.
#[test]
fn a_percentile_that_is_a_norm_is_exact() {
    for (percentile, last) in [(10.0, 10_u8), (30.0, 10), (70.0, 10), (20.0, 5), (12.5, 8), (3.125, 32)] {
        let position = percentile * f32::from(last) / 100.0;
        assert_eq!(position, position.round());
        let start: Vec<f32> =
            (0..last).map(|index| if f32::from(index) <= position { 1.5 } else { 1e30 }).collect();
        let auto_clip = AutoClip { percentile, window: 1024 };
        for mut steps in on_both_paths(clip(auto_clip)) {
            steps.restore(&NormWindow { norms: start.clone() });
            let (record, _) = steps.step(3e30);
            assert_eq!(record.clip_coef, 1.5 * 3e30_f32.recip(), "{auto_clip:?}");
        }
    }
}

#[test]
fn norms_that_do_not_exceed_their_percentile_have_no_limit() {
    let epsilon = Clip::by_global_norm(f32::INFINITY).auto_clip(AutoClip::default());
    for clip in [clip(AutoClip::default()), epsilon] {
        for mut steps in on_both_paths(clip) {
            // The first step, and constant norms. 49 · (1/49) is less than 1 in f32.
            for _ in 0..3 {
                let (record, _) = steps.step(49.0);
                assert!(!record.clipped() && record.clip_coef == 1.0, "{record:?}");
            }
            assert!(!steps.step(0.5).0.clipped());
            assert!(steps.step(49.5).0.clipped());
        }
    }
}

#[test]
fn zeros_and_non_finite_norms_do_not_enter_the_window() {
    let auto_clip = AutoClip { percentile: 50.0, window: 5 };
    let numbers =
        [0.0, -0.0, 2.0, f32::NAN, 0.0, 6.0, f32::INFINITY, f32::NEG_INFINITY, 4.0, 0.0, 0.0, 0.0, 7.0];
    check_steps(auto_clip, &numbers, &[]);
    let clip = clip(auto_clip).non_finite(NonFinite::Skip).count_steps();
    let (mut on_gpu, mut on_cpu) = (OnGpu::new(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    for steps in [&mut on_gpu as &mut dyn Steps, &mut on_cpu] {
        for number in numbers {
            let (record, _) = steps.step(number);
            assert_eq!(record.skip(), !number.is_finite());
            // 6 of 2 and 6, and 7 of 2, 4, 6 and 7; 4 is the median of 2, 4 and 6.
            assert_eq!(record.clipped(), !number.is_finite() || number >= 6.0, "{number}: {record:?}");
        }
        assert_eq!(steps.step(f32::NAN).1.norms, [2.0, 6.0, 4.0, 7.0]);
    }
    let counts = on_gpu.gpu.submit(|encoder| on_gpu.plan.read_back_step_counts(encoder));
    let expected = StepCounts {
        steps: 14,
        clipped: 6,
        non_finite: 4,
        skipped: 4,
        consecutive_skips: 0,
        largest_norm: 7.0,
    };
    assert_eq!((counts.wait().unwrap(), on_cpu.step_counts()), (vec![expected], &[expected][..]));
}

/// The 0-norm of an infinity is 1.
#[test]
fn non_finite_gradients_with_a_finite_norm_do_not_enter_the_window() {
    let clip = clip(AutoClip::default()).norm_type(NormType::P(0.0));
    for mut steps in on_both_paths(clip) {
        for number in [f32::INFINITY, f32::NAN] {
            let (record, window) = steps.step(number);
            assert_eq!((record.total_norm, window.norms), (1.0, vec![]));
        }
        assert_eq!(steps.step(5.0).1.norms, [1.0]);
    }
}

#[test]
fn norms_at_the_ends_of_f32_are_exact() {
    let tiny = [f32::from_bits(1), f32::from_bits(3), 1e-40, f32::MIN_POSITIVE];
    let start = [tiny[3], tiny[1], tiny[2], tiny[0]];
    // A limit that is subnormal, for norms that are not.
    for percentile in [0.0, 20.0, 40.0, 50.0, 55.0] {
        let auto_clip = AutoClip { percentile, window: 9 };
        check_steps(auto_clip, &[f32::MIN_POSITIVE, 2e-38, 3e-37], &start);
        for mut steps in on_both_paths(clip(auto_clip)) {
            steps.restore(&NormWindow { norms: start.to_vec() });
            let (record, window) = steps.step(4.0);
            assert_eq!(window.norms, [start[0], start[1], start[2], start[3], 4.0]);
            // The factor has an exponent of its own, so it has the precision of f32.
            let factor = f64::from(record.factor_significand) * f64::from(record.factor_exponent).exp2();
            let expected = numpy_percentile(&window.norms, percentile) / 4.0;
            // A subnormal limit has fewer bits.
            let spacing = f64::from(f32::from_bits(1)) / 4.0;
            assert!((factor - expected).abs() <= 1e-6 * expected + spacing, "{percentile}: {factor:e}");
        }
    }
    let huge = [f32::MAX, 3e38, f32::MAX, 1e38];
    for percentile in [0.0, 30.0, 50.0, 99.0] {
        check_steps(AutoClip { percentile, window: 9 }, &[f32::MAX, 3.1e38, 1.0, f32::MAX], &huge);
    }
    // From end to end.
    check_steps(AutoClip { percentile: 50.0, window: 2 }, &[f32::MAX, f32::MAX], &[f32::from_bits(1)]);
}

/// A norm beyond f32 enters the window as the largest f32, and is clipped.
#[test]
fn norms_beyond_f32_are_clipped() {
    let clip = clip(AutoClip { percentile: 50.0, window: 4 }).norm_type(NormType::P(0.5));
    let spike = [3e38_f32; 4];
    let gpu = gpu();
    let buffer = gpu.writable(16);
    let plan = gpu.clipper.prepare(&[Gradient::new(&buffer, DType::F32)], clip).unwrap();
    let mut on_cpu = cpu::ClipPlan::new(&[clip]).unwrap();
    // The norm is 16 times an element.
    for numbers in [[0.0625; 4], [0.125; 4], spike] {
        gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&numbers));
        let (record, windows) = gpu.submit(|encoder| {
            plan.encode(encoder);
            (plan.read_back(encoder), plan.read_back_norm_windows(encoder))
        });
        let mut after = numbers;
        let expected = on_cpu.clip(&mut [cpu::Gradient::f32(&mut after)]).unwrap()[0];
        assert_eq!(windows.wait().unwrap(), on_cpu.norm_windows());
        let record = record.wait().unwrap();
        assert!(!record.non_finite() && record.clipped() == expected.clipped());
        if numbers == spike {
            assert_eq!(on_cpu.norm_windows()[0].norms, [1.0, 2.0, f32::MAX]);
            for record in [record, expected] {
                let factor = f64::from(record.factor_significand) * f64::from(record.factor_exponent).exp2();
                let norm = 16.0 * f64::from(spike[0]) * factor;
                assert!((norm - 2.0).abs() < 1e-5, "the norm after clipping is the median, 2, not {norm}");
            }
        }
    }
}

/// Every few steps a new plan continues, as after a change of buffers, or the other path does.
#[test]
fn a_window_is_restored_in_a_new_plan_and_on_the_other_path() {
    let auto_clip = AutoClip { percentile: 30.0, window: 13 };
    let mut plans = on_both_paths(clip(auto_clip));
    let [mut gpu_uninterrupted, mut cpu_uninterrupted] = on_both_paths(clip(auto_clip));
    let mut window = NormWindow::default();
    for (step, &norm) in norms(60).iter().enumerate() {
        if step % 7 == 3 {
            plans = on_both_paths(clip(auto_clip));
        }
        let path = usize::from(step % 7 >= 5);
        plans[path].restore(&window);
        let (record, next) = plans[path].step(norm);
        window = next;
        let expected = [gpu_uninterrupted.step(norm), cpu_uninterrupted.step(norm)];
        assert_eq!((record, &window), (expected[path].0, &expected[0].1), "step {step}");
        assert_eq!(expected[0].1, expected[1].1, "step {step}");
    }
    // A shorter state, and one for a smaller window.
    let smaller = AutoClip { window: 4, ..auto_clip };
    check_steps(smaller, &norms(9), &window.norms[9..]);
    check_steps(smaller, &norms(9), &window.norms[12..]);
}

#[test]
fn the_smaller_limit_holds() {
    let auto_clip = AutoClip { percentile: 50.0, window: 8 };
    for mut steps in on_both_paths(Clip::by_global_norm(3.0).epsilon(Epsilon::None).auto_clip(auto_clip)) {
        // The medians are 8, 5, 8 and 8.5.
        for norm in [8.0_f32, 2.0, 9.0, 10.0] {
            let (record, _) = steps.step(norm);
            assert_eq!(record.clip_coef, f32::min(3.0 * norm.recip(), 1.0));
        }
        for norm in [1.0; 3] {
            assert!(!steps.step(norm).0.clipped());
        }
        assert_eq!(steps.step(16.0).0.clip_coef, 3.0 / 16.0, "the median is 5");
        assert_eq!(steps.step(0.5).1.norms, [2.0, 9.0, 10.0, 1.0, 1.0, 1.0, 16.0, 0.5]);
        // The median of 0.5, 1, 1, 1, 4, 9, 10 and 16 is 2.5.
        assert_eq!(steps.step(4.0).0.clip_coef, 2.5 / 4.0);
    }
}

/// Steps above a second limit are skipped, and their norms enter the window. The medians are 2, 101, 8 and 29.
#[test]
fn skipped_steps_enter_the_window() {
    let clip = clip(AutoClip { percentile: 50.0, window: 8 }).skip_above(100.0);
    for mut steps in on_both_paths(clip) {
        for (norm, is_skipped, coef) in
            [(2.0, false, 1.0), (200.0, true, 0.505), (8.0, false, 1.0), (50.0, false, 0.58)]
        {
            let (record, _) = steps.step(norm);
            assert!(record.skip() == is_skipped && (record.clip_coef - coef).abs() < 1e-6, "{record:?}");
            assert_eq!(record.factor, if is_skipped { 1.0 } else { record.clip_coef });
        }
        assert_eq!(steps.step(1.0).1.norms, [2.0, 200.0, 8.0, 50.0, 1.0]);
    }
}

/// A limit that is copied on the device may have any value.
#[test]
fn a_negative_limit_is_the_smaller_one() {
    let on_gpu = OnGpu::new(clip(AutoClip { percentile: 50.0, window: 8 }));
    let limit = on_gpu.gpu.buffer(&[-2.0]);
    let mut coefs = Vec::new();
    for norm in [4.0_f32, 16.0] {
        on_gpu.gpu.queue.write_buffer(&on_gpu.gradient, 0, bytemuck::bytes_of(&norm));
        let record = on_gpu.gpu.submit(|encoder| {
            on_gpu.plan.copy_max_norm(encoder, 0, &limit, 0).unwrap();
            on_gpu.plan.encode(encoder);
            on_gpu.plan.read_back(encoder)
        });
        coefs.push(record.wait().unwrap().clip_coef);
    }
    assert_eq!(coefs, [-0.5, -0.125]);
}

#[test]
fn norms_are_those_without_the_loss_scale() {
    let auto_clip = AutoClip { percentile: 50.0, window: 8 };
    for mut steps in on_both_paths(clip(auto_clip).loss_scale(1024.0)) {
        steps.step(1024.0);
        let (record, window) = steps.step(3.0 * 1024.0);
        assert_eq!(window.norms, [1.0, 3.0]);
        let is_near =
            (record.clip_coef - 2.0 / 3.0).abs() < 1e-6 && record.factor == record.clip_coef / 1024.0;
        assert!(is_near, "{record:?}");
    }
}

#[test]
fn supplied_norms_enter_the_window() {
    let clip = Clip::by_supplied_norm(100.0)
        .epsilon(Epsilon::None)
        .auto_clip(AutoClip { percentile: 50.0, window: 8 });
    let on_gpu = OnGpu::new(clip);
    let step = || {
        let (records, windows) = on_gpu.gpu.submit(|encoder| {
            on_gpu.plan.encode(encoder);
            (on_gpu.plan.read_back(encoder), on_gpu.plan.read_back_norm_windows(encoder))
        });
        (records.wait().map(|record| record.clip_coef), windows.wait().unwrap().remove(0).norms)
    };
    assert_eq!(step(), (Err(Error::NormNotSupplied), vec![]));
    let mut on_cpu = cpu::ClipPlan::new(&[clip]).unwrap();
    let mut norms = Vec::new();
    for (norm, coef) in [(2.0, 1.0), (f32::INFINITY, 0.0), (8.0, 0.625), (-1.0, f32::NAN), (0.0, 1.0)] {
        on_gpu.plan.supply_norm(&on_gpu.gpu.queue, norm).unwrap();
        let (given, window) = step();
        let record = on_cpu.clip_with_norm(&mut [cpu::Gradient::f32(&mut [1.0])], norm).unwrap()[0];
        norms.extend((norm > 0.0 && norm.is_finite()).then_some(norm));
        assert_eq!((&window, &on_cpu.norm_windows()[0].norms), (&norms, &norms));
        assert_eq!(given.unwrap().to_bits() & 0x7fff_ffff, coef.to_bits() & 0x7fff_ffff, "{norm}");
        assert_eq!(record.clip_coef.to_bits() & 0x7fff_ffff, coef.to_bits() & 0x7fff_ffff, "{norm}");
    }
}

/// Groups, gradients that are clipped on their own, and rows: one window for each record.
#[test]
fn each_record_has_its_own_window() {
    let (rows, len) = (301, 2);
    let auto_clip = AutoClip { percentile: 40.0, window: 3 };
    let by_norm = Clip::by_norm(f32::INFINITY).epsilon(Epsilon::None).auto_clip(auto_clip);
    let groups = [clip(auto_clip), Clip::by_global_norm(2.0).epsilon(Epsilon::None).auto_clip(auto_clip)];
    let all = norms(5 * rows * len + 5);
    let adapter = crate::common::gpu::adapters().remove(0);
    let small = Gpu::open(&adapter, least_limits());
    for gpu in [gpu(), &small] {
        let (table, bias) = (gpu.writable((4 * rows * len) as u64), gpu.writable(4));
        for clips in [&[by_norm][..], &groups] {
            let last = clips.len() - 1;
            let gradients = [
                Gradient::f32(&table).rows(if last == 0 { rows as u64 } else { 1 }),
                Gradient::f32(&bias).group(last),
            ];
            let plan = gpu.clipper.prepare_groups(&gradients, clips).unwrap();
            let mut on_cpu = cpu::ClipPlan::new(clips).unwrap();
            let mut references: Vec<_> = (0..plan.records()).map(|_| Reference::new(auto_clip)).collect();
            assert_eq!(references.len(), if last == 0 { rows + 1 } else { 2 });
            for (step, numbers) in all.chunks_exact(rows * len + 1).enumerate() {
                let (numbers, [other]) = numbers.split_at(rows * len) else { panic!("one more") };
                gpu.queue.write_buffer(&table, 0, bytemuck::cast_slice(numbers));
                gpu.queue.write_buffer(&bias, 0, bytemuck::bytes_of(other));
                let (records, windows) = gpu.submit(|encoder| {
                    plan.encode(encoder);
                    (plan.read_back_all(encoder), plan.read_back_norm_windows(encoder))
                });
                let (records, windows) = (records.wait().unwrap(), windows.wait().unwrap());
                let (mut numbers, mut other) = (numbers.to_vec(), [*other]);
                let rows = if last == 0 { rows } else { 1 };
                let expected = on_cpu
                    .clip(&mut [
                        cpu::Gradient::f32(&mut numbers).rows(rows),
                        cpu::Gradient::f32(&mut other).group(last),
                    ])
                    .unwrap();
                for (index, (record, window)) in records.iter().zip(&windows).enumerate() {
                    if last == 0 || index == 0 {
                        references[index].check(record, window);
                    } else {
                        assert!(record.clip_coef * record.total_norm < 2.000_001);
                    }
                    let (near, norm) = (&expected[index], &on_cpu.norm_windows()[index].norms);
                    assert!((record.clip_coef - near.clip_coef).abs() <= 2e-6 * near.clip_coef);
                    let is_near = |(one, other): (&f32, &f32)| (one - other).abs() <= 1e-6 * other;
                    assert!(
                        window.norms.len() == (step + 1).min(3) && window.norms.iter().zip(norm).all(is_near)
                    );
                }
            }
            // The states of all records are saved and restored.
            let windows = gpu.submit(|encoder| plan.read_back_norm_windows(encoder)).wait().unwrap();
            let other = gpu.clipper.prepare_groups(&gradients, clips).unwrap();
            other.set_norm_windows(&gpu.queue, &windows).unwrap();
            assert_eq!(gpu.submit(|encoder| other.read_back_norm_windows(encoder)).wait().unwrap(), windows);
        }
    }
}

#[test]
fn a_plan_without_records_has_no_windows() {
    let gpu = gpu();
    let clip = Clip::by_norm(1.0).auto_clip(AutoClip::default());
    let plan = gpu.clipper.prepare(&[], clip).unwrap();
    let windows = gpu.submit(|encoder| {
        plan.encode(encoder);
        plan.read_back_norm_windows(encoder)
    });
    assert_eq!(windows.wait(), Ok(vec![]));
    plan.set_norm_windows(&gpu.queue, &[]).unwrap();
}

/// Each record takes 4 KiB for its window, which the device may not allow.
#[test]
fn windows_beyond_the_limits_of_the_device_are_an_error() {
    let adapter = crate::common::gpu::adapters().remove(0);
    let gpu = Gpu::open(&adapter, least_limits());
    let buffer = gpu.writable(4 * 100);
    let gradient = [Gradient::f32(&buffer).rows(100)];
    let clip = |window| Clip::by_norm(1.0).auto_clip(AutoClip { percentile: 10.0, window });
    let error = gpu.clipper.prepare(&gradient, clip(1024)).unwrap_err();
    assert!(matches!(error, Error::DeviceLimit { needed: 410_000..420_000, .. }), "{error:?}");
    let plan = gpu.clipper.prepare(&gradient, clip(256)).unwrap();
    assert!((100 * 4 * 259..150_000).contains(&plan.scratch_bytes()), "{}", plan.scratch_bytes());
}
