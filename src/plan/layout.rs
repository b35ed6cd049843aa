//! The layout of a plan: the bindings and the tiles of each dispatch. It is arithmetic: it calls nothing of wgpu.
//!
//! A gradient is cut into tiles relative to its own start, so its share of the norm does not depend on its address. A buffer is
//! bound through windows, each at most as large as a binding may be. A batch is one dispatch: tiles of one format, from
//! windows that fit into one bind group.

mod columns;
mod small;

use std::ops::Range;

use super::Limits;
use super::gradient::Span;
use crate::kernels::tables::{Tile, block_rows};
use crate::kernels::{Alignment, MAX_STORAGE_WITHOUT_SLOTS, TileFormat, VECTOR_BYTES};
use crate::{DType, Error};

fn elements_per_vector(dtype: DType) -> u64 {
    VECTOR_BYTES / dtype.size()
}

/// A range of a buffer that one binding covers.
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
    /// The part of the norm pass; 0 in the elementwise pass.
    pub(super) part: usize,
    pub(super) format: TileFormat,
    pub(super) windows: Vec<Window>,
    pub(super) tiles: Range<usize>,
    /// Whether the columns of the gradients have their own norms. Each tile is then a `ColumnTile`, in two entries of the table.
    pub(super) columns: bool,
}

impl Batch {
    pub(super) fn workgroups(&self) -> usize {
        if self.columns { self.tiles.len() / columns::ENTRIES } else { self.tiles.len() }
    }
}

/// A buffer of partials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bank {
    /// One of the plan, with a number of partials. The target of a tile in the norm pass is an index in its bank.
    Own(usize),
    /// A range of a buffer in which another kernel leaves partials.
    Given(Window),
}

/// All the dispatches of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// The tiles of all batches; each batch begins at a multiple of the alignment of [`Limits`].
    pub(super) tiles: Vec<Tile>,
    /// The norm pass, which only reads.
    pub(super) norm: Vec<Batch>,
    /// The elementwise pass, which writes. It runs backwards, because the cache still has the elements that the norm pass read last.
    pub(super) apply: Vec<Batch>,
    /// Both passes in one dispatch of a single workgroup, if the gradients are few enough. The target of a tile is its partial.
    pub(super) small: Option<Batch>,
    /// For each partial, in the order of the segments: the gradient that it belongs to, itself or through its parameter.
    pub(super) gradient_of_partial: Vec<u32>,
    /// The partials of each segment.
    pub(super) segments: Vec<Range<usize>>,
    /// The banks of partials; a power of two.
    pub(super) banks: Vec<Bank>,
    /// The number of banks that the norm pass writes; they come first.
    own_banks: usize,
    /// The location of each partial, if there are several banks: its index in its bank, times the number of banks, plus the bank.
    pub(super) partial_locations: Vec<u32>,
}

/// The input of [`lay_out`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) spans: &'a [Span],
    /// The indices of the spans that are not empty, by address.
    pub(super) order: &'a [usize],
    /// The segment of each span.
    pub(super) segment_of: &'a [usize],
    pub(super) segments: usize,
    /// Whether the plan has a norm pass.
    pub(super) measures: bool,
    /// Whether the kernels of the norm pass can load vectors.
    pub(super) norm_loads_vectors: bool,
    /// The size of a partial, in bytes.
    pub(super) partial_bytes: u64,
    /// The length of a tile.
    pub(super) tile_elements: u64,
}

/// Lays out the dispatches of a plan.
pub(super) fn lay_out(request: Request<'_>, limits: Limits) -> Layout {
    let tile_elements = request.tile_elements;
    let (chunks, segments, gradient_of_partial) = cut(request, tile_elements);
    let views = views(&chunks, limits);

    let mut layout = Layout { gradient_of_partial, segments, ..Layout::default() };
    if request.measures {
        layout.norm = layout.batches(&views, limits, norm_pass(&chunks, &views, request.norm_loads_vectors));
    }
    layout.assign_banks(request, limits);
    layout.apply = layout.batches(&views, limits, apply_pass(&chunks, &views, tile_elements));
    layout.apply.reverse();
    for batch in &layout.apply {
        let tiles = &mut layout.tiles[batch.tiles.clone()];
        if batch.columns {
            columns::reverse(tiles);
        } else {
            tiles.reverse();
        }
    }
    if request.measures && request.norm_loads_vectors && layout.segments.len() == 1 {
        layout.add_small(&chunks, &views, limits);
    }
    layout
}

