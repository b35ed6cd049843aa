//! What is measured: sets of gradients, and what is done to them.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Result, bail, ensure};
use bytemuck::Pod;
use gradclip::{Clip, ClipRecord, DType, cpu, reference};
use half::{bf16, f16};
use rayon::prelude::*;

/// The shapes of the gradients of four models, in the order of their parameters; the PyTorch script reads the same file.
const MODEL_SHAPES: &str = include_str!("../../model_shapes.json");

/// Where tensors of an arena begin, in bytes: what allocators do, and every device can bind at.
const ALIGNMENT: usize = 256;
/// Single tensors have 2^10, 2^12, .. elements.
const SMALLEST: u32 = 10;
/// Bytes that one thread takes at a time where data are made or compared.
const PIECE: usize = 1 << 20;

/// Gradients that are clipped together.
#[derive(Clone, Debug)]
pub struct Set {
    /// The name of the model, or the number of elements.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The elements of each tensor.
    pub lens: Vec<usize>,
    /// The whole model has so many tensors.
    pub of: usize,
    /// Whether the last-level cache may hold it from one repetition to the next.
    pub cached: bool,
}

impl Set {
    /// Makes a set of tensors with these numbers of elements.
    pub fn new(name: &str, dtype: DType, lens: Vec<usize>) -> Self {
        Self { name: name.into(), dtype, of: lens.len(), lens, cached: false }
    }

    /// Returns the elements of all tensors together.
    pub fn elements(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Returns the bytes of all tensors together.
    pub fn bytes(&self) -> usize {
        self.elements() * self.element_bytes()
    }

    fn element_bytes(&self) -> usize {
        if self.dtype == DType::F32 { 4 } else { 2 }
    }

    /// Where the tensors lie in an arena, in bytes, and how long the arena is.
    pub(crate) fn layout(&self) -> (Vec<Range<usize>>, usize) {
        let mut end = 0_usize;
        let place = |len: &usize| {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + len * self.element_bytes();
            start..end
        };
        let ranges = self.lens.iter().map(place).collect();
        (ranges, end.next_multiple_of(ALIGNMENT))
    }

    /// As many of its tensors as fit into so many bytes, from the first on.
    fn cut(mut self, max_bytes: usize) -> Option<Self> {
        let mut left = max_bytes / self.element_bytes();
        let fits = |len: &&usize| left.checked_sub(**len).map(|rest| left = rest).is_some();
        self.lens = self.lens.iter().take_while(fits).copied().collect();
        (!self.lens.is_empty()).then_some(self)
    }
}

/// Returns all sets that fit into so many bytes, the single tensors first. Of models it takes as many tensors as fit.
pub fn sets(max_bytes: usize) -> Result<Vec<Set>> {
    let models: BTreeMap<String, Vec<Vec<usize>>> = serde_json::from_str(MODEL_SHAPES)?;
    let model = |name: &str, dtype| {
        let lens = models[name].iter().map(|shape| shape.iter().product()).collect();
        Set::new(name, dtype, lens).cut(max_bytes)
    };
    let single = |log2: u32, dtype| Set::new(&format!("2^{log2}"), dtype, vec![1 << log2]).cut(max_bytes);
    let cached = single(20, DType::F32).map(|set| Set { name: "2^20 cached".into(), cached: true, ..set });

    let mut sets: Vec<Set> =
        (SMALLEST..usize::BITS).step_by(2).map_while(|log2| single(log2, DType::F32)).collect();
    sets.extend(cached);
    sets.extend([DType::F16, DType::BF16].into_iter().filter_map(|dtype| single(26, dtype)));
    sets.extend(Set::new("1000x4096", DType::F32, vec![4096; 1000]).cut(max_bytes));
    for (name, dtypes) in [
        ("resnet50", &[DType::F32][..]),
        ("gpt2-small", &[DType::F32, DType::F16, DType::BF16]),
        ("bert-base", &[DType::F32]),
        ("llama-7b", &[DType::F32, DType::BF16]),
    ] {
        sets.extend(dtypes.iter().filter_map(|&dtype| model(name, dtype)));
    }
    Ok(sets)
}

/// What is done to gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Measures the global norm.
    Norm,
    /// Clips to twice the norm, so that nothing changes.
    NotExceeded,
    /// Clips to half of the norm.
    Exceeded,
    /// Measures the norm and the coefficient, and leaves the gradients.
    CoefficientOnly,
    /// Clamps every element.
    Clamp,
    /// Clips to half of the norm, and removes a loss scale.
    LossScale,
}

