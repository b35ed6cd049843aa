//! gradclip's CPU path in WebAssembly, for the page.
//!
//! [`Gradients`] holds a set of gradients and a copy, so that a clip can be repeated.

use gradclip::cpu::{self, Gradient};
use gradclip::{Clip, ClipRecord, NormType};
use half::{bf16, f16};
use wasm_bindgen::prelude::*;

/// The elements of a gradient.
#[derive(Clone)]
enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Elements {
    /// Reads little-endian elements. `bytes` must be whole elements.
    fn read(dtype: &str, bytes: &[u8]) -> Option<Self> {
        Some(match dtype {
            "f32" => Self::F32(bytemuck::allocation::pod_collect_to_vec(bytes)),
            "f16" => Self::F16(bytemuck::allocation::pod_collect_to_vec(bytes)),
            "bf16" => Self::Bf16(bytemuck::allocation::pod_collect_to_vec(bytes)),
            _ => return None,
        })
    }

    fn gradient(&mut self) -> Gradient<'_> {
        match self {
            Self::F32(elements) => Gradient::f32(elements),
            Self::F16(elements) => Gradient::f16(elements),
            Self::Bf16(elements) => Gradient::bf16(elements),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(elements) => bytemuck::cast_slice(elements),
            Self::F16(elements) => bytemuck::cast_slice(elements),
            Self::Bf16(elements) => bytemuck::cast_slice(elements),
        }
    }

    fn copy_from(&mut self, other: &Self) {
        match (self, other) {
            (Self::F32(to), Self::F32(from)) => to.copy_from_slice(from),
            (Self::F16(to), Self::F16(from)) => to.copy_from_slice(from),
            (Self::Bf16(to), Self::Bf16(from)) => to.copy_from_slice(from),
            (to, from) => *to = from.clone(),
        }
    }
}

/// The outcome of a clip by norm.
#[wasm_bindgen]
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The norm before clipping.
    #[wasm_bindgen(readonly, js_name = totalNorm)]
    pub total_norm: f32,
    /// The factor that brings the gradients to the limit.
    #[wasm_bindgen(readonly, js_name = clipCoef)]
    pub clip_coef: f32,
    /// The index of the first gradient that holds an infinity or a NaN.
    #[wasm_bindgen(readonly, js_name = firstNonFinite)]
    pub first_non_finite: Option<u32>,
}

impl From<ClipRecord> for Outcome {
    fn from(record: ClipRecord) -> Self {
        Self {
            total_norm: record.total_norm,
            clip_coef: record.clip_coef,
            first_non_finite: record.first_non_finite().and_then(|index| u32::try_from(index).ok()),
        }
    }
}

/// Gradients in WebAssembly's memory.
#[wasm_bindgen]
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "only JavaScript sees it")]
pub struct Gradients {
    gradients: Vec<Elements>,
    originals: Vec<Elements>,
}

#[wasm_bindgen]
impl Gradients {
    /// Creates an empty set.
    #[wasm_bindgen(constructor)]
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a gradient of little-endian elements. `dtype` is `f32`, `f16` or `bf16`.
    ///
    /// # Errors
    ///
    /// If `dtype` is another one.
    pub fn add(&mut self, dtype: &str, bytes: &[u8]) -> Result<(), JsError> {
        let elements = Elements::read(dtype, bytes)
            .ok_or_else(|| JsError::new(&format!("dtype {dtype:?}: f32, f16 or bf16 is allowed")))?;
        self.gradients.push(elements);
        Ok(())
    }

    /// Keeps a copy of the gradients for [`restore`](Self::restore).
    pub fn keep(&mut self) {
        self.originals.clone_from(&self.gradients);
    }

    /// Replaces the gradients by the copy that [`keep`](Self::keep) made.
    pub fn restore(&mut self) {
        for (gradient, original) in self.gradients.iter_mut().zip(&self.originals) {
            gradient.copy_from(original);
        }
    }

    /// Clips all gradients by their joint norm.
    ///
    /// # Errors
    ///
    /// If the limit or the norm type is invalid.
    #[wasm_bindgen(js_name = clipByGlobalNorm)]
    pub fn clip_by_global_norm(&mut self, max_norm: f32, norm_type: f32) -> Result<Outcome, JsError> {
        let clip = Clip::by_global_norm(max_norm).norm_type(NormType::P(norm_type));
        let records = cpu::clip(&mut self.views(), clip)?;
        Ok(records[0].into())
    }

    /// Clamps every element to `[-clip_value, clip_value]`.
    ///
    /// # Errors
    ///
    /// If the limit is invalid.
    #[wasm_bindgen(js_name = clipByValue)]
    pub fn clip_by_value(&mut self, clip_value: f32) -> Result<(), JsError> {
        cpu::clip(&mut self.views(), Clip::by_value(clip_value))?;
        Ok(())
    }

    /// Returns the norm of each gradient.
    ///
    /// # Errors
    ///
    /// If the norm type is invalid.
    pub fn norms(&mut self, norm_type: f32) -> Result<Vec<f32>, JsError> {
        let clip = Clip::by_global_norm(f32::INFINITY).norm_type(NormType::P(norm_type));
        let stats = cpu::tensor_stats(&self.views(), clip)?;
        Ok(stats.iter().map(|stats| stats.norm).collect())
    }

    /// Returns the elements of a gradient as little-endian bytes, or nothing if there is no such gradient.
    #[must_use]
    pub fn bytes(&self, index: usize) -> Option<Vec<u8>> {
        Some(self.gradients.get(index)?.bytes().to_vec())
    }

    fn views(&mut self) -> Vec<Gradient<'_>> {
        self.gradients.iter_mut().map(Elements::gradient).collect()
    }
}

/// Clips one f32 gradient in place by its L2 norm.
///
/// # Errors
///
/// If the limit is invalid.
#[wasm_bindgen(js_name = clipGradNorm)]
pub fn clip_grad_norm(gradient: &mut [f32], max_norm: f32) -> Result<Outcome, JsError> {
    Ok(cpu::clip_grad_norm(&mut [gradient], max_norm)?.into())
}