/// A tile that is not yet assigned to a window.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    buffer: usize,
    dtype: DType,
    /// In elements from the start of the buffer.
    start: u64,
    len: u64,
    /// The index of its partial, if it is measured; with columns, that of its first column.
    partial: Option<usize>,
    part: usize,
    /// With columns, the segment of the first.
    segment: usize,
    scaled: bool,
    /// The number of columns of the gradient that have their own norms, or 1.
    columns: u64,
    /// With columns, the number of blocks of the gradient.
    blocks: u64,
    /// The start of the gradient, as `start`.
    origin: u64,
}

impl Chunk {
    fn bytes(&self) -> Range<u64> {
        self.start * self.dtype.size()..(self.start + self.len) * self.dtype.size()
    }

    /// Whether the elementwise pass can treat `next` as the continuation of this chunk.
    fn continues(&self, next: &Self) -> bool {
        self.bytes().end == next.bytes().start
            && (self.dtype, self.segment, self.scaled) == (next.dtype, next.segment, next.scaled)
    }
}

/// Cuts gradients into chunks, in address order. Partials are numbered by segment, and within a segment in the order of the
/// list, so that the order of additions does not depend on addresses. Returns the chunks, the partials of each segment,
/// and the gradient of each partial.
fn cut(request: Request<'_>, tile_elements: u64) -> (Vec<Chunk>, Vec<Range<usize>>, Vec<u32>) {
    let Request { spans, order, segment_of, .. } = request;
    let tiles_of = |span: &Span| if span.measured { to_usize(partials_of(span, tile_elements)) } else { 0 };
    let mut segments = vec![0..0; request.segments];
    for (span, &segment) in spans.iter().zip(segment_of) {
        for partials in &mut segments[segment..segment + to_usize(span.columns)] {
            partials.end += tiles_of(span);
        }
    }
    let mut end = 0;
    for partials in &mut segments {
        *partials = end..end + partials.end;
        end = partials.end;
    }

    let mut gradient_of_partial = vec![0; end];
    let mut next: Vec<usize> = segments.iter().map(|partials| partials.start).collect();
    let mut first_partial = vec![0; spans.len()];
    for (index, (span, &segment)) in spans.iter().zip(segment_of).enumerate() {
        first_partial[index] = next[segment];
        next[segment] += tiles_of(span) * to_usize(span.columns);
        gradient_of_partial[first_partial[index]..next[segment]].fill(to_u32(span.gradient as u64));
    }

    let mut chunks = Vec::with_capacity(end);
    for &index in order {
        let Span { buffer, dtype, start, len, measured, scaled, columns, part, partials, .. } = spans[index];
        let tile_elements = if columns == 1 { tile_elements } else { block_rows(columns) * columns };
        for tile in 0..len.div_ceil(tile_elements) {
            let from = tile * tile_elements;
            chunks.push(Chunk {
                buffer,
                dtype,
                start: start + from,
                len: tile_elements.min(len - from),
                partial: (measured && partials.is_none()).then_some(first_partial[index] + to_usize(tile)),
                part,
                segment: segment_of[index],
                scaled,
                columns,
                blocks: if columns == 1 { 1 } else { columns::blocks(len, columns) },
                origin: start,
            });
        }
    }
    // They are sorted already, except for parameters that several gradients share.
    chunks.sort_by_key(|chunk| (chunk.buffer, chunk.bytes().start));
    (chunks, segments, gradient_of_partial)
}

/// The number of partials of a span: those that another kernel leaves, or one for each tile. With columns, that of each column.
fn partials_of(span: &Span, tile_elements: u64) -> u64 {
    match *span {
        Span { partials: Some(partials), len, .. } => partials.count(len),
        Span { columns: 1, len, .. } => len.div_ceil(tile_elements),
        Span { columns, len, .. } => columns::blocks(len, columns),
    }
}

/// A window and its chunks.
#[derive(Debug)]
struct View {
    window: Window,
    /// The number of windows of the same buffer before it.
    ordinal: usize,
    /// Indices of the chunks.
    chunks: Range<usize>,
}

