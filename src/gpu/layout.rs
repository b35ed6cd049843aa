//! The arithmetic of a plan: which bytes are bound where, which workgroup does what. Numbers in, numbers out; nothing
//! here calls wgpu.
//!
//! A gradient is cut into tiles, relative to its own start, so that its share of the norm does not depend on where
//! it lies. A buffer is seen through windows, as large as a binding may be. A batch is one dispatch: tiles that are
//! read in one manner, from windows that fit into one bind group.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::gradient::Span;

/// The work of one workgroup; `Tile` of `tile.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Tile {
    pub(super) slot: u32,
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) partial: u32,
}

/// How a shader sees a bound buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Access {
    /// Vectors of four words, 16 bytes a load: what is aligned to them.
    Vectors,
    /// Single words: what is not, and what must not be written together with its neighbours.
    Words,
}

/// The largest tile, in words.
pub(crate) const LARGEST_TILE: u64 = 1 << 16;

/// What a device allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The most bytes that one binding may cover; at least a [`LARGEST_TILE`] at any offset.
    pub(super) binding_bytes: u64,
    /// What the offset of a binding must be a multiple of, in bytes; at least 16.
    pub(super) alignment: u64,
    /// The most windows that one dispatch may bind.
    pub(super) slots: usize,
    /// The most workgroups in one dimension of a dispatch.
    pub(super) grid: u32,
}

impl Limits {
    /// A grid of at least so many workgroups, in two dimensions where one is too short.
    pub(super) fn fold(self, workgroups: usize) -> [u32; 2] {
        let most = self.grid as usize;
        let rows = workgroups.div_ceil(most).max(1);
        // The rows are filled evenly, so that no more than one workgroup a row finds nothing to do.
        [workgroups.div_ceil(rows), rows].map(|side| u32::try_from(side).unwrap_or(u32::MAX))
    }
}

/// Bytes of a buffer that one binding covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Index into the list of distinct buffers.
    pub(super) buffer: usize,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// One dispatch: its bindings, and its part of [`Layout::tiles`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) access: Access,
    pub(super) windows: Vec<Window>,
    pub(super) tiles: Range<usize>,
}

/// All the dispatches of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// The tiles of all batches; each batch begins at a multiple of [`Limits::alignment`].
    pub(super) tiles: Vec<Tile>,
    /// The norm pass, which only reads.
    pub(super) norm: Vec<Batch>,
    /// The elementwise pass, which writes. It walks backwards: what the norm pass read last is still in the cache.
    pub(super) apply: Vec<Batch>,
    /// How many partials the norm pass leaves.
    pub(super) partials: usize,
}

/// The words of a tile, for gradients with this many words together.
///
/// Small sets are cut finely, so that there are workgroups for all of the GPU; large ones coarsely, so that the
/// single workgroup that joins the partials stays short. Either way tables and partials take less than 0.1 % of the
/// gradients and 64 KiB.
fn tile_words(total: u64) -> u64 {
    match total {
        0..=0x80_0000 => 1 << 12,
        0x80_0001..=0x4000_0000 => 1 << 14,
        _ => LARGEST_TILE,
    }
}

/// Lays out the dispatches for gradients, of which `order` lists those that are not empty by address; the norm pass
/// only if the plan `measures`.
pub(super) fn lay_out(spans: &[Span], order: &[usize], limits: Limits, measures: bool) -> Layout {
    let tile_words = tile_words(spans.iter().map(|span| span.len).sum());
    let (pieces, partials) = cut(spans, order, tile_words);
    let views = views(&pieces, limits, tile_words);

    let mut layout = Layout { partials, ..Layout::default() };
    if measures {
        layout.norm = layout.batches(&views, limits, |view| &view.norm);
    }
    layout.apply = layout.batches(&views, limits, |view| &view.apply);
    layout.apply.reverse();
    for batch in &layout.apply {
        layout.tiles[batch.tiles.clone()].reverse();
    }
    layout
}

