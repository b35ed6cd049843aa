//! Stage `small_clip`: a clip of few tiles in one dispatch leaves what the separate stages leave.

use gradclip::kernels::SMALL_CLIP_TILES;
use gradclip::loss_scale::LossScale;
use gradclip::stats::StepCounts;
use gradclip::{AutoClip, Clip, ClipPlan, ClipRecord, DType, Gradient, NonFinite, NormType, ZClip, wgpu};

use crate::common::gpu::{Gpu, adapters, least_limits};
use crate::common::numbers::{bits, noise};
use crate::common::placement::{Placement, extents};
use crate::{gpu, gpu_with};

const TILE: usize = 4096;

/// Gradients of one type with their places.
struct Case {
    gradients: Vec<Vec<f32>>,
    dtype: DType,
    placement: Placement,
}

impl Case {
    fn new(lens: &[usize], dtype: DType, place: fn(&[(DType, usize)]) -> Placement) -> Self {
        let gradients: Vec<_> = lens.iter().zip(1..).map(|(&len, seed)| noise(seed, len)).collect();
        let extents: Vec<_> = lens.iter().map(|&len| (dtype, len)).collect();
        Self { gradients, dtype, placement: place(&extents) }
    }

    /// Replaces every element.
    fn map(mut self, change: impl Fn(f32) -> f32) -> Self {
        self.gradients.iter_mut().flatten().for_each(|element| *element = change(*element));
        self
    }

    /// Replaces one element of the last gradient.
    fn with(mut self, element: f32) -> Self {
        let last = self.gradients.last_mut().unwrap();
        let middle = last.len() / 2;
        last[middle] = element;
        self
    }

    /// Runs two steps on copies of the gradients. Returns the number of dispatches and everything that the steps leave.
    fn run(&self, gpu: &Gpu, clip: Clip, encode: fn(&ClipPlan, &mut wgpu::CommandEncoder)) -> (usize, State) {
        let dtypes = vec![self.dtype; self.gradients.len()];
        let placed = gpu.place_typed(&self.placement, &dtypes, &self.gradients);
        let plan = gpu.clipper.prepare(&placed.gradients(), clip).unwrap();
        let mut state = State { records: Vec::new(), counts: Vec::new(), scale: None, after: Vec::new() };
        for _ in 0..2 {
            let (records, counts, scale) = gpu.submit(|encoder| {
                encode(&plan, encoder);
                let counts = plan.step_counts_buffer().map(|_| plan.read_back_step_counts(encoder));
                let scale = plan.loss_scale_buffer().map(|_| plan.read_back_loss_scale(encoder));
                (plan.read_back_all(encoder), counts, scale)
            });
            // With `NonFinite::Error` the ticket may return no record.
            let words = |records: Vec<ClipRecord>| records.into_iter().map(bytemuck::cast).collect();
            state.records.push(records.wait().map(words).map_err(|error| error.to_string()));
            state.counts.extend(counts.map(|counts| counts.wait().unwrap()[0]));
            state.scale = scale.map(|scale| scale.wait().unwrap().scale());
            state.after.push(bits(&placed.read(gpu)));
        }
        (plan.dispatches(), state)
    }

    /// Checks that one dispatch leaves what the two halves leave.
    #[track_caller]
    fn check(&self, clip: Clip) -> State {
        let (dispatches, whole) = self.run(gpu(), clip, ClipPlan::encode);
        assert_eq!(dispatches, 1, "{clip:?} of {:?}", self.placement);
        let (_, halves) = self.run(gpu(), clip, |plan, encoder| {
            plan.encode_norm(encoder);
            plan.encode_scale(encoder);
        });
        assert_eq!(whole, halves, "{clip:?} of {:?}", self.placement);
        whole
    }
}

/// What the steps of a plan leave.
#[derive(Debug, PartialEq)]
struct State {
    /// The bits of the records of each step: a NaN differs from itself.
    records: Vec<Result<Vec<[u32; 10]>, String>>,
    counts: Vec<StepCounts>,
    scale: Option<f32>,
    after: Vec<Vec<Vec<u32>>>,
}