/// Opens a new window for each chunk that does not fit into the current one.
fn views(chunks: &[Chunk], limits: Limits) -> Vec<View> {
    let mut views: Vec<View> = Vec::new();
    let mut from = 0;
    while let Some(first) = chunks.get(from) {
        let offset = first.bytes().start / limits.alignment * limits.alignment;
        let size_to = |chunk: &Chunk| (chunk.bytes().end - offset).next_multiple_of(4);
        let fits = |chunk: &Chunk| chunk.buffer == first.buffer && size_to(chunk) <= limits.binding_bytes;
        let count = chunks[from..].iter().take_while(|chunk| fits(chunk)).count();
        debug_assert!(count > 0, "a tile fits into every binding");
        let shown = from..from + count;
        let ordinal = match views.last() {
            Some(last) if last.window.buffer == first.buffer => last.ordinal + 1,
            _ => 0,
        };
        let size = chunks[shown.clone()].iter().map(size_to).max().unwrap_or(0);
        from = shown.end;
        views.push(View { window: Window { buffer: first.buffer, offset, size }, ordinal, chunks: shown });
    }
    views
}

/// What the tiles of a batch have in common. The order is that of the batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    columns: bool,
    part: usize,
    format: TileFormat,
    /// The ordinal of their windows: a batch never binds two windows of one buffer. Windows start at aligned offsets, so two of
    /// them can overlap, and overlapping bindings must not be written.
    ordinal: usize,
}

/// Tiles of one kind in one window.
#[derive(Debug)]
struct Piece {
    kind: Kind,
    /// The index of the view.
    view: usize,
    tiles: Vec<Tile>,
}

/// The tiles of one pass.
#[derive(Debug, Default)]
struct Pass(Vec<Piece>);

impl Pass {
    /// Adds a tile, or the entries of a column tile.
    fn push(&mut self, kind: Kind, view: usize, tiles: &[Tile]) {
        // Six formats alternate, at the edges of runs and from gradient to gradient. So the piece to extend is usually among the
        // last six. If not, a second piece of its kind and window does as well.
        const RECENT: usize = 6;
        let mut recent = self.0.iter_mut().rev().take(RECENT);
        match recent.find(|piece| piece.kind == kind && piece.view == view) {
            Some(piece) => piece.tiles.extend_from_slice(tiles),
            None => self.0.push(Piece { kind, view, tiles: tiles.to_vec() }),
        }
    }
}

/// The tiles of the norm pass: whole chunks, since a sum must not depend on the alignment.
fn norm_pass(chunks: &[Chunk], views: &[View], loads_vectors: bool) -> Pass {
    let mut pass = Pass::default();
    for (index, view) in views.iter().enumerate() {
        for chunk in &chunks[view.chunks.clone()] {
            let Some(partial) = chunk.partial else { continue };
            let Chunk { dtype, len, part, .. } = *chunk;
            let first = chunk.start - view.window.offset / dtype.size();
            let columns = chunk.columns > 1;
            let vector = elements_per_vector(dtype);
            let is_aligned = first.is_multiple_of(vector) && len.is_multiple_of(vector);
            let alignment =
                if is_aligned && loads_vectors && !columns { Alignment::Vector } else { Alignment::Element };
            let format = TileFormat { alignment, dtype };
            let kind = Kind { columns, part, format, ordinal: view.ordinal };
            if columns {
                columns::cut(chunk, first, partial, |entries| pass.push(kind, index, &entries));
            } else {
                pass.push(kind, index, &[tile(first, len, partial)]);
            }
        }
    }
    pass
}

/// The tiles of the elementwise pass. Adjacent chunks form a run. The whole vectors of a run are cut into aligned tiles; the few
/// elements before and after them are the edges.
fn apply_pass(chunks: &[Chunk], views: &[View], tile_elements: u64) -> Pass {
    let mut pass = Pass::default();
    for (index, view) in views.iter().enumerate() {
        let runs = chunks[view.chunks.clone()].chunk_by(Chunk::continues);
        for run in runs.filter(|run| run[0].scaled) {
            let Chunk { dtype, segment, columns, origin, .. } = run[0];
            let base = view.window.offset / dtype.size();
            let mut push = |alignment, from: u64, to: u64| {
                if from < to {
                    let format = TileFormat { alignment, dtype };
                    let kind = Kind { columns: columns > 1, part: 0, format, ordinal: view.ordinal };
                    let tile = tile(from, to - from, segment);
                    if columns > 1 {
                        let column = (base + from - origin) % columns;
                        pass.push(kind, index, &columns::from_column(tile, column, columns));
                    } else {
                        pass.push(kind, index, &[tile]);
                    }
                }
            };
            let last = &run[run.len() - 1];
            let (start, end) = (run[0].start - base, last.start + last.len - base);
            let vector = elements_per_vector(dtype);
            let head = start.next_multiple_of(vector).min(end);
            let tail = (end / vector * vector).max(head);
            push(Alignment::Element, start, head);
            let mut from = head;
            while from < tail {
                let to = tail.min(from + tile_elements);
                push(Alignment::Vector, from, to);
                from = to;
            }
            push(Alignment::Element, tail, end);
        }
    }
    pass
}

