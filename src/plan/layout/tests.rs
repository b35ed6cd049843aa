//! What every layout must hold, for any set of gradients and any device: proved over random ones. Whatever the shaders
//! index is in range if these hold.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::kernels::tables::{LARGEST_TILE, fold_grid, tile_elements};
use crate::plan::gradient::in_address_order;
use crate::plan::partials::PartialRange;

/// WebGPU's baseline.
const BASELINE: Limits = Limits {
    binding_bytes: 128 << 20,
    buffer_bytes: 128 << 20,
    alignment: 256,
    storage_buffers: 8,
    bindings: 1000,
    slots: 6,
    array_slots: 0,
    banks: 4,
    wide: false,
    workgroups_per_dimension: 65535,
};

/// Gradients by buffer: the gap before each and its length.
type Gaps = Vec<Vec<(u64, u64)>>;

fn spans_of(buffers: &Gaps) -> Vec<Span> {
    let mut spans = Vec::new();
    for (buffer, gradients) in buffers.iter().enumerate() {
        let mut at = 0;
        for &(gap, len) in gradients {
            spans.push(Span { gradient: spans.len(), ..span(buffer, DType::F32, at + gap, len) });
            at += gap + len;
        }
    }
    spans
}

fn span(buffer: usize, dtype: DType, start: u64, len: u64) -> Span {
    Span {
        buffer,
        dtype,
        start,
        len,
        gradient: 0,
        group: 0,
        measured: true,
        scaled: true,
        rows: 1,
        columns: 1,
        part: 0,
        partials: None,
    }
}

fn request<'a>(spans: &'a [Span], order: &'a [usize], segment_of: &'a [usize]) -> Request<'a> {
    let segments = segment_of.iter().max().map_or(1, |most| most + 1);
    let tile_elements = tile_elements(spans.iter().map(|span| span.len).sum());
    Request {
        spans,
        order,
        segment_of,
        segments,
        measures: true,
        norm_loads_vectors: true,
        partial_bytes: 8,
        tile_elements,
    }
}

fn laid_out(spans: &[Span], limits: Limits) -> Layout {
    let order = in_address_order(spans);
    lay_out(request(spans, &order, &vec![0; spans.len()]), limits)
}

/// The bytes of buffers that a pass touches, as (buffer, first, count), by address.
fn touched(layout: &Layout, batches: &[Batch]) -> Vec<(usize, u64, u64)> {
    let mut runs: Vec<_> = batches
        .iter()
        .flat_map(|batch| layout.tiles[batch.tiles.clone()].iter().map(move |tile| (batch, tile)))
        .map(|(batch, tile)| {
            let window = &batch.windows[tile.slot as usize];
            let size = batch.format.dtype.size();
            (window.buffer, window.offset + size * u64::from(tile.first), size * u64::from(tile.count))
        })
        .collect();
    runs.sort_unstable();
    runs
}

/// The same runs with neighbours joined.
fn joined(runs: &[(usize, u64, u64)]) -> Vec<(usize, u64, u64)> {
    let mut joined: Vec<(usize, u64, u64)> = Vec::new();
    for &(buffer, first, count) in runs.iter().filter(|run| run.2 > 0) {
        match joined.last_mut() {
            Some(last) if last.0 == buffer && last.1 + last.2 == first => last.2 += count,
            _ => joined.push((buffer, first, count)),
        }
    }
    joined
}

