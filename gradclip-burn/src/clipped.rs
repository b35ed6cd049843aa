//! `Clipped`: the outcome of a clip.

use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Device, Int, Tensor};
use bytemuck::pod_collect_to_vec;
use gradclip::stats::TensorStats;
use gradclip::{ClipRecord, NonFinite, NormType};

use crate::tensor_ops::Measured;
use crate::{Error, task::Task};

/// The outcome of a clip by norm, on the device. [`norm`](Self::norm) and [`factor`](Self::factor) are tensors for further
/// operations; [`records`](Self::records) reads the outcome back, to log it.
#[derive(Clone, Debug)]
pub struct Clipped {
    source: Source,
    paths: Arc<[String]>,
    task: Arc<Task>,
    /// The records, once somebody has read them.
    known: Arc<OnceLock<Vec<ClipRecord>>>,
    skipped: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Source {
    #[cfg(feature = "wgpu")]
    Words(Box<Words>),
    Operations(Box<Measured>),
    /// Nothing was measured: there were no gradients, or it was a clip by value.
    Nothing {
        device: Device,
        by_kernels: bool,
    },
}

/// What the kernels leave.
#[cfg(feature = "wgpu")]
#[derive(Clone, Debug)]
pub(crate) struct Words {
    pub(crate) norms: Tensor<1>,
    pub(crate) factors: Tensor<1>,
    /// The records, and the statistics if they are wanted.
    pub(crate) records: Tensor<1, Int>,
    pub(crate) stats: Option<Tensor<1, Int>>,
}

impl Clipped {
    pub(crate) fn new(source: Source, paths: Arc<[String]>, task: Arc<Task>) -> Self {
        Self { source, paths, task, known: Arc::default(), skipped: false }
    }

    /// Marks the step as left out.
    pub(crate) fn leaving_out_the_step(self) -> Self {
        Self { skipped: true, ..self }
    }

    pub(crate) fn task(&self) -> &Task {
        &self.task
    }

    /// Whether this step is left out: a gradient is not finite, and the policy is [`NonFinite::Skip`]. The clip has then removed
    /// all gradients of the module from the container, so that Burn's optimizers change neither parameters nor their own
    /// state. Does not wait.
    #[must_use]
    pub const fn skipped(&self) -> bool {
        self.skipped
    }

    /// The norm before clipping, without the loss scale: f32, an element for each group, those that belong to no group being
    /// the first; of a clip of each gradient by itself one for each, in the order of [`parameters`](Self::parameters). Zeros
    /// where nothing was measured: by a clip by value, and where there were no gradients.
    #[must_use]
    pub fn norm(&self) -> Tensor<1> {
        match &self.source {
            #[cfg(feature = "wgpu")]
            Source::Words(words) => words.norms.clone(),
            Source::Operations(measured) => measured.norms.clone(),
            Source::Nothing { device, .. } => Tensor::zeros([self.task.segments.len()], (device, DType::F32)),
        }
    }

    /// What gradients are multiplied by, as many elements as [`norm`](Self::norm) has: [`ClipRecord::factor`] of each record. It
    /// is for the optimizer that multiplies by it itself, after a clip with
    /// [`coefficient_only`](gradclip::Clip::coefficient_only). Ones where nothing was measured.
    #[must_use]
    pub fn factor(&self) -> Tensor<1> {
        match &self.source {
            #[cfg(feature = "wgpu")]
            Source::Words(words) => words.factors.clone(),
            Source::Operations(measured) => measured.factors.clone(),
            Source::Nothing { device, .. } => Tensor::ones([self.task.segments.len()], (device, DType::F32)),
        }
    }

    /// Which norm was measured.
    #[must_use]
    pub fn norm_type(&self) -> NormType {
        self.task.norm_type()
    }

    /// The paths of the parameters that had a gradient, in the order of the module:
    /// [`ClipRecord::first_non_finite`] counts in it.
    #[must_use]
    pub fn parameters(&self) -> &[String] {
        &self.paths
    }

