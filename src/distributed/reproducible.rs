//! A norm whose bits do not depend on how gradients are cut.

use std::ops::Range;

use super::tile_norm::{Partial, TileNorm, tile_norm};
#[cfg(feature = "wgpu")]
use crate::Gradient;
use crate::kernels::tables::tile_elements;
use crate::{Error, GradientId, NormType};

/// A gradient of one rank: a shard of a whole gradient of a [reproducible](super::ShardedClip::reproducible) clip.
#[cfg(feature = "wgpu")]
#[derive(Clone, Debug)]
pub struct Shard<'a> {
    pub(super) gradient: Gradient<'a>,
    pub(super) whole: usize,
    pub(super) offset: u64,
}

#[cfg(feature = "wgpu")]
impl<'a> Shard<'a> {
    /// Creates the shard of the whole gradient with the index `whole`, from its element `offset` on.
    #[must_use]
    pub const fn new(gradient: Gradient<'a>, whole: usize, offset: u64) -> Self {
        Self { gradient, whole, offset }
    }
}

/// The most tiles: their numbers take 1 GiB.
const MOST_TILES: usize = 1 << 26;

/// The whole gradients of a reproducible clip, and their tiles.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WholeGradients {
    /// The number of elements of each.
    elements: Vec<u64>,
    /// The first tile of each; then the number of tiles.
    first_tiles: Vec<usize>,
    tile_elements: u64,
}

impl WholeGradients {
    /// Returns `None` for more tiles than any job has.
    pub(super) fn new(elements: &[u64]) -> Option<Self> {
        let total = elements.iter().try_fold(0_u64, |total, &elements| total.checked_add(elements))?;
        let tile_elements = tile_elements(total);
        let mut first_tiles = vec![0];
        for elements in elements {
            let tiles = usize::try_from(elements.div_ceil(tile_elements)).ok()?;
            first_tiles.push(first_tiles[first_tiles.len() - 1] + tiles);
        }
        let whole = Self { elements: elements.to_vec(), first_tiles, tile_elements };
        (whole.tiles() <= MOST_TILES).then_some(whole)
    }

    pub(super) fn elements(&self) -> &[u64] {
        &self.elements
    }

    pub(super) fn total_elements(&self) -> u64 {
        self.elements.iter().sum()
    }

    pub(super) const fn tile_elements(&self) -> u64 {
        self.tile_elements
    }

    pub(super) fn tiles(&self) -> usize {
        self.first_tiles[self.elements.len()]
    }

    /// Returns the tiles of a shard.
    ///
    /// # Errors
    ///
    /// [`Error::Shard`] if it does not lie in its gradient, or begins or ends within a tile.
    pub(super) fn tiles_of(
        &self,
        gradient: &dyn Fn() -> GradientId,
        (whole, offset, len): (usize, u64, u64),
    ) -> Result<Range<usize>, Error> {
        let error = |needed| Err(Error::Shard { gradient: gradient(), whole, offset, len, needed });
        let Some(&elements) = self.elements.get(whole) else {
            return error(format!("there are {} whole gradients", self.elements.len()));
        };
        let tile = self.tile_elements;
        let Some(end) = offset.checked_add(len).filter(|&end| end <= elements) else {
            return error(format!("that gradient has {elements} elements"));
        };
        if len == 0 {
            return Ok(0..0);
        }
        if !offset.is_multiple_of(tile) || !(end.is_multiple_of(tile) || end == elements) {
            return error(format!(
                "a shard must begin and end at a multiple of {tile} elements, or at the end of its gradient"
            ));
        }
        let first = self.first_tiles[whole];
        let at =
            |element: u64| usize::try_from(element.div_ceil(tile)).map_or(usize::MAX, |tiles| first + tiles);
        Ok(at(offset)..at(end))
    }

    fn gradient_of(&self, tile: usize) -> usize {
        self.first_tiles.partition_point(|&first| first <= tile) - 1
    }

    /// Returns the norm of all tiles, from the [numbers](add_tile) of all ranks, and the first gradient that is not finite.
    ///
    /// # Errors
    ///
    /// [`Error::TileCount`] if a tile is not in exactly one shard.
    pub(super) fn norm(
        &self,
        norm_type: NormType,
        numbers: &[f64],
    ) -> Result<(TileNorm, Option<usize>), Error> {
        let mut partials = Vec::with_capacity(self.tiles());
        for (tile, numbers) in numbers.chunks_exact(NUMBERS_PER_TILE).enumerate() {
            let (partial, shards) = tile_of(numbers);
            if shards != 1 {
                let whole = self.gradient_of(tile);
                let element = (tile - self.first_tiles[whole]) as u64 * self.tile_elements;
                return Err(Error::TileCount { whole, element, shards });
            }
            partials.push(partial);
        }
        let norm = tile_norm(norm_type, &partials);
        Ok((norm, norm.first_non_finite.map(|tile| self.gradient_of(tile))))
    }
}

/// The numbers of a tile among the sums of all ranks.
pub(super) const NUMBERS_PER_TILE: usize = 2;

/// Counts the shards that a tile is in: 2^42. The bits of a thousand partials together are below it.
const ONE_SHARD: f64 = 4_398_046_511_104.0;

/// Adds a tile to its numbers, which are integers. Since one shard has the tile, the sum over all ranks is exact.
pub(super) fn add_tile(numbers: &mut [f64], partial: Partial) {
    numbers[0] += ONE_SHARD + f64::from(partial.sum.to_bits());
    numbers[1] += f64::from(partial.largest);
}

/// Returns the partial of a tile, and the number of shards that it is in.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "they are integers of at most 53 bits"
)]
fn tile_of(numbers: &[f64]) -> (Partial, u64) {
    let (shards, largest) = ((numbers[0] / ONE_SHARD).floor(), numbers[1]);
    let sum = f32::from_bits((numbers[0] - shards * ONE_SHARD) as u32);
    (Partial { sum, largest: largest as u32 }, shards as u64)
}
