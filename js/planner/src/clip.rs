//! The clips of a request: `Clip` of `options.ts`.

use gradclip::loss_scale::{LossScale, LossScaleState};
use gradclip::{AutoClip, Clip, Epsilon, Error, NonFinite, NormType, ZClip};
use serde::Deserialize;
use serde_json::Value;

use crate::error::Details;
use crate::number::Number;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Options {
    // The methods, of which there is one.
    max_norm: Option<Number>,
    by_norm: Option<Number>,
    by_rms: Option<Number>,
    by_parameter_norm: Option<ByParameterNorm>,
    by_supplied_norm: Option<Number>,
    by_value: Option<Number>,
    by_value_range: Option<[Number; 2]>,
    // The options.
    norm_type: Option<Number>,
    epsilon: Option<Value>,
    non_finite: Option<String>,
    loss_scale: Option<Number>,
    dynamic_loss_scale: Option<DynamicLossScale>,
    coefficient_only: Option<bool>,
    tensor_stats: Option<bool>,
    count_steps: Option<bool>,
    z_clip: Option<ZClipOptions>,
    auto_clip: Option<AutoClipOptions>,
    skip_above: Option<Number>,
    max_consecutive_skips: Option<u32>,
}

const METHODS: &str = "maxNorm, byNorm, byRms, byParameterNorm, bySuppliedNorm, byValue or byValueRange";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ByParameterNorm {
    clipping: Number,
    floor: Number,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DynamicLossScale {
    scale: Option<Number>,
    growth: Option<Number>,
    backoff: Option<Number>,
    floor: Option<Number>,
    interval: Option<u32>,
    good_steps: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ZClipOptions {
    alpha: Option<Number>,
    z_threshold: Option<Number>,
    warm_up: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AutoClipOptions {
    percentile: Option<Number>,
    window: Option<u32>,
}

/// Reads the clips of the groups. Errors name the group if there are several.
pub(crate) fn parse(clips: &[Value]) -> Result<Vec<Clip>, Details> {
    let parse = |(group, value): (usize, &Value)| {
        let of_group = |message: String| {
            Details::request(if clips.len() > 1 { format!("group {group}: {message}") } else { message })
        };
        let options = Options::deserialize(value).map_err(|error| of_group(format!("the clip has an {error}")))?;
        options.clip(of_group)
    };
    clips.iter().enumerate().map(parse).collect()
}

impl Options {
    fn clip(&self, of_group: impl Fn(String) -> Details) -> Result<Clip, Details> {
        let mut clip = self.method().map_err(&of_group)?;
        if let Some(Number(p)) = self.norm_type {
            clip = clip.norm_type(NormType::P(p));
        }
        if let Some(epsilon) = &self.epsilon {
            clip = clip.epsilon(self::epsilon(epsilon).map_err(&of_group)?);
        }
        if let Some(Number(scale)) = self.loss_scale {
            clip = clip.loss_scale(scale);
        }
        if let Some(scale) = &self.dynamic_loss_scale {
            if self.loss_scale.is_some() {
                return Err(of_group("lossScale and dynamicLossScale exclude each other".to_owned()));
            }
            clip = clip.dynamic_loss_scale(scale.checked()?);
        }
        // After the dynamic loss scale, which sets a policy of its own.
        if let Some(policy) = &self.non_finite {
            clip = clip.non_finite(policy.parse::<NonFinite>()?);
        }
        if self.coefficient_only == Some(true) {
            clip = clip.coefficient_only();
        }
        if self.tensor_stats == Some(true) {
            clip = clip.tensor_stats();
        }
        if self.count_steps == Some(true) {
            clip = clip.count_steps();
        }
        if let Some(options) = &self.z_clip {
            clip = clip.z_clip(options.with_defaults());
        }
        if let Some(options) = &self.auto_clip {
            clip = clip.auto_clip(options.with_defaults());
        }
        if let Some(Number(norm)) = self.skip_above {
            clip = clip.skip_above(norm);
        }
        if let Some(count) = self.max_consecutive_skips {
            clip = clip.max_consecutive_skips(count);
        }
        Ok(clip)
    }

    fn method(&self) -> Result<Clip, String> {
        let methods = [
            self.max_norm.map(|Number(limit)| Clip::by_global_norm(limit)),
            self.by_norm.map(|Number(limit)| Clip::by_norm(limit)),
            self.by_rms.map(|Number(limit)| Clip::by_rms(limit)),
            self.by_parameter_norm
                .as_ref()
                .map(|ByParameterNorm { clipping, floor }| Clip::by_parameter_norm(clipping.0, floor.0)),
            self.by_supplied_norm.map(|Number(limit)| Clip::by_supplied_norm(limit)),
            self.by_value.map(|Number(value)| Clip::by_value(value)),
            self.by_value_range.map(|[low, high]| Clip::by_value_range(low.0, high.0)),
        ];
        let mut given = methods.into_iter().flatten();
        match (given.next(), given.count()) {
            (Some(clip), 0) => Ok(clip),
            (None, _) => Err(format!("the clip has no method, but it needs one of {METHODS}")),
            (Some(_), more) => Err(format!("the clip has {} methods, but it needs one of {METHODS}", more + 1)),
        }
    }
}

fn epsilon(given: &Value) -> Result<Epsilon, String> {
    match given.as_str() {
        Some("pytorch") => Ok(Epsilon::PyTorch),
        Some("none") => Ok(Epsilon::None),
        Some(_) => Err(format!("epsilon is {given}, but it must be a number, \"pytorch\" or \"none\"")),
        None => Number::deserialize(given)
            .map(|Number(value)| Epsilon::Value(value))
            .map_err(|error| format!("epsilon: {error}")),
    }
}

impl DynamicLossScale {
    /// The loss scale, with the defaults of the crate.
    pub(crate) fn checked(&self) -> Result<LossScale, Error> {
        let default = LossScale::default().state();
        let or = |given: Option<Number>, default| given.map_or(default, |Number(given)| given);
        LossScale::from_state(LossScaleState {
            scale: or(self.scale, default.scale),
            growth: or(self.growth, default.growth),
            backoff: or(self.backoff, default.backoff),
            floor: or(self.floor, default.floor),
            interval: self.interval.unwrap_or(default.interval),
            good_steps: self.good_steps.unwrap_or(default.good_steps),
        })
    }
}

impl ZClipOptions {
    fn with_defaults(&self) -> ZClip {
        let default = ZClip::default();
        ZClip {
            alpha: self.alpha.map_or(default.alpha, |Number(alpha)| alpha),
            z_threshold: self.z_threshold.map_or(default.z_threshold, |Number(threshold)| threshold),
            warm_up: self.warm_up.unwrap_or(default.warm_up),
        }
    }
}

impl AutoClipOptions {
    fn with_defaults(&self) -> AutoClip {
        let default = AutoClip::default();
        AutoClip {
            percentile: self.percentile.map_or(default.percentile, |Number(percentile)| percentile),
            window: self.window.unwrap_or(default.window),
        }
    }
}
