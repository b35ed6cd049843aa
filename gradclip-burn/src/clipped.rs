//! `Clipped`: the outcome of a clip.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Device, Tensor};
use gradclip::operation::{ByNorm, NormOutcome, Scope};
use gradclip::stats::TensorStats;
use gradclip::{ClipRecord, NonFinite, NormType};

use crate::Error;
#[cfg(feature = "wgpu")]
use crate::kernels::KernelMeasurement;
use crate::resolved_clip::{ClipKind, ResolvedClip};
use crate::tensor_ops::{InverseScale, TensorOpsMeasurement};
#[cfg(feature = "wgpu")]
use crate::transfer::read_words;
use crate::transfer::{read_counts, read_floats};

/// The outcome of a clip, kept on the device. [`norm`](Self::norm) and [`factor`](Self::factor) return tensors for
/// further operations; [`records`](Self::records) reads the outcome back, for example for a log.
#[derive(Clone, Debug)]
pub struct Clipped {
    measurement: Measurement,
    parameters: Arc<[String]>,
    clip: Arc<ResolvedClip>,
    /// The records, once they have been read back.
    records: Arc<OnceLock<Vec<ClipRecord>>>,
    skipped: bool,
}

/// The measurement of a clip, from the kernels or from tensor operations.
#[derive(Clone, Debug)]
pub(crate) enum Measurement {
    #[cfg(feature = "wgpu")]
    Kernels(Box<KernelMeasurement>),
    TensorOps(Box<TensorOpsMeasurement>),
    /// Nothing was measured: there were no gradients, or the clip was by value.
    None {
        device: Device,
        used_kernels: bool,
    },
}

impl Clipped {
    pub(crate) fn new(measurement: Measurement, parameters: Arc<[String]>, clip: Arc<ResolvedClip>) -> Self {
        Self { measurement, parameters, clip, records: Arc::default(), skipped: false }
    }

    /// Marks the step as skipped.
    pub(crate) fn with_step_skipped(self) -> Self {
        Self { skipped: true, ..self }
    }

    /// Returns the policy for non-finite gradients.
    fn policy(&self) -> NonFinite {
        self.clip.non_finite()
    }

    /// Returns whether the records decide if the optimizer steps.
    pub(crate) fn decides_step(&self) -> bool {
        self.clip.decides_step()
    }

    /// Returns whether this step is skipped: a gradient is not finite, and the policy is [`NonFinite::Skip`]; or a norm
    /// exceeds [`Clip::skip_above`](gradclip::Clip::skip_above). The clip has then removed all gradients of the module
    /// from the container, so that Burn's optimizers change neither parameters nor optimizer state. Does not wait for
    /// the device.
    #[must_use]
    pub const fn skipped(&self) -> bool {
        self.skipped
    }

    /// Returns the norms before clipping as f32, with the loss scale removed. A clip by global norm has one element for
    /// the parameters that belong to no group, followed by one per group. A clip of each gradient by its own norm has
    /// one element per gradient, in the order of [`parameters`](Self::parameters), or one for each of its
    /// [`units`](Self::units). All elements are 0 if nothing was measured: the clip is by value, or there are no
    /// gradients.
    #[must_use]
    pub fn norm(&self) -> Tensor<1> {
        match &self.measurement {
            #[cfg(feature = "wgpu")]
            Measurement::Kernels(measurement) => measurement.norms.clone(),
            Measurement::TensorOps(measurement) => measurement.norms.clone(),
            Measurement::None { device, .. } => Tensor::zeros([self.clip.segments()], (device, DType::F32)),
        }
    }

    /// Returns the factors that multiply the gradients, one for each element of [`norm`](Self::norm): the
    /// [`ClipRecord::factor`] of each record. After a clip with [`coefficient_only`](gradclip::Clip::coefficient_only),
    /// the optimizer multiplies by them. All are 1 if nothing was measured.
    #[must_use]
    pub fn factor(&self) -> Tensor<1> {
        match &self.measurement {
            #[cfg(feature = "wgpu")]
            Measurement::Kernels(measurement) => measurement.factors.clone(),
            Measurement::TensorOps(measurement) => measurement.factors.clone(),
            Measurement::None { device, .. } => Tensor::ones([self.clip.segments()], (device, DType::F32)),
        }
    }

    /// Returns the norm type of [`norm`](Self::norm).
    #[must_use]
    pub fn norm_type(&self) -> NormType {
        self.clip.norm_type()
    }

