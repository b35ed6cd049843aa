//! `Measurement`: the norm of one gradient, measured in parts.

use half::{bf16, f16};

use super::elements::Elements;
use super::kernels::ElementCounts;
use super::norm_sums::NormSums;
use super::parallel::{self, CHUNK_LEN, Reduction as _};
use super::reductions::{NormReduction, StatsReduction};
use crate::operation::ByNorm;
use crate::{Error, GradientId, NormType};

/// Measures one gradient in parts, for gradients that do not fit into memory or arrive over time.
///
/// [`ClipPlan::begin_measurement`](crate::cpu::ClipPlan::begin_measurement) creates a measurement.
/// [`ClipPlan::finish_measurements`](crate::cpu::ClipPlan::finish_measurements) computes the records from the
/// measurements of all gradients, with the same bits as [`ClipPlan::clip`](crate::cpu::ClipPlan::clip).
/// [`scale`](crate::cpu::scale) then applies a record to each part.
///
/// A measurement takes 16 bytes for each [`CHUNK_LEN`](Self::CHUNK_LEN) elements, or 32 with
/// [`tensor_stats`](crate::Clip::tensor_stats).
///
/// ```
/// use gradclip::cpu::{self, Gradient, Measurement};
/// use gradclip::{Clip, Error};
///
/// let mut gradient = vec![0.25_f32; 3 * Measurement::CHUNK_LEN + 7];
/// let mut plan = cpu::ClipPlan::new(&[Clip::by_global_norm(1.0)])?;
/// let mut measurement = plan.begin_measurement()?;
/// for part in gradient.chunks(Measurement::CHUNK_LEN) {
///     measurement.add_f32(part)?;
/// }
/// let records = plan.finish_measurements(&[measurement])?;
/// assert_eq!(records[0], cpu::measure(&[&gradient], 1.0)?);
/// for part in gradient.chunks_mut(1000) {
///     cpu::scale(&mut [Gradient::f32(part)], &records[0]);
/// }
/// assert!((cpu::total_norm(&[&gradient]) - 1.0).abs() < 1e-6);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Measurement {
    norm_type: NormType,
    tensor_stats: bool,
    pub(super) group: usize,
    pub(super) label: Option<Box<str>>,
    /// The number of elements added so far.
    pub(super) len: usize,
    /// The value of each chunk, kept separately because the order of summation depends on the final number of chunks.
    chunks: Vec<(NormSums, ElementCounts)>,
}

impl Measurement {
    /// The chunk length in elements. The length of every part of a gradient, except the last, must be a multiple of it.
    pub const CHUNK_LEN: usize = CHUNK_LEN;

    pub(super) const fn new(norm: &ByNorm) -> Self {
        let ByNorm { norm_type, tensor_stats, .. } = *norm;
        Self { norm_type, tensor_stats, group: 0, label: None, len: 0, chunks: Vec::new() }
    }

    /// Sets the group of the gradient: the index of its clip in the plan. The default is 0.
    #[must_use]
    pub const fn group(mut self, group: usize) -> Self {
        self.group = group;
        self
    }

    /// Sets the label of the gradient, which error messages show next to the index.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Adds the next f32 elements.
    ///
    /// # Errors
    ///
    /// [`Error::MisalignedChunk`] if the number of elements added before is not a multiple of
    /// [`CHUNK_LEN`](Self::CHUNK_LEN).
    pub fn add_f32(&mut self, elements: &[f32]) -> Result<(), Error> {
        self.add(Elements::F32(elements))
    }

    /// Adds the next f16 elements.
    ///
    /// # Errors
    ///
    /// Those of [`add_f32`](Self::add_f32).
    pub fn add_f16(&mut self, elements: &[f16]) -> Result<(), Error> {
        self.add(Elements::F16(elements))
    }

    /// Adds the next bf16 elements.
    ///
    /// # Errors
    ///
    /// Those of [`add_f32`](Self::add_f32).
    pub fn add_bf16(&mut self, elements: &[bf16]) -> Result<(), Error> {
        self.add(Elements::Bf16(elements))
    }

    fn add(&mut self, elements: Elements<'_>) -> Result<(), Error> {
        if elements.len() == 0 {
            return Ok(());
        }
        if !self.len.is_multiple_of(CHUNK_LEN) {
            return Err(Error::MisalignedChunk {
                label: self.label.clone(),
                at: self.len as u64,
                multiple: CHUNK_LEN as u64,
            });
        }
        self.len += elements.len();
        // Each chunk is passed as a gradient, because gradients are reduced in parallel.
        let chunks: Vec<_> = elements.chunks(CHUNK_LEN).collect();
        if self.tensor_stats {
            self.chunks.extend(parallel::reduce(&chunks, &StatsReduction(self.norm_type)));
        } else {
            let sums = parallel::reduce(&chunks, &NormReduction(self.norm_type));
            self.chunks.extend(sums.into_iter().map(|sums| (sums, ElementCounts::default())));
        }
        Ok(())
    }

    /// Returns whether the measurement has the norm type and the statistics that a clip needs.
    pub(super) fn fits(&self, norm: &ByNorm) -> bool {
        (self.norm_type, self.tensor_stats) == (norm.norm_type, norm.tensor_stats)
    }

    /// Combines the chunks into the value of the whole gradient.
    pub(super) fn value(&self) -> (NormSums, ElementCounts) {
        let reduction = StatsReduction(self.norm_type);
        reduction.finish_gradient(parallel::combine_chunks(self.len, &self.chunks, &reduction))
    }

    /// Returns the id of the gradient, given its index in the list of measurements.
    pub(super) fn id(&self, index: usize) -> GradientId {
        GradientId::new(index, self.label.as_deref())
    }
}
