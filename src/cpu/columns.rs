//! Gradients whose columns have their own norms: reductions and updates with a stride.
//!
//! A block of columns is copied, column by column, into a scratch buffer that stays in the cache, and reduced there. So every cache line
//! of the gradient is read once, and a column has the bits of a gradient with the same elements.

use super::elements::{Elements, ElementsMut};
use super::kernels::{self, Update};
use super::parallel::{self, CHUNK_LEN, Reduction};
use crate::float_modes::in_default_modes;

/// The number of elements in the scratch buffer of a task (512 KiB of f32), unless whole cache lines need more.
const SCRATCH_LEN: usize = 1 << 17;

/// The fewest columns in a block: a cache line of f32.
const LEAST_COLUMNS: usize = 16;

/// The number of elements that a task updates.
const UPDATE_LEN: usize = 1 << 16;

/// A part of a matrix: some columns of a chunk of rows. It is small enough for a task.
#[derive(Clone, Copy)]
struct Block {
    first_column: usize,
    columns: usize,
    first_row: usize,
    rows: usize,
}

/// Reduces each column separately. Each value has the bits of the reduction of a gradient that holds the column.
pub(super) fn reduce<R: Reduction>(elements: Elements<'_>, columns: usize, reduction: &R) -> Vec<R::Output> {
    let rows = elements.len() / columns;
    if rows == 0 {
        return vec![reduction.finish_gradient(R::IDENTITY); columns];
    }
    let chunk_rows = rows.min(CHUNK_LEN);
    let width = (SCRATCH_LEN / chunk_rows).max(LEAST_COLUMNS).min(columns);
    let blocks: Vec<Block> = (0..columns)
        .step_by(width)
        .flat_map(|first_column| {
            (0..rows).step_by(CHUNK_LEN).map(move |first_row| Block {
                first_column,
                columns: width.min(columns - first_column),
                first_row,
                rows: CHUNK_LEN.min(rows - first_row),
            })
        })
        .collect();
    let mut values = vec![Vec::new(); blocks.len()];
    reduce_blocks(elements, columns, &blocks, &mut values, reduction);
    in_default_modes(|| {
        let mut outputs = Vec::with_capacity(columns);
        for values in values.chunks(rows.div_ceil(CHUNK_LEN)) {
            for column in 0..values[0].len() {
                let chunks: Vec<_> = values.iter().map(|values| values[column]).collect();
                outputs.push(reduction.finish_gradient(parallel::combine_chunks(rows, &chunks, reduction)));
            }
        }
        outputs
    })
}

fn reduce_blocks<R: Reduction>(
    elements: Elements<'_>,
    stride: usize,
    blocks: &[Block],
    values: &mut [Vec<R::Output>],
    reduction: &R,
) {
    if let [block] = blocks {
        values[0] = in_default_modes(|| match elements {
            Elements::F32(all) => reduce_block(all, stride, *block, |all| Elements::F32(all), reduction),
            Elements::F16(all) => reduce_block(all, stride, *block, |all| Elements::F16(all), reduction),
            Elements::Bf16(all) => reduce_block(all, stride, *block, |all| Elements::Bf16(all), reduction),
        });
        return;
    }
    let (left, right) = blocks.split_at(blocks.len() / 2);
    let (left_values, right_values) = values.split_at_mut(left.len());
    parallel::join(
        || reduce_blocks(elements, stride, left, left_values, reduction),
        || reduce_blocks(elements, stride, right, right_values, reduction),
    );
}

fn reduce_block<E: Copy, R: Reduction>(
    all: &[E],
    stride: usize,
    block: Block,
    wrap: for<'a> fn(&'a [E]) -> Elements<'a>,
    reduction: &R,
) -> Vec<R::Output> {
    let Block { first_column, columns, first_row, rows } = block;
    // Every place is overwritten.
    let mut scratch = vec![all[0]; rows * columns];
    for (row, line) in all.chunks_exact(stride).skip(first_row).take(rows).enumerate() {
        for (column, &x) in line[first_column..first_column + columns].iter().enumerate() {
            scratch[column * rows + row] = x;
        }
    }
    let chunks: Vec<_> = scratch.chunks_exact(rows).map(wrap).collect();
    reduction.map(&chunks)
}

/// Applies to each column its update, if it has one.
pub(super) fn update(elements: ElementsMut<'_>, updates: &[Option<Update>]) {
    if elements.len() == 0 || updates.iter().all(Option::is_none) {
        return;
    }
    update_rows(elements, updates, (UPDATE_LEN / updates.len()).max(1));
}

/// Halves the rows of a matrix until a task has at most `rows`.
fn update_rows(elements: ElementsMut<'_>, updates: &[Option<Update>], rows: usize) {
    let given = elements.len() / updates.len();
    if given <= rows {
        in_default_modes(|| kernels::update_columns(elements, updates));
        return;
    }
    let (above, below) = elements.split_at(given / 2 * updates.len());
    parallel::join(|| update_rows(above, updates, rows), || update_rows(below, updates, rows));
}