    /// Returns the paths of the parameters with a gradient, in the order of the module.
    /// [`ClipRecord::first_non_finite`] is an index into this list.
    #[must_use]
    pub fn parameters(&self) -> &[String] {
        &self.parameters
    }

    /// Returns the number of elements that each gradient has in [`norm`](Self::norm) and [`records`](Self::records), in
    /// the order of [`parameters`](Self::parameters): its number of rows if
    /// [`GradClipper::rows`](crate::GradClipper::rows) selects it, its number of columns if
    /// [`GradClipper::columns`](crate::GradClipper::columns) does, otherwise 1. Empty if groups share a norm.
    #[must_use]
    pub fn units(&self) -> Vec<usize> {
        let segments = self.clip.segments_of.iter().filter(|_| self.clip.is_per_gradient());
        segments.map(ExactSizeIterator::len).collect()
    }

    /// Returns whether gradclip's kernels clipped the gradients. If not, Burn's tensor operations did.
    #[must_use]
    pub fn used_kernels(&self) -> bool {
        match self.measurement {
            #[cfg(feature = "wgpu")]
            Measurement::Kernels(_) => true,
            Measurement::TensorOps(_) => false,
            Measurement::None { used_kernels, .. } => used_kernels,
        }
    }

    /// Reads back the record of each element of [`norm`](Self::norm). The first call waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`]; under [`NonFinite::Error`], [`Error::NonFinite`] if a gradient is not finite.
    pub fn records(&self) -> Result<Vec<ClipRecord>, Error> {
        pollster::block_on(self.records_async())
    }

    /// Reads back the [`records`](Self::records) without blocking the thread.
    ///
    /// # Errors
    ///
    /// Those of [`records`](Self::records).
    pub async fn records_async(&self) -> Result<Vec<ClipRecord>, Error> {
        let records = if let Some(records) = self.records.get() {
            records
        } else {
            let records = self.read_records().await?;
            self.records.get_or_init(|| records)
        };
        let is_error = self.policy() == NonFinite::Error;
        match records.iter().find(|record| is_error && record.non_finite()) {
            Some(record) => {
                let parameter =
                    record.first_non_finite().and_then(|index| self.parameters.get(index).cloned());
                Err(Error::NonFinite { parameter })
            }
            None => Ok(records.clone()),
        }
    }

    async fn read_records(&self) -> Result<Vec<ClipRecord>, Error> {
        match (&self.measurement, self.clip.kind) {
            #[cfg(feature = "wgpu")]
            (Measurement::Kernels(measurement), _) => read_words(&measurement.records).await,
            (Measurement::TensorOps(measurement), ClipKind::Norm(norm)) => {
                measured_records(measurement, &self.clip, &norm).await
            }
            _ => Ok(vec![ClipRecord::UNCLIPPED; self.clip.segments()]),
        }
    }

    /// Reads back the statistics of each gradient, with the path of its parameter. Empty unless the clip measures
    /// [`tensor_stats`](gradclip::Clip::tensor_stats). Waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`].
    pub fn tensor_stats(&self) -> Result<Vec<(String, TensorStats)>, Error> {
        pollster::block_on(self.tensor_stats_async())
    }

    /// Reads back the [`tensor_stats`](Self::tensor_stats) without blocking the thread.
    ///
    /// # Errors
    ///
    /// Those of [`tensor_stats`](Self::tensor_stats).
    pub async fn tensor_stats_async(&self) -> Result<Vec<(String, TensorStats)>, Error> {
        let stats = match (&self.measurement, self.clip.kind) {
            #[cfg(feature = "wgpu")]
            (Measurement::Kernels(measurement), _) => match &measurement.stats {
                Some(stats) => read_words(stats).await?,
                None => Vec::new(),
            },
            (Measurement::TensorOps(measurement), _) => measured_stats(measurement, &self.clip).await?,
            _ => Vec::new(),
        };
        Ok(self.parameters.iter().cloned().zip(stats).collect())
    }
}

