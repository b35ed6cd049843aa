//! The options of a clip, and the clip.

use std::sync::Arc;

use burn::module::Module;
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::Tensor;
use gradclip::{Epsilon, NonFinite, NormType};

use crate::clipped::{Source, Words};
use crate::device::{self, Cache, Extent, Norm};
use crate::gradients::{self, Gradient};
use crate::primitive::KernelBackend;
use crate::task::{Method, Task};
use crate::{Clipped, Error, tensor_ops};
use burn::backend::Wgpu;

/// Which parameters belong to a group, by their path.
type Matches = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Clips the gradients of a module, between the backward pass and the optimizer.
///
/// ```no_run
/// # use burn::{module::Module, optim::GradientsParams};
/// # fn step(model: &impl Module, loss: burn::Tensor<1>) -> Result<(), gradclip_burn::Error> {
/// use gradclip_burn::GradClipper;
///
/// let clipper = GradClipper::by_global_norm(1.0); // once
///
/// let mut grads = GradientsParams::from_grads(loss.backward(), model);
/// let clipped = clipper.clip(&mut grads, model)?;
/// let norm = clipped.norm(); // a tensor; nobody has waited for it
/// # Ok(())
/// # }
/// ```
///
/// Make one and keep it: it remembers what the shapes of a model need on the device. Clones share that. It serves any
/// number of models, devices and threads.
#[derive(Clone)]
pub struct GradClipper {
    by_norm: bool,
    norm_type: NormType,
    /// The bounds of what belongs to no group. Of a clip by norm the upper one is the limit.
    bounds: [f32; 2],
    groups: Vec<([f32; 2], Matches)>,
    epsilon: Epsilon,
    non_finite: NonFinite,
    loss_scale: f32,
    tensor_stats: bool,
    cache: Cache,
}

impl std::fmt::Debug for GradClipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GradClipper")
            .field("by_norm", &self.by_norm)
            .field("norm_type", &self.norm_type)
            .field("bounds", &self.bounds)
            .field("groups", &self.groups.len())
            .field("non_finite", &self.non_finite)
            .finish_non_exhaustive()
    }
}

impl GradClipper {
    fn new(by_norm: bool, bounds: [f32; 2]) -> Self {
        Self {
            by_norm,
            norm_type: NormType::L2,
            bounds,
            groups: Vec::new(),
            epsilon: Epsilon::PyTorch,
            non_finite: NonFinite::Propagate,
            loss_scale: 1.0,
            tensor_stats: false,
            cache: Cache::default(),
        }
    }

    /// Scales all gradients by one factor, so that their joint norm is at most `max_norm`:
    /// `torch.nn.utils.clip_grad_norm_`. An infinite limit measures, and changes nothing.
    #[must_use]
    pub fn by_global_norm(max_norm: f32) -> Self {
        Self::new(true, [0.0, max_norm])
    }

    /// Clamps every element to `-clip_value..=clip_value`: `torch.nn.utils.clip_grad_value_`. NaN stays NaN.
    #[must_use]
    pub fn by_value(clip_value: f32) -> Self {
        Self::new(false, [-clip_value, clip_value])
    }

    /// Which norm is measured; [`NormType::L2`] if nothing is said. A clip by value has none.
    #[must_use]
    pub fn norm_type(self, norm_type: NormType) -> Self {
        Self { norm_type, ..self }
    }

    /// What is added to the norm before the limit is divided by it; 1e-6 if nothing is said, as in PyTorch.
    #[must_use]
    pub fn epsilon(self, epsilon: Epsilon) -> Self {
        Self { epsilon, ..self }
    }

    /// What becomes of gradients that are not finite; decided on the device.
    #[must_use]
    pub fn non_finite(self, policy: NonFinite) -> Self {
        Self { non_finite: policy, ..self }
    }

    /// The loss was multiplied by `scale`: norms are measured without it, and gradients leave the clip without it.
    #[must_use]
    pub fn loss_scale(self, scale: f32) -> Self {
        Self { loss_scale: scale, ..self }
    }