    /// Whether gradclip's kernels have done it, and not Burn's tensor operations.
    #[must_use]
    pub fn by_kernels(&self) -> bool {
        match self.source {
            #[cfg(feature = "wgpu")]
            Source::Words(_) => true,
            Source::Operations(_) => false,
            Source::Nothing { by_kernels, .. } => by_kernels,
        }
    }

    /// The record of each element of [`norm`](Self::norm). Waits for the device, the first time.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`], and [`Error::NonFinite`] if that is the policy.
    pub fn records(&self) -> Result<Vec<ClipRecord>, Error> {
        pollster::block_on(self.records_async())
    }

    /// [`records`](Self::records), for callers that must not block.
    ///
    /// # Errors
    ///
    /// Those of [`records`](Self::records).
    pub async fn records_async(&self) -> Result<Vec<ClipRecord>, Error> {
        let records = if let Some(records) = self.known.get() {
            records
        } else {
            let records = self.read_records().await?;
            self.known.get_or_init(|| records)
        };
        let is_error = self.task.non_finite() == NonFinite::Error;
        match records.iter().find(|record| is_error && record.non_finite()) {
            Some(record) => {
                let parameter = record.first_non_finite().and_then(|index| self.paths.get(index).cloned());
                Err(Error::NonFinite { parameter })
            }
            None => Ok(records.clone()),
        }
    }

    async fn read_records(&self) -> Result<Vec<ClipRecord>, Error> {
        match &self.source {
            #[cfg(feature = "wgpu")]
            Source::Words(words) => words_of(&words.records).await,
            Source::Operations(measured) => records_of(measured, &self.task).await,
            Source::Nothing { .. } => Ok(vec![ClipRecord::UNCLIPPED; self.task.segments.len()]),
        }
    }

    /// Of each parameter with a gradient its path and what is known of that gradient alone, if the clip measures
    /// [`tensor_stats`](gradclip::Clip::tensor_stats); else nothing. Waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`].
    pub fn tensor_stats(&self) -> Result<Vec<(String, TensorStats)>, Error> {
        pollster::block_on(self.tensor_stats_async())
    }

