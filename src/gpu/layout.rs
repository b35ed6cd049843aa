//! The arithmetic of a plan: which bytes are bound where, which workgroup does what. Numbers in, numbers out; nothing
//! here calls wgpu.
//!
//! A gradient is cut into tiles, relative to its own start, so that its share of the norm does not depend on where
//! it lies. A buffer is seen through windows, as large as a binding may be. A batch is one dispatch: tiles that are
//! read in one manner, from windows that fit into one bind group.

use std::collections::BTreeMap;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::gradient::Span;
use crate::DType;

/// The work of one workgroup; `Tile` of `tile.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Tile {
    pub(super) slot: u32,
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) target_index: u32,
}

/// How a shader sees a bound buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Vectors of four words, 16 bytes a load: what is aligned to them.
    Vectors,
    /// Single elements: what is not, and what must not be written together with its neighbours.
    Elements,
}

/// What tiles of one dispatch have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Manner {
    /// How gradients are read and written.
    pub access: Access,
    /// The type of their elements.
    pub dtype: DType,
}

/// The elements in a vector.
fn per_vector(dtype: DType) -> u64 {
    16 / dtype.size()
}

/// The largest tile, in elements.
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
    /// The most banks of partials: a power of two.
    pub(super) banks: usize,
    /// Whether a workgroup may have 1024 invocations.
    pub(super) wide: bool,
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
    pub(super) manner: Manner,
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
    /// Of each partial that the norm pass leaves, by segments: the gradient that it is of, or whose parameter.
    pub(super) owners: Vec<u32>,
    /// The partials of each segment.
    pub(super) segments: Vec<Range<usize>>,
    /// How many partials each bank has. Tiles of the norm pass count within their bank.
    pub(super) banks: Vec<usize>,
    /// The location of each partial, if there are several banks: its index in its bank, times the number of banks, plus the bank.
    pub(super) places: Vec<u32>,
}

/// What a plan is to lay out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) spans: &'a [Span],
    /// The indices of the spans that are not empty, by address.
    pub(super) order: &'a [usize],
    /// Of each span: the segment that it belongs to, whose norm it shares.
    pub(super) segment_of: &'a [usize],
    pub(super) segments: usize,
    /// Whether the plan has a norm pass.
    pub(super) measures: bool,
    /// Whether the norm pass can read vectors.
    pub(super) norm_reads_vectors: bool,
}

/// How many elements a tile has, for gradients with this many together; the last of a gradient may have fewer.
///
/// Small sets are cut finely, so that there are workgroups for all of the GPU; large ones coarsely, so that the
/// single workgroup that joins the partials stays short. Either way tables and partials of f32 gradients take less than
/// 0.1 % of them and 64 KiB.
#[must_use]
pub const fn tile_elements(total: u64) -> u64 {
    match total {
        0..=0x80_0000 => 1 << 12,
        0x80_0001..=0x4000_0000 => 1 << 14,
        _ => LARGEST_TILE,
    }
}

/// Lays out the dispatches of a plan.
pub(super) fn lay_out(request: Request<'_>, limits: Limits) -> Layout {
    let tile_elements = tile_elements(request.spans.iter().map(|span| span.len).sum());
    let (pieces, segments, owners) = cut(request, tile_elements);
    let views = views(&pieces, limits, tile_elements, request.norm_reads_vectors);

    let mut layout = Layout { owners, segments, ..Layout::default() };
    if request.measures {
        layout.norm = layout.batches(&views, limits, |view| &view.norm);
    }
    layout.assign_banks(limits.banks);
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
    dtype: DType,
    /// In elements from the start of the buffer.
    start: u64,
    len: u64,
    /// The partial that it makes, if it is measured.
    partial: Option<usize>,
    segment: usize,
    scaled: bool,
}

impl Piece {
    fn bytes(&self) -> Range<u64> {
        self.start * self.dtype.size()..(self.start + self.len) * self.dtype.size()
    }

    /// Whether the elementwise pass may treat the next one as more of the same.
    fn continues(&self, next: &Self) -> bool {
        self.bytes().end == next.bytes().start
            && (self.dtype, self.segment, self.scaled) == (next.dtype, next.segment, next.scaled)
    }
}

