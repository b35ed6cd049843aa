//! `SuppliedNorm`: a norm that the caller measured.

use burn::tensor::{DType, Device, Tensor};
use gradclip::operation::{ByNorm, Operation, Scope};

use crate::Error;

/// A norm for [`GradClipper::clip_with_norm`](crate::GradClipper::clip_with_norm): a number, or a tensor with one
/// element on any device. `From` converts both.
#[derive(Clone, Debug)]
pub struct SuppliedNorm(Norm);

#[derive(Clone, Debug)]
enum Norm {
    Number(f32),
    Tensor(Box<Tensor<1>>),
}

impl From<f32> for SuppliedNorm {
    fn from(norm: f32) -> Self {
        Self(Norm::Number(norm))
    }
}

impl From<Tensor<1>> for SuppliedNorm {
    fn from(norm: Tensor<1>) -> Self {
        Self(Norm::Tensor(Box::new(norm)))
    }
}

impl SuppliedNorm {
    /// Checks that the clip takes a norm exactly if there is one, and that the norm is one number.
    pub(crate) fn check(norm: Option<&Self>, operations: &[Operation]) -> Result<(), Error> {
        let takes_norm =
            matches!(operations.first(), Some(Operation::Norm(ByNorm { scope: Scope::Supplied, .. })));
        match norm.map(|norm| &norm.0) {
            None if takes_norm => Err(Error::NormNotSupplied),
            Some(_) if !takes_norm => Err(gradclip::Error::UnexpectedNorm.into()),
            Some(Norm::Tensor(norm)) if norm.dims() != [1] => {
                Err(Error::SuppliedNorm { elements: norm.dims()[0] })
            }
            _ => Ok(()),
        }
    }

    /// Returns the norm as an f32 on a device, with one bit pattern for all NaNs: the kernels reserve another one.
    pub(crate) fn on(&self, device: &Device) -> Tensor<1> {
        match &self.0 {
            Norm::Number(norm) => {
                let norm = if norm.is_nan() { f32::NAN } else { *norm };
                Tensor::from_data([norm], (device, DType::F32))
            }
            Norm::Tensor(norm) => {
                let norm = Tensor::clone(norm).inner().to_device(device).cast(DType::F32);
                let is_nan = norm.clone().is_nan();
                norm.mask_fill(is_nan, f32::NAN)
            }
        }
    }
}
