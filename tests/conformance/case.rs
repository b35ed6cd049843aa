//! A case: its gradients, the options of its clips, and the expected outcome.

use gradclip::{Clip, DType, Epsilon, Error, NonFinite, NormType};
use serde_json::json;

use crate::common::role::Role;

/// Gradients, clips of them, and the expected outcome.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) gradients: Box<dyn Fn() -> Vec<Vec<f32>> + Send + Sync>,
    /// The roles of the gradients, repeated as often as needed.
    roles: Vec<Role>,
    /// Clips that run one after the other on the same gradients.
    pub(crate) clips: Vec<Options>,
    pub(crate) expect: Expect,
}

/// The options of a plan's clips, for the reference check: [`Clip`] does not expose its fields.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The method of each group.
    pub(crate) methods: Vec<Method>,
    pub(crate) norm_type: NormType,
    pub(crate) epsilon: Option<Epsilon>,
    pub(crate) non_finite: NonFinite,
    pub(crate) loss_scale: Option<f32>,
    pub(crate) coefficient_only: bool,
    pub(crate) skip_above: Option<f32>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    /// All gradients together, to a maximum norm.
    Norm(f32),
    /// Each gradient alone, to a maximum norm.
    Tensor(f32),
    /// Each gradient alone, to a maximum root mean square.
    Rms(f32),
    /// Each row alone, to a fraction of the norm of its parameter or of a floor.
    Agc(f32, f32),
    /// Every element, to `[-bound, bound]`.
    Value(f32),
    /// Every element, to `[low, high]`.
    Range(f32, f32),
}

/// The expected outcome. Unless it is an error, the outcome is also checked against `gradclip::reference`.
pub(crate) enum Expect {
    /// The reference alone.
    Definition,
    /// The outcome of PyTorch, with the same bits on the CPU path.
    Torch(Peer),
    /// The outcome of a peer, up to the rounding of its sums.
    Rounded(Peer),
    /// Deliberately better than the outcome of a peer.
    Better(Peer),
    Error(Error),
}

/// The outcome of PyTorch, optax or TensorFlow.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) total_norm: Option<f32>,
    pub(crate) clipped: Vec<Vec<f32>>,
}

impl Options {
    /// Creates the options of groups from their methods.
    pub(crate) fn groups(methods: &[Method]) -> Self {
        Self {
            methods: methods.to_vec(),
            norm_type: NormType::L2,
            epsilon: None,
            non_finite: NonFinite::Propagate,
            loss_scale: None,
            coefficient_only: false,
            skip_above: None,
        }
    }

    pub(crate) fn norm_type(self, norm_type: NormType) -> Self {
        Self { norm_type, ..self }
    }

    pub(crate) fn epsilon(self, epsilon: Epsilon) -> Self {
        Self { epsilon: Some(epsilon), ..self }
    }

    pub(crate) fn non_finite(self, non_finite: NonFinite) -> Self {
        Self { non_finite, ..self }
    }

    pub(crate) fn loss_scale(self, scale: f32) -> Self {
        Self { loss_scale: Some(scale), ..self }
    }

    pub(crate) fn skip_above(self, norm: f32) -> Self {
        Self { skip_above: Some(norm), ..self }
    }

    pub(crate) fn coefficient_only(self) -> Self {
        Self { coefficient_only: true, ..self }
    }

    pub(crate) fn clips(&self) -> Vec<Clip> {
        self.methods.iter().map(|method| self.clip(*method)).collect()
    }

    /// Returns the clips as the JavaScript package takes them. Numbers are text, since JSON has no infinity and no NaN.
    pub(crate) fn clips_in_js(&self) -> Vec<serde_json::Value> {
        self.methods.iter().map(|method| self.clip_in_js(*method)).collect()
    }

