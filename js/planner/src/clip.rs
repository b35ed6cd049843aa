//! `Clip`: the builder of [`gradclip::Clip`], for JavaScript. Each method is that of the crate.

use gradclip::loss_scale::{LossScale, LossScaleState};
use gradclip::{AutoClip, Epsilon, NonFinite, NormType, ZClip};
use wasm_bindgen::prelude::wasm_bindgen;

use crate::error::Failure;

/// The options of a clip.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Clip(gradclip::Clip);

impl Clip {
    pub(crate) fn inner(&self) -> gradclip::Clip {
        self.0
    }
}

#[wasm_bindgen]
impl Clip {
    #[wasm_bindgen(js_name = byGlobalNorm)]
    pub fn by_global_norm(max_norm: f32) -> Clip {
        Self(gradclip::Clip::by_global_norm(max_norm))
    }

    #[wasm_bindgen(js_name = byNorm)]
    pub fn by_norm(max_norm: f32) -> Clip {
        Self(gradclip::Clip::by_norm(max_norm))
    }

    #[wasm_bindgen(js_name = byRms)]
    pub fn by_rms(threshold: f32) -> Clip {
        Self(gradclip::Clip::by_rms(threshold))
    }

    #[wasm_bindgen(js_name = byParameterNorm)]
    pub fn by_parameter_norm(clipping: f32, floor: f32) -> Clip {
        Self(gradclip::Clip::by_parameter_norm(clipping, floor))
    }

    #[wasm_bindgen(js_name = bySuppliedNorm)]
    pub fn by_supplied_norm(max_norm: f32) -> Clip {
        Self(gradclip::Clip::by_supplied_norm(max_norm))
    }

    #[wasm_bindgen(js_name = byValue)]
    pub fn by_value(clip_value: f32) -> Clip {
        Self(gradclip::Clip::by_value(clip_value))
    }

    #[wasm_bindgen(js_name = byValueRange)]
    pub fn by_value_range(low: f32, high: f32) -> Clip {
        Self(gradclip::Clip::by_value_range(low, high))
    }

    #[wasm_bindgen(js_name = normType)]
    pub fn norm_type(&mut self, p: f32) {
        self.0 = self.0.norm_type(match p {
            1.0 => NormType::L1,
            2.0 => NormType::L2,
            f32::INFINITY => NormType::Inf,
            _ => NormType::P(p),
        });
    }

    /// Undefined for the epsilon of PyTorch.
    pub fn epsilon(&mut self, epsilon: Option<f32>) {
        self.0 = self.0.epsilon(epsilon.map_or(Epsilon::PyTorch, Epsilon::Value));
    }

    #[wasm_bindgen(js_name = nonFinite)]
    pub fn non_finite(&mut self, policy: &str) -> Result<(), Failure> {
        self.0 = self.0.non_finite(policy.parse::<NonFinite>()?);
        Ok(())
    }

    #[wasm_bindgen(js_name = lossScale)]
    pub fn loss_scale(&mut self, scale: f32) {
        self.0 = self.0.loss_scale(scale);
    }

    #[wasm_bindgen(js_name = dynamicLossScale)]
    pub fn dynamic_loss_scale(&mut self, state: &[f64]) -> Result<(), Failure> {
        self.0 = self.0.dynamic_loss_scale(loss_scale(state)?);
        Ok(())
    }

    #[wasm_bindgen(js_name = coefficientOnly)]
    pub fn coefficient_only(&mut self) {
        self.0 = self.0.coefficient_only();
    }

    #[wasm_bindgen(js_name = tensorStats)]
    pub fn tensor_stats(&mut self) {
        self.0 = self.0.tensor_stats();
    }

    #[wasm_bindgen(js_name = countSteps)]
    pub fn count_steps(&mut self) {
        self.0 = self.0.count_steps();
    }

    #[wasm_bindgen(js_name = zClip)]
    pub fn z_clip(&mut self, alpha: Option<f32>, z_threshold: Option<f32>, warm_up: Option<u32>) {
        let default = ZClip::default();
        self.0 = self.0.z_clip(ZClip {
            alpha: alpha.unwrap_or(default.alpha),
            z_threshold: z_threshold.unwrap_or(default.z_threshold),
            warm_up: warm_up.unwrap_or(default.warm_up),
        });
    }

    #[wasm_bindgen(js_name = autoClip)]
    pub fn auto_clip(&mut self, percentile: Option<f32>, window: Option<u32>) {
        let default = AutoClip::default();
        self.0 = self.0.auto_clip(AutoClip {
            percentile: percentile.unwrap_or(default.percentile),
            window: window.unwrap_or(default.window),
        });
    }

    #[wasm_bindgen(js_name = skipAbove)]
    pub fn skip_above(&mut self, norm: f32) {
        self.0 = self.0.skip_above(norm);
    }

    #[wasm_bindgen(js_name = maxConsecutiveSkips)]
    pub fn max_consecutive_skips(&mut self, count: u32) {
        self.0 = self.0.max_consecutive_skips(count);
    }
}

/// Returns the state of a new dynamic loss scale: scale, growth, backoff, floor, interval and good steps.
#[wasm_bindgen(js_name = defaultLossScale)]
pub fn default_loss_scale() -> Vec<f64> {
    loss_scale_numbers(&LossScale::default())
}

pub(crate) fn loss_scale_numbers(scale: &LossScale) -> Vec<f64> {
    let LossScaleState { scale, growth, backoff, floor, interval, good_steps } = scale.state();
    vec![scale.into(), growth.into(), backoff.into(), floor.into(), interval.into(), good_steps.into()]
}

/// Makes a loss scale of those six numbers.
pub(crate) fn loss_scale(state: &[f64]) -> Result<LossScale, Failure> {
    let &[scale, growth, backoff, floor, interval, good_steps] = state else {
        unreachable!("the host hands over six numbers")
    };
    let [scale, growth, backoff, floor] = [scale, growth, backoff, floor].map(|number| number as f32);
    let [interval, good_steps] = [interval, good_steps].map(|number| number as u32);
    Ok(LossScale::from_state(LossScaleState { scale, growth, backoff, floor, interval, good_steps })?)
}
