//! `Builder`: the buffers and the dispatches of one plan.

use bytemuck::Pod;

use super::layout::{Batch, Window};
use super::passes::{BoundRange, Dispatch, Source};
use super::usage::STORAGE;
use super::{Limits, MARK, PlanBuffer};
use crate::kernels::tables::{Tile, fold_grid};
use crate::kernels::{Buffer, Kernel, Slots, TileFormat, WORKGROUP_SIZE};

/// Collects the buffers of a plan, and makes its dispatches. A buffer is an index.
pub(super) struct Builder {
    limits: Limits,
    buffers: Vec<PlanBuffer>,
    tiles: usize,
}

impl Builder {
    pub(super) fn new(limits: Limits, tiles: &[Tile]) -> Self {
        let mut builder = Self { limits, buffers: Vec::new(), tiles: 0 };
        // A buffer of no bytes is invalid. Without tiles there are no batches, so nothing binds this one.
        let tiles = or_one(tiles, &Tile { slot: 0, first: 0, count: 0, target_index: 0 });
        builder.tiles = builder.buffer("gradclip.tiles", STORAGE, tiles);
        builder
    }

    /// Returns the buffers.
    pub(super) fn finish(self) -> Vec<PlanBuffer> {
        self.buffers
    }

    pub(super) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Adds a buffer with these values.
    pub(super) fn buffer<T: Pod>(&mut self, label: &'static str, usage: u32, values: &[T]) -> usize {
        self.of_words(label, usage, bytemuck::cast_slice(values).to_vec())
    }

    fn of_words(&mut self, label: &'static str, usage: u32, words: Vec<u32>) -> usize {
        let buffer = PlanBuffer::zeroed(label, usage, size_of_val(&words[..]));
        self.add(PlanBuffer { words, ..buffer })
    }

    /// Adds a buffer with these values that a rebound plan keeps.
    pub(super) fn kept<T: Pod>(&mut self, label: &'static str, usage: u32, values: &[T]) -> usize {
        let buffer = self.buffer(label, usage, values);
        self.buffers[buffer].is_kept = true;
        buffer
    }

    /// Adds a kept buffer with `count` copies of `value`, which the host can read. If `count` is 0 it holds one, since an empty buffer
    /// cannot be bound.
    pub(super) fn results<T: Pod>(
        &mut self,
        label: &'static str,
        usage: u32,
        value: T,
        count: usize,
    ) -> usize {
        let words = bytemuck::cast_slice(&[value]).repeat(count.max(1));
        self.kept_readable(label, usage, words, count * size_of::<T>())
    }

    /// Adds a kept buffer with the words, or with a single 0 if there are none, which the host can read.
    pub(super) fn state(&mut self, label: &'static str, usage: u32, words: &[u32]) -> usize {
        self.kept_readable(label, usage, or_one(words, &0).to_vec(), size_of_val(words))
    }

    fn kept_readable(&mut self, label: &'static str, usage: u32, words: Vec<u32>, readable: usize) -> usize {
        let buffer = self.readable(label, usage, words, readable);
        self.buffers[buffer].is_kept = true;
        buffer
    }

    /// Adds a buffer with these words, of which the host can read the first `readable` bytes. There must be at least one word.
    pub(super) fn readable(
        &mut self,
        label: &'static str,
        usage: u32,
        words: Vec<u32>,
        readable: usize,
    ) -> usize {
        let buffer = self.of_words(label, usage, words);
        let PlanBuffer { words, bytes, .. } = &mut self.buffers[buffer];
        words.extend(MARK);
        *bytes += size_of_val(&MARK) as u64;
        self.buffers[buffer].readable = Some(readable);
        buffer
    }

    pub(super) fn zeroed(&mut self, label: &'static str, usage: u32, bytes: usize) -> usize {
        self.add(PlanBuffer::zeroed(label, usage, bytes))
    }

    fn add(&mut self, buffer: PlanBuffer) -> usize {
        self.buffers.push(buffer);
        self.buffers.len() - 1
    }

    /// Returns the size of a buffer, in bytes.
    pub(super) fn bytes(&self, buffer: usize) -> u64 {
        self.buffers[buffer].bytes
    }