    /// Clips some parameters by themselves: those whose path satisfies `matches` get a norm and a limit of their own. A path
    /// is that of Burn's modules, as in `encoder.layers.0.weight`. A parameter belongs to the first group that wants it, and
    /// to what the clipper was made for if none does. Of a clip by value `limit` is its `clip_value`.
    #[must_use]
    pub fn group(mut self, limit: f32, matches: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        let bounds = if self.by_norm { [0.0, limit] } else { [-limit, limit] };
        self.groups.push((bounds, Arc::new(matches)));
        self
    }

    /// Measures each gradient besides, for [`Clipped::tensor_stats`], in the same pass over them.
    #[must_use]
    pub fn tensor_stats(self) -> Self {
        Self { tensor_stats: true, ..self }
    }

    /// Changes the limit of what belongs to no group: for schedules. It costs the upload of a few bytes.
    pub fn set_limit(&mut self, limit: f32) {
        self.bounds = if self.by_norm { [0.0, limit] } else { [-limit, limit] };
    }

    /// Clips the gradients of `module`, and leaves them in `gradients`. Tied parameters count once; those without a gradient
    /// are left out; gradients of other modules stay as they are.
    ///
    /// On Burn's wgpu runtime they are clipped by gradclip's kernels, in Burn's own stream and memory: in place, or in a
    /// copy where somebody else holds the same memory. Nothing is read back and nothing waited for. Elsewhere it is Burn's own
    /// tensor operations.
    ///
    /// # Errors
    ///
    /// If the options mean nothing, or a gradient cannot be clipped. Gradients are then as they were.
    pub fn clip<M: Module>(&self, gradients: &mut GradientsParams, module: &M) -> Result<Clipped, Error> {
        self.run(&self.task(true)?, gradients, module)
    }

    /// Measures as [`clip`](Self::clip) does, and changes nothing.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip).
    pub fn measure<M: Module>(&self, gradients: &mut GradientsParams, module: &M) -> Result<Clipped, Error> {
        let measuring = Self { by_norm: true, ..self.clone() };
        measuring.run(&measuring.task(false)?, gradients, module)
    }

    /// Clips the gradients that several devices have of `module`: they are summed first, parameter by parameter, as Burn's
    /// optimizer would do it, and their sums clipped together. The sums are left in `gradients`, each on a device of its own
    /// choice: what `ModuleOptimizer::step_multi` takes.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip). The gradients are then summed.
    pub fn clip_multi<M: Module>(
        &self,
        gradients: &mut MultiGradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        let mut summed = gradients::sum(gradients, module);
        let clipped = self.clip(&mut summed, module);
        gradients::spread(summed, gradients, module);
        clipped
    }

    /// What becomes of gradients that are not finite.
    #[cfg(feature = "train")]
    pub(crate) const fn policy(&self) -> NonFinite {
        self.non_finite
    }

