//! What came of a clip.

use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor};
use bytemuck::{Pod, pod_collect_to_vec};
use gradclip::{ClipRecord, NonFinite, NormType, TensorStats};

use crate::device::RECORD_WORDS;
use crate::tensor_ops::Measured;
use crate::{Error, task::Task};

/// What a clip by norm has measured. It is on the device, and nobody has waited for it: [`norm`](Self::norm) goes into
/// further tensor operations as it is, and [`records`](Self::records) is for the step in which you want to log.
#[derive(Clone, Debug)]
pub struct Clipped {
    source: Source,
    paths: Arc<[String]>,
    policy: NonFinite,
    norm_type: NormType,
}

#[derive(Clone, Debug)]
pub(crate) enum Source {
    Words(Box<Words>),
    Operations {
        measured: Box<Measured>,
        group_of: Arc<[usize]>,
    },
    /// Nothing was measured: there were no gradients, or it was a clip by value.
    Nothing {
        groups: usize,
        device: Device,
        by_kernels: bool,
    },
}

/// What the kernels leave.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    pub(crate) norms: Tensor<1>,
    /// The records, and the statistics if they are wanted.
    pub(crate) records: Tensor<1, Int>,
    pub(crate) stats: Option<Tensor<1, Int>>,
}

impl Clipped {
    pub(crate) fn new(source: Source, paths: Arc<[String]>, task: &Task) -> Self {
        Self { source, paths, policy: task.non_finite, norm_type: task.norm_type() }
    }

    /// Which norm was measured.
    #[must_use]
    pub fn norm_type(&self) -> NormType {
        self.norm_type
    }

    /// The norm before clipping, without the loss scale: f32, an element for each group, those that belong to no group being
    /// the first. Zeros where nothing was measured: by a clip by value, and where there were no gradients.
    #[must_use]
    pub fn norm(&self) -> Tensor<1> {
        match &self.source {
            Source::Words(words) => words.norms.clone(),
            Source::Operations { measured, .. } => measured.norms.clone(),
            Source::Nothing { groups, device, .. } => Tensor::zeros([*groups], (device, DType::F32)),
        }
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
            Source::Words(_) => true,
            Source::Operations { .. } => false,
            Source::Nothing { by_kernels, .. } => by_kernels,
        }
    }

    /// The record of each group, in the order of [`norm`](Self::norm). Waits for the device.
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
        let records = match &self.source {
            Source::Words(words) => words_of(&words.records).await?,
            Source::Operations { measured, group_of } => records_of(measured, group_of, self.policy).await?,
            Source::Nothing { groups, .. } => vec![ClipRecord::UNCLIPPED; *groups],
        };
        match records.iter().find(|record| self.policy == NonFinite::Error && record.non_finite()) {
            Some(record) => {
                let parameter = record.first_non_finite().and_then(|index| self.paths.get(index).cloned());
                Err(Error::NonFinite { parameter })
            }
            None => Ok(records),
        }
    }

    /// Of each parameter with a gradient its path and what is known of that gradient alone, if the clipper measures
    /// [`tensor_stats`](crate::GradClipper::tensor_stats); else nothing. Waits for the device.
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
            Source::Words(words) => match &words.stats {
                Some(stats) => words_of(stats).await?,
                None => Vec::new(),
            },
            Source::Operations { measured, .. } => {
                let Measured { counts: Some(counts), gradient_norms, gradient_maxima, .. } = &**measured
                else {
                    return Ok(Vec::new());
                };
                let [non_finite, zeros] = counts;
                let counts = counted(non_finite).await?.into_iter().zip(counted(zeros).await?);
                let rows = floats(gradient_norms).await?.into_iter().zip(floats(gradient_maxima).await?);
                rows.zip(counts)
                    .map(|((norm, max_magnitude), (non_finite, zeros))| TensorStats {
                        norm,
                        max_magnitude,
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
async fn words_of<T: Pod>(words: &Tensor<1, Int>) -> Result<Vec<T>, Error> {
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
async fn records_of(
    measured: &Measured,
    group_of: &[usize],
    policy: NonFinite,
) -> Result<Vec<ClipRecord>, Error> {
    let (norms, coefs) = (floats(&measured.norms).await?, floats(&measured.coefs).await?);
    let (factors, maxima) = (floats(&measured.factors).await?, floats(&measured.gradient_maxima).await?);
    let record = |group: usize| {
        let members = || (0..group_of.len()).filter(|&index| group_of[index] == group);
        let largest = members()
            .map(|index| maxima[index])
            .fold(0.0, |largest: f32, own| if own > largest || own.is_nan() { own } else { largest });
        let first = members().find(|&index| !maxima[index].is_finite());
        let (norm, coef) = (norms[group], coefs[group]);
        let bad = first.is_some() || !norm.is_finite() || coef.is_nan();
        let policy = match policy {
            NonFinite::Skip | NonFinite::Error if bad => 4,
            NonFinite::Zero if bad => 8,
            _ => 0,
        };
        let (significand, exponent) = split(norm);
        let words: [u32; RECORD_WORDS] = [
            norm.to_bits(),
            coef.to_bits(),
            factors[group].to_bits(),
            largest.to_bits(),
            u32::from(coef != 1.0) | u32::from(bad) << 1 | policy,
            first.and_then(|index| u32::try_from(index).ok()).unwrap_or(u32::MAX),
            significand.to_bits(),
            exponent.cast_unsigned(),
        ];
        bytemuck::cast(words)
    };
    Ok((0..norms.len()).map(record).collect())
}

/// A norm as significand in `[1, 2)` and exponent; what has none is its own significand.
fn split(norm: f32) -> (f32, i32) {
    if norm == 0.0 || !norm.is_finite() {
        return (norm, 0);
    }
    // As f64 the least subnormal is a normal number.
    let bits = f64::from(norm).to_bits();
    let exponent = i32::try_from(bits >> 52).unwrap_or(0) - 1023;
    #[expect(clippy::cast_possible_truncation, reason = "the significand of an f32")]
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
        assert_eq!(split(f32::from_bits(1)), (1.0, -149));
        assert_eq!(split(f32::MAX), (2.0 - f32::EPSILON, 127));
        assert_eq!(split(0.0), (0.0, 0));
        assert_eq!(split(f32::INFINITY), (f32::INFINITY, 0));
    }
}