/// The parts of the gradients' norm that limits are, so that one is exceeded and the other is not.
const HALF: f64 = 0.5;
const TWICE: f64 = 2.0;
/// Half of the elements, which are spread evenly over -1 to 1, are beyond it.
const CLIP_VALUE: f32 = 0.5;
/// Small enough that gradients in f16 stay normal numbers.
const LOSS_SCALE: f32 = 8.0;

impl Op {
    /// All operations.
    pub const ALL: [Self; 6] =
        [Self::Norm, Self::NotExceeded, Self::Exceeded, Self::CoefficientOnly, Self::Clamp, Self::LossScale];

    /// Returns the name that rows show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::NotExceeded => "clip not exceeded",
            Self::Exceeded => "clip exceeded",
            Self::CoefficientOnly => "coefficient only",
            Self::Clamp => "clamp",
            Self::LossScale => "loss scale",
        }
    }

    /// Returns how often all gradients have to be read, and how often read and written back, at least.
    pub const fn passes(self) -> (usize, usize) {
        match self {
            Self::Norm | Self::NotExceeded | Self::CoefficientOnly => (1, 0),
            Self::Exceeded | Self::LossScale => (1, 1),
            Self::Clamp => (0, 1),
        }
    }

    /// The fewest bytes that have to move.
    pub(crate) const fn bytes(self, gradients: usize) -> usize {
        let (read, rewritten) = self.passes();
        gradients * (read + 2 * rewritten)
    }

    /// Whether the gradients are other ones afterwards.
    pub(crate) const fn changes(self) -> bool {
        self.passes().1 > 0
    }

    /// Returns the clip of gradients of this norm.
    pub fn clip(self, norm: f64) -> Clip {
        match self {
            Self::Norm | Self::CoefficientOnly => Clip::by_global_norm(limit(norm * HALF)).coefficient_only(),
            Self::NotExceeded => Clip::by_global_norm(limit(norm * TWICE)),
            Self::Exceeded => Clip::by_global_norm(limit(norm * HALF)),
            Self::Clamp => Clip::by_value(CLIP_VALUE),
            Self::LossScale => {
                let unscaled = norm / f64::from(LOSS_SCALE);
                Clip::by_global_norm(limit(unscaled * HALF)).loss_scale(LOSS_SCALE)
            }
        }
    }

    /// The limit of a clip of gradients of this norm that writes nothing.
    pub(crate) const fn limit(norm: f64) -> f32 {
        limit(norm * HALF)
    }

    /// What an element is to become where the gradients have this norm.
    fn element(self, before: f64, norm: f64) -> f64 {
        let scale = f64::from(LOSS_SCALE);
        match self {
            Self::Norm | Self::NotExceeded | Self::CoefficientOnly => before,
            Self::Exceeded => before * reference::clip_coef(norm, norm * HALF),
            Self::Clamp => before.clamp((-CLIP_VALUE).into(), CLIP_VALUE.into()),
            Self::LossScale => before / scale * reference::clip_coef(norm / scale, norm / scale * HALF),
        }
    }

    /// Fails if a record of gradients of this norm is wrong.
    pub fn check_record(self, record: &ClipRecord, norm: f64) -> Result<()> {
        let (norm, limit) = match self {
            Self::LossScale => (norm / f64::from(LOSS_SCALE), norm / f64::from(LOSS_SCALE) * HALF),
            Self::NotExceeded => (norm, norm * TWICE),
            _ => (norm, norm * HALF),
        };
        for (what, found, expected) in [
            ("norm", record.total_norm, norm),
            ("coefficient", record.clip_coef, reference::clip_coef(norm, limit)),
        ] {
            ensure!(
                is_close(found.into(), expected, 1e-6),
                "{}: the {what} is {found}, but it should be {expected}",
                self.name()
            );
        }
        Ok(())
    }

    /// Fails if gradients of this norm have become something else than they should. Both are bytes of elements.
    pub(crate) fn check_elements(self, dtype: DType, before: &[u8], after: &[u8], norm: f64) -> Result<()> {
        ensure!(
            before.len() == after.len(),
            "{}: {} bytes became {}",
            self.name(),
            before.len(),
            after.len()
        );
        if !self.changes() {
            ensure!(before == after, "{}: gradients that should stay as they are were written", self.name());
            return Ok(());
        }
        // A unit in the last place each, and of the least subnormal number of f16.
        let (relative, absolute) = match dtype {
            DType::F32 => (1e-6, 0.0),
            DType::F16 => (f64::exp2(-10.0), f64::exp2(-24.0)),
            _ => (f64::exp2(-7.0), 0.0),
        };
        let tolerance = |expected: f64| relative * expected.abs() + absolute;
        let found = match dtype {
            DType::F32 => first_wrong::<f32>(before, after, |x| self.element(x, norm), tolerance),
            DType::F16 => first_wrong::<f16>(before, after, |x| self.element(x, norm), tolerance),
            _ => first_wrong::<bf16>(before, after, |x| self.element(x, norm), tolerance),
        };
        match found {
            None => Ok(()),
            Some((after, expected)) => {
                bail!("{}: an element became {after}, but it should be {expected}", self.name())
            }
        }
    }
}