impl State {
    /// Returns the record of the first step.
    fn first(&self) -> ClipRecord {
        bytemuck::cast(self.records[0].as_ref().unwrap()[0])
    }
}

fn by_norm(norm_type: NormType) -> Clip {
    Clip::by_global_norm(0.5).norm_type(norm_type)
}

#[test]
fn one_dispatch_has_the_bits_of_the_halves() {
    let sets: [&[usize]; 6] =
        [&[8], &[TILE], &[4 * TILE], &[2 * TILE + 8, 16], &[24, 4096, 8, 800], &[2 * TILE, 0, 2 * TILE]];
    for norm_type in [NormType::L1, NormType::L2, NormType::Inf] {
        let sets = if norm_type == NormType::L2 { &sets[..] } else { &sets[4..5] };
        for lens in sets {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for place in [Placement::separate, Placement::arena] {
                    let state = Case::new(lens, dtype, place).check(by_norm(norm_type));
                    assert!(state.first().clipped());
                }
            }
        }
        // Any offset and any length of f32.
        for lens in [&[1][..], &[4097], &[10, 5, 4095], &[4096, 7, 13, 2]] {
            for place in [Placement::separate, Placement::spaced, Placement::packed, Placement::adjacent] {
                Case::new(lens, DType::F32, place).check(by_norm(norm_type));
            }
        }
    }
}

#[test]
fn a_pass_of_the_caller_has_the_same_dispatch() {
    let case = Case::new(&[TILE, 32], DType::F32, Placement::separate);
    let clip = by_norm(NormType::L2).count_steps();
    let (dispatches, in_pass) = case.run(gpu(), clip, |plan, encoder| {
        plan.encode_in_pass(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
    });
    assert_eq!((dispatches, in_pass), (1, case.check(clip)));
}

#[test]
fn extreme_elements_have_the_bits_of_the_halves() {
    for norm_type in [NormType::L1, NormType::L2, NormType::Inf] {
        for lens in [&[TILE, 64][..], &[TILE + 3, 5]] {
            let case = || Case::new(lens, DType::F32, Placement::arena);
            for factor in [1e30, 1e-30, 1e-38, 1e-44] {
                case().map(|element| element * factor).check(by_norm(norm_type));
            }
            // One tile is scaled, and the other is not.
            case().with(1e30).check(by_norm(norm_type));
            let within = case().check(Clip::by_global_norm(1e9).norm_type(norm_type));
            assert!(!within.first().clipped());
            assert_eq!(within.after[0], bits(&case().gradients));
            case().map(|_| 0.0).check(by_norm(norm_type));
        }
    }
}

#[test]
fn every_policy_has_the_bits_of_the_halves() {
    let policies =
        [NonFinite::Propagate, NonFinite::Skip, NonFinite::Zero, NonFinite::Poison, NonFinite::Error];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for policy in policies {
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let case = Case::new(&[TILE, 32, 48], dtype, Placement::separate).with(odd);
                let state = case.check(by_norm(NormType::L2).non_finite(policy));
                if policy != NonFinite::Error {
                    assert_eq!(state.first().first_non_finite(), Some(2));
                }
            }
        }
    }
}

#[test]
fn state_is_kept_as_by_the_halves() {
    let clip = Clip::by_global_norm(0.5);
    let clips = [
        clip.loss_scale(1024.0),
        clip.count_steps(),
        clip.skip_above(1.0),
        clip.skip_above(1.0).max_consecutive_skips(1),
        clip.dynamic_loss_scale(LossScale::default()),
        clip.dynamic_loss_scale(LossScale::default()).skip_above(1e-3).non_finite(NonFinite::Skip),
    ];
    for clip in clips {
        for odd in [0.25, f32::NAN] {
            for lens in [&[TILE, 32][..], &[TILE + 1, 3]] {
                let state = Case::new(lens, DType::F32, Placement::arena).with(odd).check(clip);
                assert!(state.counts.is_empty() || state.counts[1].steps == 2);
            }
        }
    }
}