    /// [`tensor_stats`](Self::tensor_stats), for callers that must not block.
    ///
    /// # Errors
    ///
    /// Those of [`tensor_stats`](Self::tensor_stats).
    pub async fn tensor_stats_async(&self) -> Result<Vec<(String, TensorStats)>, Error> {
        let stats: Vec<TensorStats> = match &self.source {
            #[cfg(feature = "wgpu")]
            Source::Words(words) => match &words.stats {
                Some(stats) => words_of(stats).await?,
                None => Vec::new(),
            },
            Source::Operations(measured) => {
                let Measured { stats: Some(stats), gradient_maxima, .. } = &**measured else {
                    return Ok(Vec::new());
                };
                let counts = counted(&stats.non_finite).await?.into_iter().zip(counted(&stats.zeros).await?);
                let rows = floats(&stats.norms).await?.into_iter().zip(floats(gradient_maxima).await?);
                rows.zip(counts)
                    .map(|((norm, largest), (non_finite, zeros))| TensorStats {
                        norm,
                        max_magnitude: largest * self.task.inverse_scale(),
                        non_finite,
                        zeros,
                    })
                    .collect()
            }
            Source::Nothing { .. } => Vec::new(),
        };
        Ok(self.paths.iter().cloned().zip(stats).collect())
    }
}

/// The words of a tensor, as values of a type that is made of words.
#[cfg(feature = "wgpu")]
async fn words_of<T: bytemuck::Pod>(words: &Tensor<1, Int>) -> Result<Vec<T>, Error> {
    let data = Box::pin(words.clone().into_data_async()).await.map_err(Error::Backend)?;
    Ok(pod_collect_to_vec(data.as_bytes()))
}

async fn floats(tensor: &Tensor<1>) -> Result<Vec<f32>, Error> {
    let data = Box::pin(tensor.clone().into_data_async()).await.map_err(Error::Backend)?;
    Ok(pod_collect_to_vec(data.as_bytes()))
}

async fn counted(tensor: &Tensor<1, Int>) -> Result<Vec<u32>, Error> {
    let data = Box::pin(tensor.clone().into_data_async()).await.map_err(Error::Backend)?;
    Ok(data.iter::<i64>().map(|count| u32::try_from(count).unwrap_or(u32::MAX)).collect())
}

/// The records that the kernels would have left.
async fn records_of(measured: &Measured, task: &Task) -> Result<Vec<ClipRecord>, Error> {
    let Measured { norms, coefs, factors, shifted_norms, shifted_factors, shifts, gradient_maxima, .. } =
        measured;
    // In one tensor, so that the host waits once.
    let all = [norms, coefs, factors, shifted_norms, shifted_factors, shifts, gradient_maxima];
    let all = floats(&Tensor::cat(all.map(Tensor::clone).to_vec(), 0)).await?;
    let (of_segments, maxima) = all.split_at(6 * task.segments.len());
    let record = |segment: usize| {
        let [norm, coef, factor, shifted_norm, shifted_factor, shift] =
            std::array::from_fn(|number| of_segments[number * task.segments.len() + segment]);
        let members = || (0..maxima.len()).filter(|&index| task.segment_of[index] == segment);
        let largest = members()
            .map(|index| maxima[index])
            .fold(0.0, |largest: f32, own| if own > largest || own.is_nan() { own } else { largest });
        let first = members().find(|&index| !maxima[index].is_finite());
        let bad = first.is_some() || coef.is_nan();
        let policy = match task.non_finite() {
            NonFinite::Skip | NonFinite::Error if bad => 4,
            NonFinite::Zero if bad => 8,
            _ => 0,
        };
        let (significand, exponent) = if measured.empty[segment] {
            (0.0, ClipRecord::EMPTY_EXPONENT)
        } else {
            split(f64::from(shifted_norm) / f64::from(shift))
        };
        let (factor_significand, factor_exponent) = split(f64::from(shifted_factor) * f64::from(shift));
        let words = [
            norm.to_bits(),
            coef.to_bits(),
            factor.to_bits(),
            (largest * task.inverse_scale()).to_bits(),
            u32::from(coef != 1.0) | u32::from(bad) << 1 | policy,
            first.and_then(|index| u32::try_from(index).ok()).unwrap_or(u32::MAX),
            significand.to_bits(),
            exponent.cast_unsigned(),
            factor_significand.to_bits(),
            factor_exponent.cast_unsigned(),
        ];
        bytemuck::cast(words)
    };
    Ok((0..task.segments.len()).map(record).collect())
}

/// An f32 times a power of two, not negative, as significand in `[1, 2)` and exponent; what has none is its own significand.
#[expect(clippy::cast_possible_truncation, reason = "the significand of an f32")]
fn split(number: f64) -> (f32, i32) {
    if number == 0.0 || !number.is_finite() {
        return (number as f32, 0);
    }
    // The least number that comes here is a normal number of f64.
    let bits = number.to_bits();
    let exponent = i32::try_from(bits >> 52).unwrap_or(0) - 1023;
    let significand = f64::from_bits((bits & ((1 << 52) - 1)) | 1023 << 52) as f32;
    (significand, exponent)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_norm_is_its_significand_times_a_power_of_two() {
        assert_eq!(split(5.0), (1.25, 2));
        assert_eq!(split(1.0), (1.0, 0));
        assert_eq!(split(f32::from_bits(1).into()), (1.0, -149));
        assert_eq!(split(f32::MAX.into()), (2.0 - f32::EPSILON, 127));
        assert_eq!(split(2.0_f64.powi(130)), (1.0, 130));
        assert_eq!(split(0.0), (0.0, 0));
        assert_eq!(split(f64::INFINITY), (f32::INFINITY, 0));
    }
}
