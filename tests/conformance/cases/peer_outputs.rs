//! The outcomes of optax and TensorFlow, from `tests/fixtures/peers.json`.

use gradclip::{DType, Epsilon};
use serde_json::Value;

use super::torch_golden::{decimal, list, number, tensors, text};
use crate::case::{Case, Expect, Method, Options, Peer};
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    let peers: Value =
        serde_json::from_str(include_str!("../../fixtures/peers.json")).expect("well-formed JSON");
    let adaptive = list(&peers["adaptive_grad_clip"]).iter().map(|call| {
        let method = Method::Agc(decimal(&call["clipping"]), decimal(&call["eps"]));
        // optax divides by at least 1e-6, even if the norm is smaller.
        let is_better = call["below_floor"] == true;
        let case = case("optax/adaptive_grad_clip", call, method.into(), None, is_better);
        let role = |tensor: &Value| {
            let rows = tensor["rows"].as_u64().expect("a number of rows");
            let rows = usize::try_from(rows).expect("few rows");
            let parameter: Vec<_> = list(&tensor["parameter"]).iter().map(number).collect();
            Role::of(DType::F32).rows(rows).parameter(&parameter)
        };
        case.roles(&list(&call["tensors"]).iter().map(role).collect::<Vec<_>>())
    });
    let rms = list(&peers["clip_by_block_rms"]).iter().map(|call| {
        let method = Method::Rms(decimal(&call["threshold"]));
        case("optax/clip_by_block_rms", call, method.into(), None, false)
    });
    let by_norm = list(&peers["clip_by_norm"]).iter().map(|call| {
        let options = Options::from(Method::Tensor(decimal(&call["max_norm"]))).epsilon(Epsilon::None);
        case("tensorflow/clip_by_norm", call, options, None, false)
    });
    let global = list(&peers["clip_by_global_norm"]).iter().map(|call| {
        let options = Options::from(Method::Norm(decimal(&call["max_norm"]))).epsilon(Epsilon::None);
        let suite = format!("{}/clip_by_global_norm", text(&call["library"]));
        case(&suite, call, options, Some(number(&call["total_norm"])), false)
    });
    adaptive.chain(rms).chain(by_norm).chain(global).collect()
}

fn case(suite: &str, call: &Value, options: Options, total_norm: Option<f32>, is_better: bool) -> Case {
    let of = |name: &str| {
        let each: Vec<Value> = list(&call["tensors"]).iter().map(|tensor| tensor[name].clone()).collect();
        tensors(&each.into())
    };
    let gradients = of("gradient");
    let peer = Peer { total_norm, clipped: of("clipped") };
    let expect = if is_better { Expect::Better(peer) } else { Expect::Rounded(peer) };
    Case::new(format!("{suite}/{}", text(&call["name"])), move || gradients.clone(), options, expect)
}
