//! Uploads small tensors, and reads them back.

#[cfg(feature = "wgpu")]
use burn::tensor::TensorData;
use burn::tensor::{DType, Device, Int, Tensor};
#[cfg(feature = "wgpu")]
use bytemuck::Pod;
use bytemuck::pod_collect_to_vec;

use crate::Error;

/// Uploads f32 numbers.
pub(crate) fn floats(values: impl Iterator<Item = f32>, device: &Device) -> Tensor<1> {
    let values: Vec<_> = values.collect();
    Tensor::from_data(values.as_slice(), (device, DType::F32))
}

/// Uploads counts in the device's integer type. They wrap modulo 2³².
pub(crate) fn counts(values: impl Iterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(u32::cast_signed).collect();
    Tensor::from_data(values.as_slice(), device)
}

/// Uploads words for the kernels.
#[cfg(feature = "wgpu")]
pub(crate) fn upload_words(words: Vec<u32>, device: &Device) -> Tensor<1, Int> {
    let count = words.len();
    Tensor::from_data(TensorData::new(words, [count]), (device, DType::U32))
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