impl Layout {
    /// The number of workgroups of the largest dispatch.
    pub(super) fn largest_dispatch(&self) -> usize {
        let gradients = self.gradient_of_partial.iter().max().map_or(0, |&last| last as usize + 1);
        let most = self.segments.len().max(gradients);
        self.norm.iter().chain(&self.apply).fold(most, |most, batch| most.max(batch.workgroups()))
    }

    /// The batches of one pass: for each kind of tile, as few as the device allows.
    fn batches(&mut self, views: &[View], limits: Limits, pass: Pass) -> Vec<Batch> {
        let Pass(mut pieces) = pass;
        let tiles_per_alignment = to_usize(limits.alignment) / size_of::<Tile>();
        pieces.sort_by_key(|piece| (piece.kind, piece.view));
        let mut batches = Vec::new();
        for pieces in pieces.chunk_by(|one, other| one.kind == other.kind) {
            let Kind { columns, part, format, .. } = pieces[0].kind;
            let by_view: Vec<_> = pieces.chunk_by(|one, other| one.view == other.view).collect();
            for shown in by_view.chunks(limits.windows()) {
                let start = self.tiles.len().next_multiple_of(tiles_per_alignment);
                self.tiles.resize(start, Tile::default());
                let mut windows = Vec::with_capacity(shown.len());
                for (slot, pieces) in (0..).zip(shown) {
                    windows.push(views[pieces[0].view].window.clone());
                    for piece in *pieces {
                        self.tiles.extend(piece.tiles.iter().map(|&tile| Tile { slot, ..tile }));
                    }
                }
                batches.push(Batch { part, format, windows, tiles: start..self.tiles.len(), columns });
            }
        }
        batches
    }

    /// Distributes the batches of the norm pass over banks, and locates the partials that other kernels leave.
    ///
    /// wgpu puts a barrier between two dispatches of a pass that write the same buffer, so the second starts on an empty GPU: on
    /// an H100 that takes 3 to 7 µs. Dispatches that write different buffers overlap.
    fn assign_banks(&mut self, request: Request<'_>, limits: Limits) {
        let given = given_banks(request, limits);
        debug_assert!(given.len() < limits.banks.max(2), "checked before");
        let most = limits.banks.saturating_sub(given.len()).max(1);
        let own = if given.is_empty() {
            self.norm.len().next_power_of_two().min(most)
        } else {
            self.norm.len().min(most)
        };
        // Given partials need locations, which only several banks have.
        let banks = (own + given.len()).max(1 + usize::from(!given.is_empty())).next_power_of_two();
        let mut lens = vec![0; own];
        if banks == 1 {
            self.banks = vec![Bank::Own(self.gradient_of_partial.len())];
            return;
        }
        self.partial_locations = vec![0; self.gradient_of_partial.len()];
        for (number, batch) in self.norm.iter().enumerate() {
            let bank = number % own;
            if batch.columns {
                for tile in self.tiles[batch.tiles.clone()].chunks_exact_mut(columns::ENTRIES) {
                    for partial in columns::move_partials(tile, lens[bank]) {
                        self.partial_locations[partial] = to_u32((lens[bank] * banks + bank) as u64);
                        lens[bank] += 1;
                    }
                }
                continue;
            }
            for tile in &mut self.tiles[batch.tiles.clone()] {
                let partial = to_usize(tile.target_index.into());
                self.partial_locations[partial] = to_u32((lens[bank] * banks + bank) as u64);
                tile.target_index = to_u32(lens[bank] as u64);
                lens[bank] += 1;
            }
        }
        self.locate_given(request, &given, own, banks);
        self.banks.extend(lens.into_iter().map(Bank::Own));
        self.banks.extend(given.into_iter().map(Bank::Given));
        self.banks.resize(banks, Bank::Own(0));
        self.own_banks = own;
    }