/// A limit as the paths take it.
#[expect(clippy::cast_possible_truncation, reason = "the limits of the API are f32")]
const fn limit(norm: f64) -> f32 {
    norm as f32
}

fn is_close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance * expected.abs()
}

/// An element that became something else than expected, and what was expected.
fn first_wrong<T: Pod + Into<f64>>(
    before: &[u8],
    after: &[u8],
    expected: impl Fn(f64) -> f64 + Sync,
    tolerance: impl Fn(f64) -> f64 + Sync,
) -> Option<(f64, f64)> {
    let pieces = before.par_chunks(PIECE).zip(after.par_chunks(PIECE));
    pieces.find_map_any(|(before, after)| {
        let elements = bytemuck::cast_slice::<_, T>(before).iter().zip(bytemuck::cast_slice::<_, T>(after));
        let mut pairs = elements.map(|(&before, &after)| (after.into(), expected(before.into())));
        let is_right = |after: f64, expected: f64| (after - expected).abs() <= tolerance(expected);
        // A NaN is not right.
        pairs.find(|&(after, expected)| !is_right(after, expected))
    })
}

/// Memory that any element type can be cut from.
#[derive(Debug, Default)]
pub struct Memory(Vec<u64>);

impl Memory {
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self(vec![0; bytes.div_ceil(size_of::<u64>())])
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// At least so many bytes of it, whatever they hold.
    pub(crate) fn at_least(&mut self, bytes: usize) -> &mut [u8] {
        if self.bytes().len() < bytes {
            // The old memory goes first: there may not be enough for both.
            self.0 = Vec::new();
            *self = Self::zeroed(bytes);
        }
        &mut self.bytes_mut()[..bytes]
    }
}

/// The gradients of a set as they are before every repetition, in one arena: random, spread evenly over -1 to 1.
#[derive(Debug)]
pub struct Pristine {
    /// The element type.
    pub dtype: DType,
    pub(crate) ranges: Vec<Range<usize>>,
    memory: Memory,
    /// The global norm, in f64.
    pub norm: f64,
}

