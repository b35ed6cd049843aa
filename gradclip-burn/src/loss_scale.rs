//! The dynamic loss scale of a clipper between steps.

use burn::tensor::{Device, Int, Tensor};
#[cfg(feature = "wgpu")]
use bytemuck::{Zeroable, bytes_of, bytes_of_mut, cast_slice, pod_collect_to_vec};
#[cfg(feature = "wgpu")]
use gradclip::kernels::tables::NormParams;
use gradclip::loss_scale::{LossScale, LossScaleState};
#[cfg(feature = "wgpu")]
use gradclip::operation::ByNorm;

use crate::Error;
use crate::transfer::{counts, floats, read_counts, read_floats};
#[cfg(feature = "wgpu")]
use crate::transfer::{read_words, upload_words};

/// A loss scale, in the form in which the last clip left it.
#[derive(Clone, Debug, Default)]
pub(crate) enum StoredScale {
    /// The scale in the options of the clip.
    #[default]
    Initial,
    /// On the host, after it was restored.
    Host(LossScale),
    /// On the device as words, after a clip by the kernels.
    #[cfg(feature = "wgpu")]
    Words {
        params: Box<ScaleParams>,
        /// The scale in `params`, as an f32 in the same memory.
        scale: Box<Tensor<1>>,
    },
    /// On the device as tensors, after a clip by tensor operations.
    Tensors(Box<ScaleTensors>),
}

/// A loss scale as the kernels update it.
#[cfg(feature = "wgpu")]
#[derive(Clone, Debug)]
pub(crate) struct ScaleParams {
    /// The [`NormParams`] of the clip. They begin with the loss scale and its inverse, which the kernels update.
    pub(crate) words: Tensor<1, Int>,
    /// The parameters that were uploaded. On the device, the loss scale may differ from them.
    pub(crate) uploaded: NormParams,
}

/// The number of the words of [`NormParams`] that the kernels update: the state of the loss scale, and its inverse.
#[cfg(feature = "wgpu")]
const UPDATED_WORDS: usize = size_of::<LossScaleState>() / 4 + 1;

#[cfg(feature = "wgpu")]
impl ScaleParams {
    /// Uploads the parameters of a clip with a loss scale.
    fn new(scale: LossScale, norm: &ByNorm, device: &Device) -> Self {
        let mut norm = *norm;
        norm.dynamic_loss_scale = Some(scale);
        norm.inverse_scale = scale.scale().recip();
        let uploaded = NormParams::new(&norm);
        Self { words: upload_words(pod_collect_to_vec(&[uploaded]), device), uploaded }
    }

    /// Replaces the parameters that differ from those of `norm`, and keeps the loss scale. Does not wait for the device.
    fn for_clip(self, norm: &ByNorm, device: &Device) -> Self {
        let words = self.words.to_device(device);
        let expected = NormParams::new(norm);
        let fixed = |params: &NormParams| pod_collect_to_vec(&bytes_of(params)[4 * UPDATED_WORDS..]);
        let fixed_words: Vec<u32> = fixed(&expected);
        if fixed_words == fixed(&self.uploaded) {
            return Self { words, ..self };
        }
        let updated = words.narrow(0, 0, UPDATED_WORDS);
        let words = Tensor::cat(vec![updated, upload_words(fixed_words, device)], 0);
        Self { words, uploaded: expected }
    }
}

/// A loss scale as tensor operations keep it.
#[derive(Clone, Debug)]
pub(crate) struct ScaleTensors {
    /// The scale, one element.
    pub(crate) scale: Tensor<1>,
    /// The number of good steps since the scale last changed, one element. At most `i32::MAX`: the counts are signed on
    /// some devices.
    pub(crate) good_steps: Tensor<1, Int>,
    /// The numbers that do not change. The scale and the good steps in it are out of date.
    pub(crate) options: LossScaleState,
}

/// The largest count in a signed integer.
pub(crate) const MAX_COUNT: u32 = i32::MAX.cast_unsigned();

impl ScaleTensors {
    fn new(scale: LossScale, device: &Device) -> Self {
        let good_steps = scale.good_steps().min(MAX_COUNT);
        Self {
            scale: floats([scale.scale()].into_iter(), device),
            good_steps: counts([good_steps].into_iter(), device),
            options: scale.state(),
        }
    }
}

impl StoredScale {
    /// Reads the scale back. `initial` is that in the options of the clip.
    pub(crate) async fn read(&self, initial: LossScale) -> Result<LossScale, Error> {
        let state = match self {
            Self::Initial => return Ok(initial),
            Self::Host(scale) => return Ok(*scale),
            #[cfg(feature = "wgpu")]
            Self::Words { params, .. } => {
                let words = read_words::<u32>(&params.words).await?;
                let mut state = LossScaleState::zeroed();
                let bytes = bytes_of_mut(&mut state);
                bytes.copy_from_slice(&cast_slice(&words)[..bytes.len()]);
                state
            }
            Self::Tensors(tensors) => {
                let scale = read_floats(&tensors.scale).await?[0];
                let good_steps = read_counts(&tensors.good_steps).await?[0];
                LossScaleState { scale, good_steps, ..tensors.options }
            }
        };
        Ok(LossScale::from_state(state)?)
    }

    /// Returns the scale as a tensor on a device. Waits only if the scale is on a device of another backend.
    pub(crate) fn tensor(&self, initial: LossScale, device: &Device) -> Tensor<1> {
        let number = |scale: &LossScale| floats([scale.scale()].into_iter(), device);
        match self {
            Self::Initial => number(&initial),
            Self::Host(scale) => number(scale),
            #[cfg(feature = "wgpu")]
            Self::Words { scale, .. } => Tensor::clone(scale).to_device(device),
            Self::Tensors(tensors) => tensors.scale.clone().to_device(device),
        }
    }

    /// Takes the scale in the parameters of a clip on a device. Waits for the device only if tensor
    /// operations made the last clip.
    #[cfg(feature = "wgpu")]
    pub(crate) fn take_params(
        &mut self,
        initial: LossScale,
        norm: &ByNorm,
        device: &Device,
    ) -> Result<ScaleParams, Error> {
        match std::mem::take(self) {
            // Drops the scale that shares the memory, so that the clip can update it in place.
            Self::Words { params, .. } => return Ok(params.for_clip(norm, device)),
            stored => *self = stored,
        }
        let scale = pollster::block_on(self.read(initial))?;
        Ok(ScaleParams::new(scale, norm, device))
    }

    /// Takes the scale as tensors on a device. Waits for the device only if kernels made the last clip.
    pub(crate) fn take_tensors(
        &mut self,
        initial: LossScale,
        device: &Device,
    ) -> Result<ScaleTensors, Error> {
        match std::mem::take(self) {
            Self::Tensors(tensors) => {
                let ScaleTensors { scale, good_steps, options } = *tensors;
                let (scale, good_steps) = (scale.to_device(device), good_steps.to_device(device));
                return Ok(ScaleTensors { scale, good_steps, options });
            }
            stored => *self = stored,
        }
        let scale = pollster::block_on(self.read(initial))?;
        Ok(ScaleTensors::new(scale, device))
    }
}