    fn clip_in_js(&self, method: Method) -> serde_json::Value {
        let text = |number: f32| number.to_string();
        let mut clip = match method {
            Method::Norm(max_norm) => json!({ "maxNorm": text(max_norm) }),
            Method::Tensor(max_norm) => json!({ "byNorm": text(max_norm) }),
            Method::Rms(threshold) => json!({ "byRms": text(threshold) }),
            Method::Agc(clipping, floor) => {
                json!({ "byParameterNorm": { "clipping": text(clipping), "floor": text(floor) } })
            }
            Method::Value(clip_value) => json!({ "byValue": text(clip_value) }),
            Method::Range(low, high) => json!({ "byValueRange": [text(low), text(high)] }),
        };
        if self.norm_type != NormType::L2 {
            clip["normType"] = self.norm_type.to_string().trim_start_matches('l').into();
        }
        if self.non_finite != NonFinite::Propagate {
            clip["nonFinite"] = self.non_finite.to_string().into();
        }
        match self.epsilon {
            None => {}
            Some(Epsilon::PyTorch) => clip["epsilon"] = "pytorch".into(),
            Some(Epsilon::None) => clip["epsilon"] = "none".into(),
            Some(Epsilon::Value(epsilon)) => clip["epsilon"] = text(epsilon).into(),
        }
        if let Some(scale) = self.loss_scale {
            clip["lossScale"] = text(scale).into();
        }
        if let Some(norm) = self.skip_above {
            clip["skipAbove"] = text(norm).into();
        }
        if self.coefficient_only {
            clip["coefficientOnly"] = true.into();
        }
        clip
    }

    fn clip(&self, method: Method) -> Clip {
        let clip = match method {
            Method::Norm(max_norm) => Clip::by_global_norm(max_norm),
            Method::Tensor(max_norm) => Clip::by_norm(max_norm),
            Method::Rms(threshold) => Clip::by_rms(threshold),
            Method::Agc(clipping, floor) => Clip::by_parameter_norm(clipping, floor),
            Method::Value(clip_value) => Clip::by_value(clip_value),
            Method::Range(low, high) => Clip::by_value_range(low, high),
        };
        let clip = clip.norm_type(self.norm_type).non_finite(self.non_finite);
        let clip = self.epsilon.map_or(clip, |epsilon| clip.epsilon(epsilon));
        let clip = self.loss_scale.map_or(clip, |scale| clip.loss_scale(scale));
        let clip = self.skip_above.map_or(clip, |norm| clip.skip_above(norm));
        if self.coefficient_only { clip.coefficient_only() } else { clip }
    }
}

impl From<Method> for Options {
    fn from(method: Method) -> Self {
        Self::groups(&[method])
    }
}

impl Case {
    pub(crate) fn new(
        name: impl Into<String>,
        gradients: impl Fn() -> Vec<Vec<f32>> + Send + Sync + 'static,
        options: impl Into<Options>,
        expect: Expect,
    ) -> Self {
        Self {
            name: name.into(),
            gradients: Box::new(gradients),
            roles: vec![Role::of(DType::F32)],
            clips: vec![options.into()],
            expect,
        }
    }

    /// Creates a case from literal gradients.
    pub(crate) fn of(
        name: impl Into<String>,
        gradients: &[&[f32]],
        options: impl Into<Options>,
        expect: Expect,
    ) -> Self {
        let gradients: Vec<_> = gradients.iter().map(|gradient| gradient.to_vec()).collect();
        Self::new(name, move || gradients.clone(), options, expect)
    }

    /// Sets the roles of the gradients, which are repeated as often as needed.
    pub(crate) fn roles(self, roles: &[Role]) -> Self {
        Self { roles: roles.to_vec(), ..self }
    }

    /// Sets the type of all gradients.
    pub(crate) fn all(self, dtype: DType) -> Self {
        self.roles(&[Role::of(dtype)])
    }

    pub(crate) fn role(&self, gradient: usize) -> Role {
        self.roles[gradient % self.roles.len()]
    }
}