impl Pristine {
    /// Makes the gradients of a set.
    pub fn new(set: &Set) -> Self {
        let (ranges, bytes) = set.layout();
        let mut memory = Memory::zeroed(bytes);
        let pieces = memory.bytes_mut().par_chunks_mut(PIECE).enumerate();
        pieces.for_each(|(index, piece)| fill(piece, set.dtype, (index * PIECE / 2) as u64));
        let norm = norm(set.dtype, memory.bytes(), &ranges);
        Self { dtype: set.dtype, ranges, memory, norm }
    }

    /// Returns all of the arena, with what lies between the tensors.
    pub fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }
}

/// Fills memory with random elements; the same index gives the same element.
fn fill(piece: &mut [u8], dtype: DType, first: u64) {
    let random = (first..).map(uniform);
    match dtype {
        DType::F32 => bytemuck::cast_slice_mut(piece).iter_mut().zip(random).for_each(|(x, r)| *x = r),
        DType::F16 => {
            let piece: &mut [f16] = bytemuck::cast_slice_mut(piece);
            piece.iter_mut().zip(random).for_each(|(x, r)| *x = f16::from_f32(r));
        }
        _ => {
            let piece: &mut [bf16] = bytemuck::cast_slice_mut(piece);
            piece.iter_mut().zip(random).for_each(|(x, r)| *x = bf16::from_f32(r));
        }
    }
}

fn uniform(index: u64) -> f32 {
    // 24 bits are exact in f32.
    (random(index) >> 40) as f32 / 8_388_608.0 - 1.0
}