    /// Returns the whole of a buffer.
    pub(super) fn whole(&self, buffer: usize) -> BoundRange {
        BoundRange { source: Source::Own(buffer), offset: 0, size: self.bytes(buffer) }
    }

    /// Makes a dispatch of `workgroups` workgroups. `range` returns the range to bind for each buffer of the kernel.
    pub(super) fn per_workgroup(
        &self,
        kernel: Kernel,
        workgroups: usize,
        range: &dyn Fn(Buffer) -> BoundRange,
    ) -> Dispatch {
        let mut bindings = Vec::new();
        for binding in kernel.bindings() {
            bindings.extend(binding.buffer.elements().map(range));
        }
        Dispatch { kernel, bindings, grid: fold_grid(workgroups, self.limits.workgroups_per_dimension) }
    }

    /// Makes a dispatch of at least `invocations` invocations, as [`per_workgroup`](Self::per_workgroup).
    pub(super) fn per_invocation(
        &self,
        kernel: Kernel,
        invocations: usize,
        range: &dyn Fn(Buffer) -> BoundRange,
    ) -> Dispatch {
        self.per_workgroup(kernel, invocations.div_ceil(WORKGROUP_SIZE as usize), range)
    }

    /// Makes a dispatch for each batch. `other` returns the buffer that the kernel binds besides tiles and gradients, by the index
    /// of the batch.
    pub(super) fn batches(
        &self,
        batches: &[Batch],
        other: &dyn Fn(usize, &Batch) -> usize,
        kernel: &dyn Fn(&Batch, Slots) -> Kernel,
    ) -> Vec<Dispatch> {
        let dispatch = |(index, batch): (usize, &Batch)| {
            let slots = self.limits.slots_for(batch.windows.len());
            self.per_workgroup(kernel(batch, slots), batch.workgroups(), &|buffer| match buffer {
                Buffer::Tiles | Buffer::ColumnTiles => self.tiles_of(batch),
                Buffer::Slot(slot) => self.slot(batch, slot),
                _ => self.whole(other(index, batch)),
            })
        };
        batches.iter().enumerate().map(dispatch).collect()
    }

    /// Makes a dispatch of one workgroup for all tiles of a batch, if the device allows its bindings. `other` returns the range to
    /// bind for each buffer other than tiles and gradients.
    pub(super) fn single_workgroup(
        &self,
        batch: &Batch,
        kernel: &dyn Fn(TileFormat, Slots) -> Kernel,
        other: &dyn Fn(Buffer) -> BoundRange,
    ) -> Option<Dispatch> {
        let kernel = kernel(batch.format, self.limits.slots_for(batch.windows.len()));
        let range = |buffer| match buffer {
            Buffer::Tiles => self.tiles_of(batch),
            Buffer::Slot(slot) => self.slot(batch, slot),
            buffer => other(buffer),
        };
        self.limits.allows(kernel).then(|| self.per_workgroup(kernel, 1, &range))
    }

    /// The window in a slot, or a filler for a slot without one.
    fn slot(&self, batch: &Batch, slot: usize) -> BoundRange {
        let size = self.limits.alignment;
        let filler = BoundRange { source: Source::Filler, offset: slot as u64 * size, size };
        batch.windows.get(slot).map_or(filler, window)
    }

    fn tiles_of(&self, batch: &Batch) -> BoundRange {
        let tile = size_of::<Tile>() as u64;
        BoundRange {
            source: Source::Own(self.tiles),
            offset: batch.tiles.start as u64 * tile,
            size: batch.tiles.len() as u64 * tile,
        }
    }
}

impl PlanBuffer {
    fn zeroed(label: &'static str, usage: u32, bytes: usize) -> Self {
        Self { label, usage, bytes: bytes as u64, words: Vec::new(), is_kept: false, readable: None }
    }
}

/// Returns the range of a window.
pub(super) fn window(&Window { buffer, offset, size }: &Window) -> BoundRange {
    BoundRange { source: Source::Given(buffer), offset, size }
}

/// Returns `values`, or `one` if there are none: a buffer of no bytes cannot be bound.
pub(super) fn or_one<'a, T>(values: &'a [T], one: &'a T) -> &'a [T] {
    if values.is_empty() { std::slice::from_ref(one) } else { values }
}
