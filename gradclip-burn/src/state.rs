//! The state that a clipper keeps between steps: norm histories and step counts, one per record.

use std::sync::Arc;

#[cfg(feature = "wgpu")]
use burn::tensor::TensorData;
use burn::tensor::{DType, Device, Int, Tensor};
use bytemuck::{Pod, pod_collect_to_vec};
use gradclip::stats::{NormHistory, StepCounts};

use crate::Error;

/// The state of a clipper.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) histories: Stored<HistoryTensors>,
    pub(crate) step_counts: Stored<CountTensors>,
    /// The paths of the gradients of the last clip, if each record belongs to a gradient. `None` if records belong to
    /// groups, or before the first clip with this state.
    pub(crate) parameters: Option<Arc<[String]>>,
}

/// Values of one kind, one per record, in the form in which the last clip left them.
#[derive(Debug)]
pub(crate) enum Stored<T: StateTensors> {
    /// On the host, after they were restored. Empty before the first clip.
    Host(Vec<T::Value>),
    /// On the device as words, after a clip by the kernels.
    #[cfg(feature = "wgpu")]
    Words(Box<Tensor<1, Int>>),
    /// On the device as one tensor per field, after a clip by tensor operations.
    Tensors(Box<T>),
}

/// The fields of state values as tensors, with one element per record.
pub(crate) trait StateTensors: Sized {
    /// The plain value of one record.
    type Value: Pod + Default;

    fn from_values(values: &[Self::Value], device: &Device) -> Self;

    /// Returns the number of records.
    fn records(&self) -> usize;

    fn to_device(self, device: &Device) -> Self;

    /// Reads the values back.
    async fn values(&self) -> Result<Vec<Self::Value>, Error>;
}

impl<T: StateTensors> Default for Stored<T> {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

impl<T: StateTensors> Stored<T> {
    /// Checks that there is one value per record, or none yet. `what` names the values in the error.
    pub(crate) fn check_count(&self, what: &'static str, records: usize) -> Result<(), Error> {
        let given = match self {
            Self::Host(values) => values.len(),
            #[cfg(feature = "wgpu")]
            Self::Words(words) => words.dims()[0] * 4 / size_of::<T::Value>(),
            Self::Tensors(tensors) => tensors.records(),
        };
        if given == 0 || given == records {
            return Ok(());
        }
        Err(gradclip::Error::StateCount { what, given, records }.into())
    }

    /// Reads the values back. Empty before the first clip.
    pub(crate) async fn read(&self) -> Result<Vec<T::Value>, Error> {
        match self {
            Self::Host(values) => Ok(values.clone()),
            #[cfg(feature = "wgpu")]
            Self::Words(words) => read_words(words).await,
            Self::Tensors(tensors) => tensors.values().await,
        }
    }

    /// Takes the values as tensors on a device. Waits for the device only if kernels made the last clip.
    pub(crate) fn take_tensors(&mut self, records: usize, device: &Device) -> Result<T, Error> {
        let stored = std::mem::take(self);
        if let Self::Tensors(tensors) = stored {
            return Ok(tensors.to_device(device));
        }
        *self = stored;
        let values = self.take_values(records)?;
        Ok(T::from_values(&values, device))
    }

    /// Takes the values as words on a device. Waits for the device only if tensor operations made the last clip.
    #[cfg(feature = "wgpu")]
    pub(crate) fn take_words(&mut self, records: usize, device: &Device) -> Result<Tensor<1, Int>, Error> {
        let stored = std::mem::take(self);
        if let Self::Words(words) = stored {
            return Ok(words.to_device(device));
        }
        *self = stored;
        let values = self.take_values(records)?;
        let words: Vec<u32> = pod_collect_to_vec(&values);
        let count = words.len();
        Ok(Tensor::from_data(TensorData::new(words, [count]), (device, DType::U32)))
    }

    /// Takes the values, one per record. On error, they stay.
    fn take_values(&mut self, records: usize) -> Result<Vec<T::Value>, Error> {
        let mut values = pollster::block_on(self.read())?;
        values.resize(records, T::Value::default());
        *self = Self::default();
        Ok(values)
    }
}

/// The fields of [`NormHistory`].
#[derive(Clone, Debug)]
pub(crate) struct HistoryTensors {
    pub(crate) steps: Tensor<1, Int>,
    pub(crate) means: Tensor<1>,
    pub(crate) deviations: Tensor<1>,
}

impl StateTensors for HistoryTensors {
    type Value = NormHistory;

    fn from_values(values: &[NormHistory], device: &Device) -> Self {
        Self {
            steps: counts(values.iter().map(|history| history.steps), device),
            means: floats(values.iter().map(|history| history.mean), device),
            deviations: floats(values.iter().map(|history| history.deviation), device),
        }
    }

