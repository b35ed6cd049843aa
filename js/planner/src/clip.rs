//! Clips of the host. `js/src/clip_builder.ts` has the methods and the options in the same order.

use gradclip::loss_scale::{LossScale, LossScaleState};
use gradclip::{AutoClip, Clip, Epsilon, Error, NonFinite, NormType, ZClip};

use crate::message::Request;

/// Reads a clip: its method, and the list of its options.
pub(crate) fn clip(request: &mut Request<'_>) -> Result<Clip, Error> {
    let method = request.u32();
    let number = request.f32();
    let mut clip = match method {
        0 => Clip::by_global_norm(number),
        1 => Clip::by_norm(number),
        2 => Clip::by_rms(number),
        3 => Clip::by_parameter_norm(number, request.f32()),
        4 => Clip::by_supplied_norm(number),
        5 => Clip::by_value(number),
        _ => Clip::by_value_range(number, request.f32()),
    };
    for _ in 0..request.usize() {
        clip = option(clip, request)?;
    }
    Ok(clip)
}

/// Reads one option.
fn option(clip: Clip, request: &mut Request<'_>) -> Result<Clip, Error> {
    Ok(match request.u32() {
        0 => clip.norm_type(match request.f32() {
            1.0 => NormType::L1,
            2.0 => NormType::L2,
            f32::INFINITY => NormType::Inf,
            p => NormType::P(p),
        }),
        1 => clip.epsilon(request.optional(Request::f32).map_or(Epsilon::PyTorch, Epsilon::Value)),
        2 => clip.loss_scale(request.f32()),
        3 => clip.dynamic_loss_scale(loss_scale(request)?),
        4 => clip.non_finite(request.text().parse::<NonFinite>()?),
        5 => {
            if request.flag() {
                clip.coefficient_only()
            } else {
                clip
            }
        }
        6 => {
            if request.flag() {
                clip.tensor_stats()
            } else {
                clip
            }
        }
        7 => {
            if request.flag() {
                clip.count_steps()
            } else {
                clip
            }
        }
        8 => {
            let default = ZClip::default();
            clip.z_clip(ZClip {
                alpha: request.optional(Request::f32).unwrap_or(default.alpha),
                z_threshold: request.optional(Request::f32).unwrap_or(default.z_threshold),
                warm_up: request.optional(Request::u32).unwrap_or(default.warm_up),
            })
        }
        9 => {
            let default = AutoClip::default();
            clip.auto_clip(AutoClip {
                percentile: request.optional(Request::f32).unwrap_or(default.percentile),
                window: request.optional(Request::u32).unwrap_or(default.window),
            })
        }
        10 => clip.skip_above(request.f32()),
        _ => clip.max_consecutive_skips(request.u32()),
    })
}

/// Reads a dynamic loss scale. What is absent has its default.
pub(crate) fn loss_scale(request: &mut Request<'_>) -> Result<LossScale, Error> {
    let mut state = LossScaleState::default();
    for number in [&mut state.scale, &mut state.growth, &mut state.backoff, &mut state.floor] {
        *number = request.optional(Request::f32).unwrap_or(*number);
    }
    for number in [&mut state.interval, &mut state.good_steps] {
        *number = request.optional(Request::u32).unwrap_or(*number);
    }
    LossScale::from_state(state)
}