fn check_batch(layout: &Layout, batch: &Batch, limits: Limits) {
    assert!(!batch.tiles.is_empty() && batch.windows.len() <= limits.slots, "{batch:?} fits its bind group");
    assert_eq!(16 * batch.tiles.start as u64 % limits.alignment, 0, "{batch:?} can be bound");
    let distinct: HashSet<_> = batch.windows.iter().map(|window| window.buffer).collect();
    assert_eq!(distinct.len(), batch.windows.len(), "{batch:?} binds no buffer twice");
    for window in &batch.windows {
        assert_eq!(window.offset % limits.alignment, 0, "{window:?} begins where a binding may");
        assert!(
            window.size <= limits.binding_bytes && window.size % 4 == 0,
            "{window:?} is as long as one may be"
        );
    }
    for tile in &layout.tiles[batch.tiles.clone()] {
        let window = &batch.windows[tile.slot as usize];
        let size = batch.format.dtype.size();
        let (first, count) = (size * u64::from(tile.first), size * u64::from(tile.count));
        assert!(first + count <= window.size, "{tile:?} is inside {window:?}");
        assert!(u64::from(tile.count) <= LARGEST_TILE, "{tile:?} is not too large");
        if batch.format.alignment == Alignment::Vector {
            assert_eq!((first % 16, count % 16), (0, 0), "{tile:?} is made of whole vectors");
        }
    }
}

/// The tiles of the norm pass, each with its batch and the partial that it makes, in whichever bank.
fn measuring(layout: &Layout) -> Vec<(&Batch, &Tile, usize)> {
    let partial_at: HashMap<_, _> = layout.partial_locations.iter().zip(0..).collect();
    let mut measuring = Vec::new();
    for (number, batch) in layout.norm.iter().enumerate() {
        for tile in &layout.tiles[batch.tiles.clone()] {
            let place = tile.target_index as usize * layout.banks.len() + layout.bank_of(number);
            let partial = match layout.banks.len() {
                1 => place,
                _ => partial_at[&u32::try_from(place).unwrap()],
            };
            measuring.push((batch, tile, partial));
        }
    }
    measuring
}

fn check_banks(layout: &Layout, spans: &[Span], limits: Limits) {
    let banks = layout.banks.len();
    assert!(banks.is_power_of_two() && banks <= limits.banks, "{banks} banks can be bound");
    let len_of = |bank: &Bank| if let Bank::Own(len) = bank { *len } else { 0 };
    let given = layout.gradient_of_partial.iter().filter(|&&owner| spans[owner as usize].partials.is_some());
    assert_eq!(
        layout.banks.iter().map(len_of).sum::<usize>() + given.count(),
        layout.gradient_of_partial.len(),
        "banks have room for the partials"
    );
    assert_eq!(layout.partial_locations.len(), if banks > 1 { layout.gradient_of_partial.len() } else { 0 });
    for (number, batch) in layout.norm.iter().enumerate() {
        let len = len_of(&layout.banks[layout.bank_of(number)]);
        for tile in &layout.tiles[batch.tiles.clone()] {
            assert!((tile.target_index as usize) < len, "{tile:?} writes inside its bank");
        }
    }
    let mut written: Vec<_> = measuring(layout).into_iter().map(|(.., partial)| partial).collect();
    written.sort_unstable();
    let is_own = |partial: &usize| spans[layout.gradient_of_partial[*partial] as usize].partials.is_none();
    assert_eq!(
        written,
        (0..layout.gradient_of_partial.len()).filter(is_own).collect::<Vec<_>>(),
        "each partial is written by one tile"
    );
    for (batch, _, partial) in measuring(layout) {
        assert_eq!(batch.part, spans[layout.gradient_of_partial[partial] as usize].part, "{batch:?}");
    }
}

fn check(spans: &[Span], limits: Limits) {
    let layout = laid_out(spans, limits);
    for batch in layout.norm.iter().chain(&layout.apply) {
        check_batch(&layout, batch, limits);
    }

    let expected = |done: fn(&Span) -> bool| {
        let spans = spans.iter().filter(|span| done(span));
        let mut bytes: Vec<_> = spans
            .map(|Span { buffer, dtype, start, len, .. }| (*buffer, start * dtype.size(), len * dtype.size()))
            .collect();
        bytes.sort_unstable();
        joined(&bytes)
    };
    let measured = joined(&touched(&layout, &layout.norm));
    let written = joined(&touched(&layout, &layout.apply));
    let is_read = |span: &Span| span.measured && span.partials.is_none();
    assert_eq!(measured, expected(is_read), "each byte is measured once, and no other");
    assert_eq!(written, expected(|span| span.scaled), "each byte is written once, and no other");

    check_banks(&layout, spans, limits);
}