    fn records(&self) -> usize {
        self.means.dims()[0]
    }

    fn to_device(self, device: &Device) -> Self {
        let Self { steps, means, deviations } = self;
        Self {
            steps: steps.to_device(device),
            means: means.to_device(device),
            deviations: deviations.to_device(device),
        }
    }

    async fn values(&self) -> Result<Vec<NormHistory>, Error> {
        let steps = read_counts(&self.steps).await?;
        let numbers = read_floats(&Tensor::cat(vec![self.means.clone(), self.deviations.clone()], 0)).await?;
        let (means, deviations) = numbers.split_at(steps.len());
        let fields = steps.into_iter().zip(means).zip(deviations);
        Ok(fields.map(|((steps, &mean), &deviation)| NormHistory { steps, mean, deviation }).collect())
    }
}

/// The fields of [`StepCounts`].
#[derive(Clone, Debug)]
pub(crate) struct CountTensors {
    pub(crate) steps: Tensor<1, Int>,
    pub(crate) clipped: Tensor<1, Int>,
    pub(crate) non_finite: Tensor<1, Int>,
    pub(crate) skipped: Tensor<1, Int>,
    pub(crate) consecutive_skips: Tensor<1, Int>,
    pub(crate) largest_norms: Tensor<1>,
}

impl StateTensors for CountTensors {
    type Value = StepCounts;

    fn from_values(values: &[StepCounts], device: &Device) -> Self {
        Self {
            steps: counts(values.iter().map(|counts| counts.steps), device),
            clipped: counts(values.iter().map(|counts| counts.clipped), device),
            non_finite: counts(values.iter().map(|counts| counts.non_finite), device),
            skipped: counts(values.iter().map(|counts| counts.skipped), device),
            consecutive_skips: counts(values.iter().map(|counts| counts.consecutive_skips), device),
            largest_norms: floats(values.iter().map(|counts| counts.largest_norm), device),
        }
    }

    fn records(&self) -> usize {
        self.largest_norms.dims()[0]
    }

    fn to_device(self, device: &Device) -> Self {
        let Self { steps, clipped, non_finite, skipped, consecutive_skips, largest_norms } = self;
        Self {
            steps: steps.to_device(device),
            clipped: clipped.to_device(device),
            non_finite: non_finite.to_device(device),
            skipped: skipped.to_device(device),
            consecutive_skips: consecutive_skips.to_device(device),
            largest_norms: largest_norms.to_device(device),
        }
    }

    async fn values(&self) -> Result<Vec<StepCounts>, Error> {
        let largest_norms = read_floats(&self.largest_norms).await?;
        let Self { steps, clipped, non_finite, skipped, consecutive_skips, .. } = self;
        let all = [steps, clipped, non_finite, skipped, consecutive_skips].map(Tensor::clone);
        let all = read_counts(&Tensor::cat(all.to_vec(), 0)).await?;
        let records = largest_norms.len();
        let values = largest_norms.into_iter().enumerate().map(|(record, largest_norm)| StepCounts {
            steps: all[record],
            clipped: all[records + record],
            non_finite: all[2 * records + record],
            skipped: all[3 * records + record],
            consecutive_skips: all[4 * records + record],
            largest_norm,
        });
        Ok(values.collect())
    }
}

fn floats(values: impl Iterator<Item = f32>, device: &Device) -> Tensor<1> {
    let values: Vec<_> = values.collect();
    Tensor::from_data(values.as_slice(), (device, DType::F32))
}

/// Uploads counts in the device's integer type. They wrap modulo 2³².
fn counts(values: impl Iterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(u32::cast_signed).collect();
    Tensor::from_data(values.as_slice(), device)
}

/// Reads back a tensor of words as values of type `T`.
#[cfg(feature = "wgpu")]
pub(crate) async fn read_words<T: Pod>(words: &Tensor<1, Int>) -> Result<Vec<T>, Error> {
    let data = Box::pin(words.clone().into_data_async()).await.map_err(Error::Backend)?;
    Ok(pod_collect_to_vec(data.as_bytes()))
}

/// Reads back a tensor of f32 numbers.
pub(crate) async fn read_floats(tensor: &Tensor<1>) -> Result<Vec<f32>, Error> {
    let data = Box::pin(tensor.clone().into_data_async()).await.map_err(Error::Backend)?;
    Ok(pod_collect_to_vec(data.as_bytes()))
}

/// Reads back counts modulo 2³².
pub(crate) async fn read_counts(tensor: &Tensor<1, Int>) -> Result<Vec<u32>, Error> {
    let data = Box::pin(tensor.clone().into_data_async()).await.map_err(Error::Backend)?;
    let modulo = |count: i64| u32::try_from(count.rem_euclid(1 << 32)).unwrap_or_default();
    Ok(data.iter::<i64>().map(modulo).collect())
}