    fn task(&self, writes: bool) -> Result<Task, Error> {
        let groups: Vec<_> =
            [self.bounds].into_iter().chain(self.groups.iter().map(|(bounds, _)| *bounds)).collect();
        for &[low, high] in &groups {
            if self.by_norm && high < 0.0 {
                return Err(Error::MaxNorm { given: high });
            }
            if !self.by_norm
                && !matches!(
                    low.partial_cmp(&high),
                    Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)
                )
            {
                return Err(Error::Bounds { low, high });
            }
        }
        let method = if self.by_norm {
            Method::Norm(match (self.norm_type, self.norm_type.p()) {
                (NormType::L1, _) | (_, 1.0) => Norm::L1,
                (NormType::L2, _) | (_, 2.0) => Norm::L2,
                (NormType::Inf, _) | (_, f32::INFINITY) => Norm::Inf,
                (given, _) => return Err(Error::NormType { given }),
            })
        } else {
            Method::Clamp
        };
        let epsilon = match self.epsilon {
            Epsilon::PyTorch => 1e-6,
            Epsilon::None => 0.0,
            Epsilon::Value(value) if value >= 0.0 && value.is_finite() => value,
            Epsilon::Value(given) => return Err(Error::Epsilon { given }),
        };
        let inverse_scale = self.loss_scale.recip();
        if !(self.loss_scale > 0.0 && self.loss_scale.is_finite() && inverse_scale.is_finite()) {
            return Err(Error::LossScale { given: self.loss_scale });
        }
        let tensor_stats = self.tensor_stats && self.by_norm;
        Ok(Task { method, groups, epsilon, non_finite: self.non_finite, inverse_scale, tensor_stats, writes })
    }

    fn run<M: Module>(
        &self,
        task: &Task,
        gradients: &mut GradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        let taken = gradients::take(gradients, module);
        if let Some(refused) = taken.iter().find(|gradient| !gradient.dtype.is_float()) {
            let error = Error::Unsupported { parameter: refused.path.clone(), dtype: refused.dtype };
            put_back(taken, gradients);
            return Err(error);
        }
        let paths: Arc<[String]> = taken.iter().map(|gradient| gradient.path.clone()).collect();
        let group_of: Arc<[usize]> = paths.iter().map(|path| self.group_of(path)).collect();

        let extents = extents(&taken, &group_of);
        let by_kernels = extents.is_some();
        let (taken, measured) = if let Some(extents) = extents {
            self.by_kernels(taken, extents, task)
        } else {
            let (taken, measured) = tensor_ops::clip(taken, &group_of, task);
            (taken, measured.map(|measured| Source::Operations { measured: Box::new(measured), group_of }))
        };
        put_back(taken, gradients);
        let source = measured.unwrap_or_else(|| Source::Nothing {
            groups: task.groups.len(),
            device: module.devices().into_iter().next().unwrap_or_default(),
            by_kernels,
        });
        Ok(Clipped::new(source, paths, task))
    }

    fn group_of(&self, path: &str) -> usize {
        self.groups.iter().position(|(_, matches)| matches(path)).map_or(0, |index| index + 1)
    }

    fn by_kernels(
        &self,
        taken: Vec<Gradient>,
        extents: Vec<Extent>,
        task: &Task,
    ) -> (Vec<Gradient>, Option<Source>) {
        let mut shells = Vec::with_capacity(taken.len());
        let mut primitives = Vec::with_capacity(taken.len());
        for gradient in taken {
            let (shell, primitive) = gradient.split();
            shells.push(shell);
            primitives.extend(primitive);
        }
        let clipped = Wgpu::clip(primitives, extents, task.clone(), self.cache.clone());
        let taken =
            shells.into_iter().zip(clipped.gradients).map(|(shell, tensor)| shell.join(tensor)).collect();
        let measured = clipped.norms.zip(clipped.records).map(|(norms, records)| {
            Source::Words(Box::new(Words {
                norms: Tensor::from_primitive::<Wgpu>(norms),
                records: Tensor::from_primitive::<Wgpu>(records),
                stats: clipped.stats.map(Tensor::from_primitive::<Wgpu>),
            }))
        });
        (taken, measured)
    }
}

fn put_back(taken: Vec<Gradient>, gradients: &mut GradientsParams) {
    for gradient in taken {
        gradient.register(gradients);
    }
}

/// What the kernels need to know of the gradients, if they can take them: all on one device, which takes WGSL.
fn extents(gradients: &[Gradient], group_of: &[usize]) -> Option<Vec<Extent>> {
    let device = Wgpu::device_of(gradients.first()?.primitive()?);
    if !device::takes_wgsl(&device) {
        return None;
    }
    let each = gradients.iter().zip(group_of).map(|(gradient, &group)| {
        let here = Wgpu::device_of(gradient.primitive()?) == device;
        let elements = device::elements_of(gradient.dtype).filter(|_| here)?;
        Some(Extent { count: gradient.count, elements, group })
    });
    each.collect()
}