fn gaps() -> impl Strategy<Value = Gaps> {
    let gap = prop_oneof![Just(0), 0..8_u64, 0..5000_u64];
    let len = prop_oneof![0..9_u64, 0..300_u64, 4090..4100_u64, 0..40_000_u64];
    prop::collection::vec(prop::collection::vec((gap, len), 0..12), 0..12)
}

fn limits() -> impl Strategy<Value = Limits> {
    let binding_bytes = (4 * LARGEST_TILE + 256..3 << 20).prop_map(|bytes| bytes / 16 * 16);
    (binding_bytes, prop_oneof![Just(16), Just(32), Just(256)], 1..40_usize, 0..4_u32).prop_map(
        |(binding_bytes, alignment, slots, banks)| Limits {
            binding_bytes,
            alignment,
            slots,
            banks: 1 << banks,
            ..BASELINE
        },
    )
}

proptest! {
    #[test]
    fn every_word_is_done_once_by_a_tile_in_range(buffers in gaps(), parts in 1..4_usize, limits in limits()) {
        let spans = spans_of(&buffers).into_iter().map(|span| Span { part: span.gradient % parts, ..span });
        check(&spans.collect::<Vec<_>>(), limits);
    }

    /// Partials that other kernels leave lie in two buffers, one after the other with gaps.
    #[test]
    fn given_partials_are_found_where_they_lie(
        buffers in gaps(),
        given in prop::collection::vec((any::<bool>(), 0..2_usize, 0..70_u64, 1..9000_u64), 150),
        limits in limits(),
    ) {
        let mut spans = spans_of(&buffers);
        let mut next = [0; 2];
        for (span, &(is_given, which, gap, elements)) in spans.iter_mut().zip(&given) {
            if is_given && span.len > 0 {
                let partials = PartialRange { buffer: 100 + which, first: next[which] + gap, elements };
                next[which] = partials.first + partials.count(span.len);
                span.partials = Some(partials);
            }
        }
        let order = in_address_order(&spans);
        let segment_of = vec![0; spans.len()];
        let request = request(&spans, &order, &segment_of);
        if check_given(request, limits).is_err() {
            prop_assert!(limits.banks < 4);
            return Ok(());
        }
        check(&spans, limits);
        let layout = lay_out(request, limits);
        let mut partial = 0;
        for span in &spans {
            let count = layout.gradient_of_partial[partial..].iter().take_while(|&&own| own as usize == span.gradient).count();
            if let Some(partials) = span.partials {
                prop_assert_eq!(count as u64, partials.count(span.len));
                for (index, location) in (partials.first..).zip(&layout.partial_locations[partial..partial + count]) {
                    let (location, banks) = (u64::from(*location), layout.banks.len() as u64);
                    let Bank::Given(window) = &layout.banks[usize::try_from(location % banks).unwrap()] else {
                        return Err(TestCaseError::fail("in a given bank"));
                    };
                    prop_assert_eq!(window.buffer, partials.buffer);
                    prop_assert_eq!(window.offset % limits.alignment, 0);
                    prop_assert_eq!(window.offset + 8 * (location / banks), 8 * index);
                    prop_assert!(8 * index + 8 <= window.offset + window.size);
                }
            }
            partial += count;
        }
    }

    #[test]
    fn every_kind_of_gradient_is_done_as_it_asks(
        kinds in prop::collection::vec((0..3_u8, 0..3_usize, any::<bool>(), any::<bool>(), 0..9_u64, 0..9000_u64), 0..20),
        limits in limits(),
    ) {
        let mut at = 0;
        let kinds = kinds.iter().enumerate();
        let spans: Vec<_> = kinds.map(|(gradient, &(dtype, group, measured, scaled, gap, len))| {
            let dtype = [DType::F32, DType::F16, DType::BF16][usize::from(dtype)];
            let start = (at + gap).div_ceil(dtype.size());
            at = (start + len) * dtype.size();
            Span { gradient, group, measured, scaled, ..span(0, dtype, start, len) }
        }).collect();
        check(&spans, limits);

        let order = in_address_order(&spans);
        let segment_of: Vec<_> = spans.iter().map(|span| span.group).collect();
        let layout = lay_out(Request { segments: 3, ..request(&spans, &order, &segment_of) }, limits);
        for (segment, partials) in layout.segments.iter().enumerate() {
            let gradient_of_partial = &layout.gradient_of_partial[partials.clone()];
            prop_assert!(gradient_of_partial.is_sorted(), "partials are in the order of the list");
            for &owner in gradient_of_partial {
                prop_assert_eq!(segment_of[owner as usize], segment);
                prop_assert!(spans[owner as usize].measured);
            }
        }
        for batch in &layout.apply {
            for tile in &layout.tiles[batch.tiles.clone()] {
                let first = batch.windows[tile.slot as usize].offset / batch.format.dtype.size() + u64::from(tile.first);
                let own = spans.iter().position(|span| {
                    span.dtype == batch.format.dtype && (span.start..span.start + span.len).contains(&first)
                });
                prop_assert_eq!(own.map(|own| segment_of[own]), Some(tile.target_index as usize));
            }
        }
    }

    #[test]
    fn what_is_only_measured_may_be_shared(
        gradients in prop::collection::vec((0..5000_u64, 0..40_000_u64), 0..8),
        parameters in prop::collection::vec((0..2_usize, 0..20_000_u64, 0..90_000_u64), 0..8),
        limits in limits(),
    ) {
        let mut spans = spans_of(&vec![gradients]);
        let gradients = spans.clone();
        spans.extend(parameters.iter().map(|&(buffer, start, len)| Span {
            scaled: false, ..span(buffer, DType::F32, start, len)
        }));
        let layout = lay_out(request(&spans, &in_address_order(&spans), &(0..spans.len()).collect::<Vec<_>>()), limits);
        for batch in layout.norm.iter().chain(&layout.apply) {
            check_batch(&layout, batch, limits);
        }
        let written: u64 = touched(&layout, &layout.apply).iter().map(|(.., count)| count).sum();
        prop_assert_eq!(written, gradients.iter().map(|span| 4 * span.len).sum::<u64>());
        // The tiles of a segment are its span, cut.
        let mut tiles = vec![Vec::new(); spans.len()];
        for (batch, tile, partial) in measuring(&layout) {
            let window = &batch.windows[tile.slot as usize];
            let segment = layout.segments.iter().position(|partials| partials.contains(&partial)).unwrap();
            let start = window.offset / 4 + u64::from(tile.first);
            tiles[segment].push((window.buffer, start, start + u64::from(tile.count)));
        }
        for (span, mut tiles) in spans.iter().zip(tiles) {
            tiles.sort_unstable();
            let mut at = span.start;
            for (buffer, start, end) in tiles {
                prop_assert_eq!((buffer, start), (span.buffer, at));
                at = end;
            }
            prop_assert_eq!(at, span.start + span.len);
        }
    }

    #[test]
    fn tiles_and_partials_do_not_depend_on_where_gradients_lie(
        lens in prop::collection::vec(0..30_000_u64, 0..20),
        gap in 0..5_u64,
        a in limits(),
        b in limits(),
    ) {
        let separate: Gaps = lens.iter().map(|&len| vec![(0, len)]).collect();
        let packed: Gaps = vec![lens.iter().map(|&len| (gap, len)).collect()];
        let lengths = |layout: &Layout| {
            let mut by_partial: Vec<_> =
                measuring(layout).into_iter().map(|(_, tile, partial)| (partial, tile.count)).collect();
            by_partial.sort_unstable();
            by_partial
        };
        let (one, other) = (laid_out(&spans_of(&separate), a), laid_out(&spans_of(&packed), b));
        prop_assert_eq!(lengths(&one), lengths(&other));
    }

    #[test]
    fn a_grid_covers_its_workgroups_within_the_limit(workgroups in 1..2_000_000_usize, grid in 2000..70_000_u32) {
        let [x, y] = fold_grid(workgroups, grid);
        prop_assert!(x <= grid && y <= grid);
        let covered = x as usize * y as usize;
        prop_assert!(covered >= workgroups && covered < workgroups + y as usize);
    }
}