/// Cuts gradients into tiles, by address. Partials are numbered by segment, and there in the order of the list, so that
/// they are joined in the same order wherever the gradients lie. Returns them, the partials of each segment, and the
/// gradient of each partial.
fn cut(request: Request<'_>, tile_elements: u64) -> (Vec<Piece>, Vec<Range<usize>>, Vec<u32>) {
    let Request { spans, order, segment_of, .. } = request;
    let tiles_of = |span: &Span| if span.measured { as_index(span.len.div_ceil(tile_elements)) } else { 0 };
    let mut counts = vec![0; request.segments];
    for (span, &segment) in spans.iter().zip(segment_of) {
        counts[segment] += tiles_of(span);
    }
    let mut end = 0;
    let segments: Vec<_> = counts
        .iter()
        .map(|count| {
            end += count;
            end - count..end
        })
        .collect();

    let mut owners = vec![0; end];
    let mut next: Vec<usize> = segments.iter().map(|partials| partials.start).collect();
    let mut first_partial = vec![0; spans.len()];
    for (index, (span, &segment)) in spans.iter().zip(segment_of).enumerate() {
        first_partial[index] = next[segment];
        next[segment] += tiles_of(span);
        owners[first_partial[index]..next[segment]].fill(as_word(span.gradient as u64));
    }

    let mut pieces = Vec::with_capacity(end);
    for &index in order {
        let Span { buffer, dtype, start, len, measured, scaled, .. } = spans[index];
        let tiles = (0..len).step_by(as_index(tile_elements)).enumerate();
        pieces.extend(tiles.map(|(tile, from)| Piece {
            buffer,
            dtype,
            start: start + from,
            len: tile_elements.min(len - from),
            partial: measured.then_some(first_partial[index] + tile),
            segment: segment_of[index],
            scaled,
        }));
    }
    // They are, but for parameters that several gradients share.
    pieces.sort_by_key(|piece| (piece.buffer, piece.bytes().start));
    (pieces, segments, owners)
}

/// The tiles of one pass that a window shows.
type Tiles = BTreeMap<Manner, Vec<Tile>>;

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
fn views(pieces: &[Piece], limits: Limits, tile_elements: u64, norm_reads_vectors: bool) -> Vec<View> {
    let mut views: Vec<View> = Vec::new();
    let mut from = 0;
    while let Some(first) = pieces.get(from) {
        let offset = first.bytes().start / limits.alignment * limits.alignment;
        let size_to = |piece: &Piece| (piece.bytes().end - offset).next_multiple_of(4);
        let fits = |piece: &Piece| piece.buffer == first.buffer && size_to(piece) <= limits.binding_bytes;
        let count = pieces[from..].iter().take_while(|piece| fits(piece)).count();
        debug_assert!(count > 0, "a tile fits into every binding");
        let shown = &pieces[from..from + count];
        let ordinal = match views.last() {
            Some(last) if last.window.buffer == first.buffer => last.ordinal + 1,
            _ => 0,
        };
        views.push(View {
            window: Window {
                buffer: first.buffer,
                offset,
                size: shown.iter().map(size_to).max().unwrap_or(0),
            },
            ordinal,
            norm: norm_tiles(shown, offset, norm_reads_vectors),
            apply: apply_tiles(shown, offset, tile_elements),
        });
        from += count;
    }
    views
}

/// The pieces as the norm pass sees them: whole, since a sum must not depend on the alignment.
fn norm_tiles(pieces: &[Piece], offset: u64, reads_vectors: bool) -> Tiles {
    let mut tiles = Tiles::new();
    for piece in pieces {
        let Some(partial) = piece.partial else { continue };
        let first = piece.start - offset / piece.dtype.size();
        let whole = per_vector(piece.dtype);
        let aligned = first.is_multiple_of(whole) && piece.len.is_multiple_of(whole);
        let access = if aligned && reads_vectors { Access::Vectors } else { Access::Elements };
        let manner = Manner { access, dtype: piece.dtype };
        tiles.entry(manner).or_default().push(tile(first, piece.len, partial));
    }
    tiles
}

