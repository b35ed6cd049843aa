//! The measured sets of gradients: single tensors, 1000 small tensors and the parameters of four models.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;
use gradclip::DType;

/// The parameter shapes of four models, in order. `pytorch/bench.py` reads the same file.
const MODEL_SHAPES: &str = include_str!("../../model_shapes.json");

/// The alignment of tensors in an arena, in bytes: common for allocators, and a valid binding offset on every device.
const ALIGNMENT: usize = 256;
/// The binary logarithm of the smallest single tensor's length.
const SMALLEST_LOG2: u32 = 10;

/// A set of gradients that are clipped together.
#[derive(Clone, Debug)]
pub struct GradientSet {
    /// The name of the model, or the number of elements.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The number of elements of each tensor.
    pub lens: Vec<usize>,
    /// The number of tensors of the complete model. Smaller sets are cut to fit into memory.
    pub model_tensors: usize,
    /// Whether caches may hold the gradients between repetitions.
    pub cached: bool,
}

impl GradientSet {
    /// Creates a set of tensors of `lens` elements.
    pub fn new(name: &str, dtype: DType, lens: Vec<usize>) -> Self {
        Self { name: name.into(), dtype, model_tensors: lens.len(), lens, cached: false }
    }

    /// Returns the total number of elements.
    pub fn elements(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Returns the total size in bytes.
    pub fn bytes(&self) -> usize {
        self.elements() * self.element_bytes()
    }

    fn element_bytes(&self) -> usize {
        if self.dtype == DType::F32 { 4 } else { 2 }
    }

    /// Returns the name, plus the number of tensors if the model was cut.
    pub fn label(&self) -> String {
        let Self { name, lens, model_tensors, .. } = self;
        if lens.len() == *model_tensors {
            name.clone()
        } else {
            format!("{name}, {} of {model_tensors} tensors", lens.len())
        }
    }

    /// Returns the byte range of each tensor in an arena, and the size of the arena.
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

    /// Keeps the leading tensors that fit into `max_bytes`. Returns `None` if the first one does not fit.
    pub(crate) fn cut(mut self, max_bytes: usize) -> Option<Self> {
        let mut left = max_bytes / self.element_bytes();
        let fits = |len: &&usize| left.checked_sub(**len).map(|rest| left = rest).is_some();
        self.lens = self.lens.iter().take_while(fits).copied().collect();
        (!self.lens.is_empty()).then_some(self)
    }
}

/// Returns all sets that fit into `max_bytes`, single tensors first. Models are cut to the leading tensors that fit.
pub fn sets(max_bytes: usize) -> Result<Vec<GradientSet>> {
    let models: BTreeMap<String, Vec<Vec<usize>>> = serde_json::from_str(MODEL_SHAPES)?;
    let model = |name: &str, dtype| {
        let lens = models[name].iter().map(|shape| shape.iter().product()).collect();
        GradientSet::new(name, dtype, lens).cut(max_bytes)
    };
    let single =
        |log2: u32, dtype| GradientSet::new(&format!("2^{log2}"), dtype, vec![1 << log2]).cut(max_bytes);
    let cached =
        single(20, DType::F32).map(|set| GradientSet { name: "2^20 cached".into(), cached: true, ..set });

    let mut sets: Vec<GradientSet> =
        (SMALLEST_LOG2..usize::BITS).step_by(2).map_while(|log2| single(log2, DType::F32)).collect();
    sets.extend(cached);
    sets.extend([DType::F16, DType::BF16].into_iter().filter_map(|dtype| single(26, dtype)));
    sets.extend(GradientSet::new("1000x4096", DType::F32, vec![4096; 1000]).cut(max_bytes));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn find(sets: &[GradientSet], name: &str, dtype: DType) -> GradientSet {
        sets.iter().find(|set| set.name == name && set.dtype == dtype).unwrap().clone()
    }

    #[test]
    fn models_have_their_known_tensor_and_element_counts() {
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
            assert_eq!(
                (set.lens.len(), set.model_tensors, set.elements()),
                (tensors, tensors, elements),
                "{name}"
            );
        }
        assert_eq!(find(&sets, "gpt2-small", DType::BF16).bytes(), 2 * 124_439_808);
    }

    #[test]
    fn models_are_cut_and_single_tensors_are_dropped_to_fit() {
        let sets = sets(1 << 30).unwrap();
        assert!(sets.iter().all(|set| set.bytes() <= 1 << 30));
        let llama = find(&sets, "llama-7b", DType::F32);
        assert!(!llama.lens.is_empty() && llama.lens.len() < llama.model_tensors);
        // The set ends before the first tensor that does not fit.
        assert!(llama.bytes() + 4 * 4096 * 11008 > 1 << 30);
        assert!(!sets.iter().any(|set| set.name == "2^30"));
    }
}