#[test]
fn aligned_gradients_take_one_dispatch_a_pass() {
    let one_buffer = vec![vec![(0, 4096), (0, 64), (12, 40_000)]];
    let layout = laid_out(&spans_of(&one_buffer), BASELINE);
    assert_eq!((layout.norm.len(), layout.apply.len()), (1, 1));

    let buffers = vec![vec![(0, 4096)]; 14];
    let layout = laid_out(&spans_of(&buffers), BASELINE);
    assert_eq!((layout.norm.len(), layout.apply.len()), (3, 3), "six buffers a dispatch");
    let layout = laid_out(&spans_of(&buffers), Limits { slots: 32, ..BASELINE });
    assert_eq!((layout.norm.len(), layout.apply.len()), (1, 1));
}

#[test]
fn neighbours_are_written_as_one_run() {
    let neighbours = vec![vec![(0, 10); 1000]];
    let layout = laid_out(&spans_of(&neighbours), BASELINE);
    let written: usize = layout.apply.iter().map(|batch| batch.tiles.len()).sum();
    assert_eq!(written, 10_000_usize.div_ceil(4096));
}

#[test]
fn edges_are_kept_apart_from_whole_vectors() {
    let layout = laid_out(&spans_of(&vec![vec![(3, 10)]]), BASELINE);
    assert_eq!(touched(&layout, &layout.apply), [(0, 12, 4), (0, 16, 32), (0, 48, 4)]);
    let access: Vec<_> = layout.apply.iter().map(|batch| batch.format.alignment).collect();
    assert_eq!(access, [Alignment::Element, Alignment::Vector]);
    assert_eq!(
        layout.norm[0].format.alignment,
        Alignment::Element,
        "a sum is not cut where the alignment says"
    );
}