/// The pieces as the elementwise pass sees them. What lies side by side is one run; its whole vectors are one thing,
/// the few elements before and after them another.
fn apply_tiles(pieces: &[Piece], offset: u64, tile_elements: u64) -> Tiles {
    let mut tiles = Tiles::new();
    for run in pieces.chunk_by(Piece::continues).filter(|run| run[0].scaled) {
        let Piece { dtype, segment, .. } = run[0];
        let mut push = |access, from, to| {
            if from < to {
                tiles.entry(Manner { access, dtype }).or_default().push(tile(from, to - from, segment));
            }
        };
        let base = offset / dtype.size();
        let (start, end) = (run[0].start - base, run[run.len() - 1].start + run[run.len() - 1].len - base);
        let whole = per_vector(dtype);
        let head = start.next_multiple_of(whole).min(end);
        let tail = (end / whole * whole).max(head);
        push(Access::Elements, start, head);
        for from in (head..tail).step_by(as_index(tile_elements)) {
            push(Access::Vectors, from, tail.min(from + tile_elements));
        }
        push(Access::Elements, tail, end);
    }
    tiles
}

impl Layout {
    /// The most workgroups that a dispatch needs.
    pub(super) fn largest_dispatch(&self) -> usize {
        let batches = self.norm.iter().chain(&self.apply).map(|batch| batch.tiles.len());
        let gradients = self.owners.iter().max().map_or(0, |&last| last as usize + 1);
        batches.chain([self.segments.len(), gradients]).max().unwrap_or(0)
    }

    /// One pass: for each manner as few batches as the slots allow.
    ///
    /// A batch never binds two windows of one buffer: where they are written, their bytes must not overlap, and
    /// windows begin where the alignment says.
    fn batches(&mut self, views: &[View], limits: Limits, tiles: fn(&View) -> &Tiles) -> Vec<Batch> {
        let mut by_manner: BTreeMap<(Manner, usize), Vec<&View>> = BTreeMap::new();
        for view in views {
            for &manner in tiles(view).keys() {
                by_manner.entry((manner, view.ordinal)).or_default().push(view);
            }
        }
        let mut batches = Vec::new();
        for ((manner, _), shown) in by_manner {
            batches.extend(shown.chunks(limits.slots).map(|views| {
                let windows = views.iter().map(|view| view.window.clone()).collect();
                let tiles = self.table(views.iter().map(|view| &tiles(view)[&manner][..]), limits.alignment);
                Batch { manner, windows, tiles }
            }));
        }
        batches
    }

    /// Distributes the batches of the norm pass over at most `most` banks.
    ///
    /// wgpu puts a barrier between two dispatches of a pass that write one buffer, so that the second starts on an empty GPU:
    /// on an H100 that takes 3 to 7 µs. Dispatches that write different buffers overlap.
    fn assign_banks(&mut self, most: usize) {
        let banks = self.norm.len().next_power_of_two().min(most);
        self.banks = vec![0; banks];
        if banks == 1 {
            self.banks[0] = self.owners.len();
            return;
        }
        self.places = vec![0; self.owners.len()];
        for (number, batch) in self.norm.iter().enumerate() {
            let bank = number % banks;
            for tile in &mut self.tiles[batch.tiles.clone()] {
                let partial = as_index(tile.target_index.into());
                self.places[partial] = as_word((self.banks[bank] * banks + bank) as u64);
                tile.target_index = as_word(self.banks[bank] as u64);
                self.banks[bank] += 1;
            }
        }
    }

    /// Whether partials are so many, and in so few segments, that wide workgroups join them sooner.
    pub(super) fn wants_wide_workgroups(&self) -> bool {
        // Up to sixteen rows of 256 are one turn, and as quick without.
        const MANY: usize = 16 * 256;
        const FEW: usize = 8;
        self.segments.len() <= FEW && self.segments.iter().any(|partials| partials.len() > MANY)
    }

    /// The bank that a batch of the norm pass writes.
    pub(super) fn bank_of(&self, batch: usize) -> usize {
        batch % self.banks.len()
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

fn tile(first: u64, count: u64, target_index: usize) -> Tile {
    Tile { slot: 0, first: as_word(first), count: as_word(count), target_index: as_word(target_index as u64) }
}

/// A number of elements inside a window, of a partial or of a gradient.
fn as_word(number: u64) -> u32 {
    u32::try_from(number).expect("windows, partials and gradients are counted in 32 bits")
}

fn as_index(number: u64) -> usize {
    usize::try_from(number).expect("what is addressed here fits into memory")
}

#[cfg(test)]
mod tests;