/// A tile of the norm pass before it is known through which window it is seen.
#[derive(Clone, Copy, Debug)]
struct Piece {
    buffer: usize,
    start: u64,
    len: u64,
    partial: usize,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Cuts gradients into tiles, by address. Partials are numbered in the order of the list, so that they are joined in
/// the same order wherever the gradients lie.
fn cut(spans: &[Span], order: &[usize], tile_words: u64) -> (Vec<Piece>, usize) {
    let mut partials = 0;
    let first_partial: Vec<usize> = spans
        .iter()
        .map(|span| {
            let first = partials;
            partials += as_index(span.len.div_ceil(tile_words));
            first
        })
        .collect();
    let mut pieces = Vec::with_capacity(partials);
    for &index in order {
        let Span { buffer, start, len } = spans[index];
        let tiles = (0..len).step_by(as_index(tile_words)).enumerate();
        pieces.extend(tiles.map(|(tile, from)| Piece {
            buffer,
            start: start + from,
            len: tile_words.min(len - from),
            partial: first_partial[index] + tile,
        }));
    }
    (pieces, partials)
}

/// The tiles of one pass that a window shows, by how they are accessed.
#[derive(Debug, Default)]
struct Tiles {
    vectors: Vec<Tile>,
    words: Vec<Tile>,
}

impl Tiles {
    fn of(&self, access: Access) -> &[Tile] {
        match access {
            Access::Vectors => &self.vectors,
            Access::Words => &self.words,
        }
    }
}

/// A window and what is done through it.
#[derive(Debug)]
struct View {
    window: Window,
    /// How many windows of the same buffer come before it.
    ordinal: usize,
    norm: Tiles,
    apply: Tiles,
}

/// Opens a window wherever a piece does not fit into the one before.
fn views(pieces: &[Piece], limits: Limits, tile_words: u64) -> Vec<View> {
    let mut views: Vec<View> = Vec::new();
    let mut from = 0;
    while let Some(first) = pieces.get(from) {
        let offset = 4 * first.start / limits.alignment * limits.alignment;
        let fits =
            |piece: &Piece| piece.buffer == first.buffer && 4 * piece.end() - offset <= limits.binding_bytes;
        let count = pieces[from..].iter().take_while(|piece| fits(piece)).count();
        debug_assert!(count > 0, "a tile fits into every binding");
        let shown = &pieces[from..from + count];
        let ordinal = match views.last() {
            Some(last) if last.window.buffer == first.buffer => last.ordinal + 1,
            _ => 0,
        };
        let size = 4 * shown[count - 1].end() - offset;
        views.push(View {
            window: Window { buffer: first.buffer, offset, size },
            ordinal,
            norm: norm_tiles(shown, offset / 4),
            apply: apply_tiles(shown, offset / 4, tile_words),
        });
        from += count;
    }
    views
}

/// The pieces as the norm pass sees them: whole, since a sum must not depend on the alignment.
fn norm_tiles(pieces: &[Piece], base: u64) -> Tiles {
    let mut tiles = Tiles::default();
    for piece in pieces {
        let tile = tile(piece.start - base, piece.len, piece.partial);
        let aligned = tile.first.is_multiple_of(4) && tile.count.is_multiple_of(4);
        if aligned { &mut tiles.vectors } else { &mut tiles.words }.push(tile);
    }
    tiles
}

/// The pieces as the elementwise pass sees them. What lies side by side is one run; its whole vectors are one thing,
/// the up to three words before and after them another.
fn apply_tiles(pieces: &[Piece], base: u64, tile_words: u64) -> Tiles {
    let mut tiles = Tiles::default();
    for run in pieces.chunk_by(|piece, next| piece.end() == next.start) {
        let (start, end) = (run[0].start - base, run[run.len() - 1].end() - base);
        let head = start.next_multiple_of(4).min(end);
        let tail = (end / 4 * 4).max(head);
        for (from, to) in [(start, head), (tail, end)] {
            if from < to {
                tiles.words.push(tile(from, to - from, 0));
            }
        }
        let body = (head..tail).step_by(as_index(tile_words));
        tiles.vectors.extend(body.map(|from| tile(from, tile_words.min(tail - from), 0)));
    }
    tiles
}

impl Layout {
    /// The tiles of the batch that has most.
    pub(super) fn largest_batch(&self) -> usize {
        self.norm.iter().chain(&self.apply).map(|batch| batch.tiles.len()).max().unwrap_or(0)
    }

    /// One pass: for each manner of access as few batches as the slots allow.
    ///
    /// A batch never binds two windows of one buffer: where they are written, their bytes might not overlap, and
    /// windows begin where the alignment says.
    fn batches(&mut self, views: &[View], limits: Limits, tiles: fn(&View) -> &Tiles) -> Vec<Batch> {
        let mut batches = Vec::new();
        let most = views.iter().map(|view| view.ordinal).max().unwrap_or(0);
        for access in [Access::Vectors, Access::Words] {
            for ordinal in 0..=most {
                let shown: Vec<&View> = views
                    .iter()
                    .filter(|view| view.ordinal == ordinal && !tiles(view).of(access).is_empty())
                    .collect();
                batches.extend(shown.chunks(limits.slots).map(|views| {
                    let windows = views.iter().map(|view| view.window.clone()).collect();
                    let tiles = self.table(views.iter().map(|view| tiles(view).of(access)), limits.alignment);
                    Batch { access, windows, tiles }
                }));
            }
        }
        batches
    }

    /// Appends the tiles of one batch, given by slot, to the table.
    fn table<'a>(&mut self, by_slot: impl Iterator<Item = &'a [Tile]>, alignment: u64) -> Range<usize> {
        let tiles_per_alignment = as_index(alignment) / size_of::<Tile>();
        let start = self.tiles.len().next_multiple_of(tiles_per_alignment);
        self.tiles.resize(start, Tile::default());
        for (slot, tiles) in (0..).zip(by_slot) {
            self.tiles.extend(tiles.iter().map(|&tile| Tile { slot, ..tile }));
        }
        start..self.tiles.len()
    }
}

fn tile(first: u64, count: u64, partial: usize) -> Tile {
    Tile { slot: 0, first: as_word(first), count: as_word(count), partial: as_word(partial as u64) }
}

/// A number of words inside a window, or of a partial: a binding has fewer than 2^32 bytes.
fn as_word(number: u64) -> u32 {
    u32::try_from(number).expect("windows and partials are counted in 32 bits")
}

fn as_index(number: u64) -> usize {
    usize::try_from(number).expect("what is addressed here fits into memory")
}

#[cfg(test)]
mod tests;