#[test]
fn buffers_are_walked_backwards_when_written() {
    let layout = laid_out(&spans_of(&vec![vec![(0, 3 * 4096)]]), BASELINE);
    let firsts = |batch: &Batch| -> Vec<_> {
        layout.tiles[batch.tiles.clone()].iter().map(|tile| tile.first).collect()
    };
    assert_eq!(firsts(&layout.norm[0]), [0, 4096, 8192]);
    assert_eq!(firsts(&layout.apply[0]), [8192, 4096, 0]);
}

#[test]
fn tables_and_partials_stay_small() {
    for exponent in 10..34 {
        let words = 1_u64 << exponent;
        let layout =
            laid_out(&[span(0, DType::F32, 0, words)], Limits { binding_bytes: 1 << 31, ..BASELINE });
        let scratch = 16 * layout.tiles.len() + 12 * layout.gradient_of_partial.len();
        assert!(
            scratch as u64 <= 4 * words / 1000 + (64 << 10),
            "2^{exponent} elements take {scratch} bytes"
        );
    }
}

#[test]
fn what_is_not_measured_has_no_norm_pass() {
    let spans = spans_of(&vec![vec![(0, 100)]]);
    let layout = lay_out(Request { measures: false, ..request(&spans, &[0], &[0]) }, BASELINE);
    assert!(layout.norm.is_empty() && layout.apply.len() == 1);
}
