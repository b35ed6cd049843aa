//! Which workgroup does what. Numbers in, numbers out.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use gradclip::DType;
use gradclip::wgsl::{Access, Manner, tile_elements};

/// The work of one workgroup; `Tile` of `tile.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Tile {
    pub(super) slot: u32,
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) target_index: u32,
}

/// A gradient, as far as a layout needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Extent {
    pub(crate) count: usize,
    pub(crate) dtype: DType,
    pub(crate) segment: usize,
}

impl Extent {
    fn manner(self) -> Manner {
        let whole_vectors = (self.count as u64 * self.dtype.size()).is_multiple_of(16);
        Manner { access: if whole_vectors { Access::Vectors } else { Access::Elements }, dtype: self.dtype }
    }
}

/// Gradients that are read, and written, in one dispatch each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) manner: Manner,
    /// The gradient in each slot.
    pub(super) members: Vec<usize>,
    /// The tiles of the norm pass, whose targets are partials.
    pub(super) to_partials: Vec<Tile>,
    /// The same tiles for the elementwise pass, whose targets are segments.
    pub(super) of_segments: Vec<Tile>,
}

/// The work of a clip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) batches: Vec<Batch>,
    /// Of each partial, the gradient that it is of.
    pub(super) owners: Vec<u32>,
    /// The partials of each segment.
    pub(super) segments: Vec<Range<usize>>,
    /// The partials of each gradient.
    pub(super) gradients: Vec<Range<usize>>,
}

/// Gradients from this on are so much work that the choice among many slots, at every load, costs more than a dispatch.
const LARGE: usize = 1 << 15;

/// How many of those share a dispatch.
const LARGE_SLOTS: usize = 3;

/// Lays out the work on these gradients, with at most so many in a dispatch. The partials of a segment stand together, in
/// the order of the gradients.
pub(super) fn lay_out(extents: &[Extent], segments: usize, slots: usize) -> Layout {
    // That of the core, so that the bits are, too.
    let tile = tile_elements(extents.iter().map(|extent| extent.count as u64).sum());
    let tile = usize::try_from(tile).unwrap_or(usize::MAX);
    let mut layout = Layout { gradients: vec![0..0; extents.len()], ..Layout::default() };
    let mut members = vec![Vec::new(); segments];
    for (index, extent) in extents.iter().enumerate() {
        members[extent.segment].push((index, extent));
    }
    for members in members {
        let first = layout.owners.len();
        for (index, extent) in members {
            let begin = layout.owners.len();
            layout.owners.extend(std::iter::repeat_n(narrow(index), extent.count.div_ceil(tile)));
            layout.gradients[index] = begin..layout.owners.len();
        }
        layout.segments.push(first..layout.owners.len());
    }

    let mut order: Vec<usize> = (0..extents.len()).filter(|&index| extents[index].count > 0).collect();
    let kind = |index: usize| (extents[index].manner(), extents[index].count < LARGE);
    order.sort_by_key(|&index| kind(index)); // stable
    for alike in order.chunk_by(|&a, &b| kind(a) == kind(b)) {
        let most = if extents[alike[0]].count < LARGE { slots } else { slots.min(LARGE_SLOTS) };
        for members in alike.chunks(most.max(1)) {
            let mut batch = Batch {
                manner: extents[members[0]].manner(),
                members: members.to_vec(),
                to_partials: Vec::new(),
                of_segments: Vec::new(),
            };
            for (slot, &index) in members.iter().enumerate() {
                let Extent { count, segment, .. } = extents[index];
                for (first, partial) in (0..count).step_by(tile).zip(layout.gradients[index].clone()) {
                    let to_partial = Tile {
                        slot: narrow(slot),
                        first: narrow(first),
                        count: narrow(tile.min(count - first)),
                        target_index: narrow(partial),
                    };
                    batch.to_partials.push(to_partial);
                    batch.of_segments.push(Tile { target_index: narrow(segment), ..to_partial });
                }
            }
            layout.batches.push(batch);
        }
    }
    layout
}

/// A number that the shaders index with. Burn keeps a tensor within a binding, which is less than 2³² words.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transformer_of_150_tensors_takes_fewer_than_50_dispatches() {
        let mut counts = vec![2048 * 256, 128 * 256, 256, 256, 256, 256];
        for _ in 0..12 {
            counts.extend([256 * 768, 256 * 256, 256 * 1024, 1024 * 256]);
            counts.extend([768, 256, 1024, 256, 256, 256, 256, 256]);
        }
        assert_eq!(counts.len(), 150);
        let extents: Vec<_> =
            counts.into_iter().map(|count| Extent { count, dtype: DType::F32, segment: 0 }).collect();
        // Norm, record, scale.
        let dispatches = |slots| 2 * lay_out(&extents, 1, slots).batches.len() + 1;
        assert_eq!(dispatches(30), 43);
        // wgpu's default limits.
        assert!(dispatches(6) < 2 * extents.len());
    }

    fn extents() -> Vec<Extent> {
        let f32s = |count, segment| Extent { count, dtype: DType::F32, segment };
        vec![
            f32s(10_000, 0),
            f32s(0, 0),
            f32s(7, 1),
            Extent { count: 4096, dtype: DType::F16, segment: 1 },
            f32s(8, 0),
            f32s(4097, 1),
            f32s(LARGE, 1),
            f32s(LARGE + 4, 0),
        ]
    }

    #[test]
    fn tiles_cover_every_element_once_and_name_the_partial_of_their_gradient() {
        for slots in [1, 2, 3, 32] {
            let extents = extents();
            let layout = lay_out(&extents, 2, slots);
            let mut covered: Vec<Vec<bool>> = extents.iter().map(|e| vec![false; e.count]).collect();
            let mut written = vec![false; layout.owners.len()];
            for batch in &layout.batches {
                assert!(batch.members.len() <= slots);
                for (tile, of_segment) in batch.to_partials.iter().zip(&batch.of_segments) {
                    let gradient = batch.members[tile.slot as usize];
                    assert_eq!(extents[gradient].manner(), batch.manner);
                    let target = tile.target_index as usize;
                    assert_eq!(layout.owners[target] as usize, gradient);
                    assert!(layout.segments[extents[gradient].segment].contains(&target));
                    assert!(layout.gradients[gradient].contains(&target));
                    assert!(!std::mem::replace(&mut written[target], true), "a partial of two tiles");
                    assert_eq!(of_segment.target_index as usize, extents[gradient].segment);
                    for element in tile.first..tile.first + tile.count {
                        assert!(!std::mem::replace(&mut covered[gradient][element as usize], true));
                    }
                }
            }
            assert!(covered.iter().flatten().all(|&c| c), "an element in no tile, with {slots} slots");
            assert!(written.iter().all(|&w| w), "a partial of no tile, with {slots} slots");
        }
    }
}