/// `SplitMix64` of a counter: any part of the data can be made by itself.
pub(crate) fn random(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// From the reference's norm of each piece: in f64, and in parallel.
fn norm(dtype: DType, bytes: &[u8], ranges: &[Range<usize>]) -> f64 {
    let pieces: Vec<&[u8]> = ranges.iter().flat_map(|range| bytes[range.clone()].chunks(PIECE)).collect();
    let square = |piece: &&[u8]| {
        let norm = match dtype {
            DType::F32 => reference::total_norm(&[bytemuck::cast_slice(piece)]),
            DType::F16 => widened_norm::<f16>(piece),
            _ => widened_norm::<bf16>(piece),
        };
        norm * norm
    };
    pieces.par_iter().map(square).collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
}

/// Of a 16-bit type, which f32 holds exactly.
fn widened_norm<T: Pod + Into<f32>>(piece: &[u8]) -> f64 {
    let floats: Vec<f32> = bytemuck::cast_slice::<_, T>(piece).iter().map(|&x| x.into()).collect();
    reference::total_norm(&[&floats])
}

/// The gradients in a piece of memory, as the CPU path takes them.
pub(crate) fn gradients<'a>(
    dtype: DType,
    ranges: &[Range<usize>],
    mut memory: &'a mut [u8],
) -> Vec<cpu::Gradient<'a>> {
    let mut at = 0;
    let mut gradients = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (_, rest) = memory.split_at_mut(range.start - at);
        let (tensor, rest) = rest.split_at_mut(range.len());
        (memory, at) = (rest, range.end);
        gradients.push(match dtype {
            DType::F32 => cpu::Gradient::f32(bytemuck::cast_slice_mut(tensor)),
            DType::F16 => cpu::Gradient::f16(bytemuck::cast_slice_mut(tensor)),
            _ => cpu::Gradient::bf16(bytemuck::cast_slice_mut(tensor)),
        });
    }
    gradients
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(sets: &[Set], name: &str, dtype: DType) -> Set {
        sets.iter().find(|set| set.name == name && set.dtype == dtype).unwrap().clone()
    }

    #[test]
    fn models_have_the_tensors_and_elements_that_are_known() {
        let sets = sets(usize::MAX / 8).unwrap();
        for (name, tensors, elements) in [
            ("resnet50", 161, 25_557_032),
            ("gpt2-small", 148, 124_439_808),
            ("bert-base", 199, 109_482_240),
            ("llama-7b", 291, 6_738_415_616),
            ("1000x4096", 1000, 4_096_000),
            ("2^28", 1, 1 << 28),
        ] {
            let set = find(&sets, name, DType::F32);
            assert_eq!((set.lens.len(), set.of, set.elements()), (tensors, tensors, elements), "{name}");
        }
        assert_eq!(find(&sets, "gpt2-small", DType::BF16).bytes(), 2 * 124_439_808);
    }

    #[test]
    fn what_does_not_fit_is_cut_or_left_out() {
        let sets = sets(1 << 30).unwrap();
        assert!(sets.iter().all(|set| set.bytes() <= 1 << 30));
        let llama = find(&sets, "llama-7b", DType::F32);
        assert!(!llama.lens.is_empty() && llama.lens.len() < llama.of);
        // The first that does not fit ends it.
        assert!(llama.bytes() + 4 * 4096 * 11008 > 1 << 30);
        assert!(!sets.iter().any(|set| set.name == "2^30"));
    }

    #[test]
    fn an_arena_is_aligned_and_holds_every_tensor_once() {
        let set = Set::new("odd", DType::F16, vec![1, 129, 128, 3]);
        assert_eq!(set.layout(), (vec![0..2, 256..514, 768..1024, 1024..1030], 1280));
        let pristine = Pristine::new(&set);
        let mut copy = Memory::zeroed(pristine.bytes().len());
        copy.bytes_mut().copy_from_slice(pristine.bytes());
        let mut norms = Vec::new();
        for gradient in gradients(set.dtype, &pristine.ranges, copy.bytes_mut()) {
            norms.push(cpu::tensor_stats(&[gradient], Clip::by_global_norm(1.0)).unwrap()[0].norm);
        }
        let square: f64 = norms.iter().map(|&norm| f64::from(norm).powi(2)).sum();
        assert!(is_close(square.sqrt(), pristine.norm, 1e-6), "{norms:?}");
    }

    #[test]
    fn data_are_spread_evenly_and_do_not_repeat() {
        let data: Vec<f32> = (0..10_000).map(uniform).collect();
        let mean: f32 = data.iter().sum::<f32>() / 10_000.0;
        let beyond = data.iter().filter(|x| x.abs() > CLIP_VALUE).count();
        assert!(mean.abs() < 0.02 && (4_800..5_200).contains(&beyond), "{mean}, {beyond}");
        let distinct: std::collections::BTreeSet<u32> = data.iter().map(|x| x.to_bits()).collect();
        assert!(distinct.len() > 9_990);
    }

    /// What is right passes, and one wrong element or number does not.
    #[test]
    fn checks_find_what_is_wrong() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let set = Set::new("any", dtype, vec![1000]);
            let pristine = Pristine::new(&set);
            let range = pristine.ranges[0].clone();
            let before = &pristine.bytes()[range.clone()];
            for op in Op::ALL {
                let mut memory = Memory::zeroed(pristine.bytes().len());
                memory.bytes_mut().copy_from_slice(pristine.bytes());
                let mut list = gradients(dtype, &pristine.ranges, memory.bytes_mut());
                let records = cpu::clip(&mut list, op.clip(pristine.norm)).unwrap();
                let after = &mut memory.bytes_mut()[range.clone()];
                op.check_elements(dtype, before, after, pristine.norm).unwrap();
                // The exponent of an element in the middle.
                after[1003] ^= 0x10;
                assert!(op.check_elements(dtype, before, after, pristine.norm).is_err(), "{op:?}, {dtype:?}");
                for record in records {
                    op.check_record(&record, pristine.norm).unwrap();
                    let spoils: [fn(&mut ClipRecord); 3] = [
                        |record| record.total_norm *= 1.000_01,
                        |record| record.clip_coef *= 0.999,
                        |record| record.total_norm = f32::NAN,
                    ];
                    for spoil in spoils {
                        let mut wrong = record;
                        spoil(&mut wrong);
                        assert!(op.check_record(&wrong, pristine.norm).is_err(), "{op:?}: {wrong:?}");
                    }
                }
            }
        }
    }
}
