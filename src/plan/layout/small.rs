//! The layout of a small clip: all tiles of a plan in one batch, for one workgroup that measures and scales them.

use super::{Chunk, Kind, Layout, Limits, Pass, View, elements_per_vector, tile};
use crate::DType;
use crate::kernels::{Alignment, SMALL_CLIP_TILES, TileFormat};

impl Layout {
    /// Adds the batch of a small clip, if there is one for these chunks. They belong to one segment, and `views` are their windows.
    ///
    /// The tiles are those of the norm pass, so the sums have the same bits. A tile of 16-bit elements must be made of whole vectors:
    /// otherwise another tile may own the other half of its first or last word.
    pub(super) fn add_small(&mut self, chunks: &[Chunk], views: &[View], limits: Limits) {
        let Some(first) = chunks.first() else { return };
        let joins = |chunk: &Chunk| chunk.dtype == first.dtype && chunk.scaled && chunk.partial.is_some();
        let has_windows = views.len() <= limits.slots && views.iter().all(|view| view.ordinal == 0);
        if chunks.len() > SMALL_CLIP_TILES as usize || !has_windows || !chunks.iter().all(joins) {
            return;
        }
        let dtype = first.dtype;
        let vector = elements_per_vector(dtype);
        let is_aligned =
            chunks.iter().all(|chunk| chunk.start.is_multiple_of(vector) && chunk.len.is_multiple_of(vector));
        let alignment = match (is_aligned, dtype) {
            (true, _) => Alignment::Vector,
            (false, DType::F32) => Alignment::Element,
            (false, DType::F16 | DType::BF16) => return,
        };
        let format = TileFormat { alignment, dtype };
        let kind = Kind { columns: false, part: 0, format, ordinal: 0 };
        let mut pass = Pass::default();
        for (index, view) in views.iter().enumerate() {
            let base = view.window.offset / dtype.size();
            for chunk in &chunks[view.chunks.clone()] {
                let Some(partial) = chunk.partial else { continue };
                pass.push(kind, index, &[tile(chunk.start - base, chunk.len, partial)]);
            }
        }
        self.small = self.batches(views, limits, pass).pop();
    }
}