/// Returns the dispatches of a plan for gradients of f32 in one buffer, and checks its bits.
#[track_caller]
fn dispatches(gpu: &Gpu, lens: &[usize], clip: Clip) -> usize {
    let case = Case::new(lens, DType::F32, Placement::arena);
    let (dispatches, whole) = case.run(gpu, clip, ClipPlan::encode);
    let (_, halves) = case.run(gpu, clip, |plan, encoder| {
        plan.encode_norm(encoder);
        plan.encode_scale(encoder);
    });
    assert_eq!(whole, halves);
    dispatches
}

#[test]
fn the_number_of_tiles_decides() {
    let most = SMALL_CLIP_TILES as usize;
    let clip = Clip::by_global_norm(0.5);
    assert_eq!(dispatches(gpu(), &[most * TILE], clip), 1);
    assert_eq!(dispatches(gpu(), &[most * TILE + 4], clip), 3);
    assert_eq!(dispatches(gpu(), &vec![4; most], clip), 1);
    assert_eq!(dispatches(gpu(), &vec![4; most + 1], clip), 3);
}

#[test]
fn other_clips_have_separate_dispatches() {
    let clip = Clip::by_global_norm(0.5);
    assert_eq!(dispatches(gpu(), &[8], clip.tensor_stats()), 4);
    assert_eq!(dispatches(gpu(), &[8], clip.z_clip(ZClip::default())), 4);
    assert_eq!(dispatches(gpu(), &[8], clip.auto_clip(AutoClip::default())), 4);
    assert_eq!(dispatches(gpu(), &[8], clip.norm_type(NormType::P(3.0))), 3);
    assert_eq!(dispatches(gpu(), &[8, 8], Clip::by_norm(0.5)), 3);
    assert_eq!(dispatches(gpu(), &[8], Clip::by_norm(0.5)), 1);

    let buffer = gpu().buffer(&[1.0; 64]);
    let [a, b] = [0..32, 32..64].map(|range| Gradient::f32(&buffer).elements(range));
    let count = |gradients: &[Gradient<'_>], clips: &[Clip]| {
        gpu().clipper.prepare_groups(gradients, clips).unwrap().dispatches()
    };
    assert_eq!(count(&[a.clone(), b.clone()], &[clip]), 1);
    assert_eq!(count(&[a.clone(), b.clone()], &[clip.coefficient_only()]), 2);
    assert_eq!(count(&[a.clone(), b.clone().group(1)], &[clip, clip]), 3);
    assert_eq!(count(&[a.clone().part(0), b.clone().part(0)], &[clip]), 3);
    let half = Gradient::f16(&buffer).elements(64..72);
    assert_eq!(count(&[a.clone(), half.clone()], &[clip]), 5);
    // The rest of a word of 16-bit elements may belong to another gradient.
    assert_eq!(count(&[half], &[clip]), 1);
    assert_eq!(count(&[Gradient::f16(&buffer).elements(0..7)], &[clip]), 3);
    for excluded in [b.clone().unmeasured(), b.unscaled()] {
        assert!(count(&[a.clone(), excluded], &[clip]) >= 3);
    }
}

#[test]
fn devices_that_bind_few_buffers_have_separate_dispatches() {
    let clip = Clip::by_global_norm(0.5);
    let least = Gpu::open(&adapters()[0], least_limits());
    assert_eq!(dispatches(&least, &[8], clip), 3);
    // Tiles, segments, the gradients of partials, records and one slot; with state, the parameters and the counts too.
    let five = gpu_with(|limits| limits.max_storage_buffers_per_shader_stage = 5);
    assert_eq!(dispatches(&five, &[8], clip), 1);
    assert_eq!(dispatches(&five, &[8], clip.count_steps()), 4);
    let placement = Placement::separate(&extents(&[vec![0.0; 8], vec![0.0; 8]]));
    let placed = five.place(&placement, &[vec![1.0; 8], vec![1.0; 8]]);
    assert_eq!(five.clipper.prepare(&placed.gradients(), clip).unwrap().dispatches(), 3);
}