    /// Sets the locations of the partials that other kernels leave. Their banks follow the `own` ones.
    fn locate_given(&mut self, request: Request<'_>, given: &[Window], own: usize, banks: usize) {
        let mut next: Vec<usize> = self.segments.iter().map(|partials| partials.start).collect();
        let tile_elements = request.tile_elements;
        for (span, &segment) in request.spans.iter().zip(request.segment_of).filter(|(span, _)| span.measured)
        {
            let from = next[segment];
            next[segment] += to_usize(partials_of(span, tile_elements) * span.columns);
            let Some(partials) = span.partials else { continue };
            let bank = given.iter().position(|window| window.buffer == partials.buffer);
            let Some(bank) = bank else { continue };
            let first = partials.first - given[bank].offset / request.partial_bytes;
            for (location, index) in self.partial_locations[from..next[segment]].iter_mut().zip(first..) {
                *location = to_u32(index * banks as u64 + (own + bank) as u64);
            }
        }
    }

    /// Whether wide workgroups are faster: there are few segments, and one has many partials.
    pub(super) fn wants_wide_workgroups(&self) -> bool {
        // Up to sixteen rows of 256 are one turn, as fast in a normal workgroup.
        const MANY: usize = 16 * 256;
        const FEW: usize = 8;
        self.segments.len() <= FEW && self.segments.iter().any(|partials| partials.len() > MANY)
    }

    /// Returns the bank that a batch of the norm pass writes.
    pub(super) fn bank_of(&self, batch: usize) -> usize {
        batch % self.own_banks.max(1)
    }
}

/// Checks that the device can bind the partials that other kernels leave.
pub(super) fn check_given(request: Request<'_>, limits: Limits) -> Result<(), Error> {
    // A location has 32 bits.
    const MOST_BYTES: u64 = 1 << 30;
    let given = given_banks(request, limits);
    if given.is_empty() {
        return Ok(());
    }
    // One more for the partials of other gradients, or to fill a power of two.
    let needed = (given.len() + 1).next_power_of_two();
    if needed > limits.banks {
        let name = "max_storage_buffers_per_shader_stage";
        let more = |banks: usize| (MAX_STORAGE_WITHOUT_SLOTS as usize + banks) as u64;
        let (needed, allowed) = (more(needed), more(limits.banks));
        return Err(Error::DeviceLimit {
            what: "the number of buffers with partials",
            name,
            needed,
            allowed,
        });
    }
    let (needed, allowed) =
        (given.iter().map(|window| window.size).max().unwrap_or(0), limits.binding_bytes.min(MOST_BYTES));
    if needed > allowed {
        let name = "max_storage_buffer_binding_size";
        return Err(Error::DeviceLimit {
            what: "the range of partials in one buffer",
            name,
            needed,
            allowed,
        });
    }
    Ok(())
}

/// The ranges of buffers in which other kernels leave partials, one for each buffer.
pub(super) fn given_banks(request: Request<'_>, limits: Limits) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for span in request.spans {
        let Some(partials) = span.partials else { continue };
        let from = partials.first * request.partial_bytes / limits.alignment * limits.alignment;
        let to = (partials.first + partials.count(span.len)) * request.partial_bytes;
        match windows.iter_mut().find(|window| window.buffer == partials.buffer) {
            Some(window) => {
                let end = to.max(window.offset + window.size);
                window.offset = window.offset.min(from);
                window.size = end - window.offset;
            }
            None => windows.push(Window { buffer: partials.buffer, offset: from, size: to - from }),
        }
    }
    windows
}

fn tile(first: u64, count: u64, target_index: usize) -> Tile {
    Tile { slot: 0, first: to_u32(first), count: to_u32(count), target_index: to_u32(target_index as u64) }
}

/// Narrows a number that the shaders index with.
fn to_u32(number: u64) -> u32 {
    u32::try_from(number).expect("windows, partials and gradients have indices of 32 bits")
}

pub(super) fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("indices fit into memory")
}

#[cfg(test)]
mod tests;