/// Reads back the records of a clip by tensor operations.
async fn measured_records(
    measurement: &TensorOpsMeasurement,
    clip: &ResolvedClip,
    norm: &ByNorm,
) -> Result<Vec<ClipRecord>, Error> {
    let TensorOpsMeasurement {
        norms,
        coefs,
        factors,
        shifted_norms,
        shifted_factors,
        shifts,
        is_too_large,
        is_at_floor,
        inverse_scale,
        max_magnitudes,
        ..
    } = measurement;
    let of_segments =
        [norms, coefs, factors, shifted_norms, shifted_factors, shifts, is_too_large, is_at_floor];
    // A single tensor, so that the host waits once.
    let mut all = of_segments.map(Tensor::clone).to_vec();
    all.push(max_magnitudes.clone());
    if let InverseScale::Tensor(inverse) = inverse_scale {
        all.push(Tensor::clone(inverse));
    }
    let mut all = read_floats(&Tensor::cat(all, 0)).await?;
    let inverse_scale = match inverse_scale {
        InverseScale::Number(inverse) => *inverse,
        InverseScale::Tensor(_) => all.pop().unwrap_or(f32::NAN),
    };
    let (of_segments, max_magnitudes) = all.split_at(of_segments.len() * clip.segments());
    let is_measured = norm.scope != Scope::Supplied;
    let record = |segment: usize| {
        let [total_norm, clip_coef, factor, shifted_norm, shifted_factor, shift, is_too_large, is_at_floor] =
            std::array::from_fn(|number| of_segments[number * clip.segments() + segment]);
        // The magnitudes of a segment, with the indices of their gradients.
        let magnitudes = || {
            let of_segment = |(index, segments): (usize, &Range<usize>)| {
                let unit = if clip.is_per_gradient() { segment } else { index };
                segments.contains(&segment).then(|| (index, max_magnitudes[unit]))
            };
            clip.segments_of.iter().enumerate().filter_map(of_segment)
        };
        let max_magnitude = largest(magnitudes().map(|(_, magnitude)| magnitude));
        let first_non_finite = magnitudes().find_map(|(index, max)| (!max.is_finite()).then_some(index));
        let exact_norm = f64::from(shifted_norm) / f64::from(shift);
        // The norm of finite gradients is finite, even if it exceeds f32 in spite of the shift.
        let is_beyond_f32 = is_measured && first_non_finite.is_none() && exact_norm.is_infinite();
        let exact_norm = if is_beyond_f32 { f64::MAX } else { exact_norm };
        let is_empty = measurement.empty[segment];
        let outcome = NormOutcome {
            total_norm,
            clip_coef,
            factor,
            max_magnitude: max_magnitude * inverse_scale,
            first_non_finite,
            exact_norm: (!is_empty).then_some(exact_norm),
            exact_factor: f64::from(shifted_factor) * f64::from(shift),
            skipped: is_too_large != 0.0,
            scale_at_floor: is_at_floor != 0.0,
        };
        outcome.record(norm.non_finite)
    };
    Ok((0..clip.segments()).map(record).collect())
}

/// Returns the largest magnitude; NaN if there is one.
fn largest(magnitudes: impl Iterator<Item = f32>) -> f32 {
    magnitudes.fold(0.0, |max: f32, next| if next > max || next.is_nan() { next } else { max })
}

/// Reads back the statistics of each gradient after a clip by tensor operations.
async fn measured_stats(
    measurement: &TensorOpsMeasurement,
    clip: &ResolvedClip,
) -> Result<Vec<TensorStats>, Error> {
    let Some(stats) = &measurement.stats else { return Ok(Vec::new()) };
    let inverse_scale = match &measurement.inverse_scale {
        InverseScale::Number(inverse) => *inverse,
        InverseScale::Tensor(inverse) => read_floats(inverse).await?[0],
    };
    let norms = read_floats(&stats.norms).await?;
    let mut max_magnitudes = read_floats(&measurement.max_magnitudes).await?;
    if clip.is_per_gradient() {
        let of_units = |segments: &Range<usize>| largest(max_magnitudes[segments.clone()].iter().copied());
        max_magnitudes = clip.segments_of.iter().map(of_units).collect();
    }
    let non_finite = read_counts(&stats.non_finite).await?;
    let zeros = read_counts(&stats.zeros).await?;
    let numbers = norms.into_iter().zip(max_magnitudes).zip(non_finite).zip(zeros);
    let stats = numbers.map(|(((gradient_norm, max_magnitude), non_finite), zeros)| TensorStats {
        norm: gradient_norm,
        max_magnitude: max_magnitude * inverse_scale,
        non_finite,
        zeros,
    });
    Ok(stats.collect())
}
