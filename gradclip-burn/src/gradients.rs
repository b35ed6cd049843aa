//! The gradients of a module: out of Burn's container, and back.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::backend::DispatchTensor;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::{DType, Tensor};

use crate::Error;
use crate::clipper::Matches;

/// A gradient that was taken from its container. While it is here, its container does not hold on to its memory, so that
/// Burn can tell whether anybody else does.
pub(crate) struct Gradient {
    pub(crate) parameter: ParamId,
    /// The path of its parameter.
    pub(crate) path: String,
    pub(crate) dtype: DType,
    /// Its elements.
    pub(crate) count: usize,
    pub(crate) tensor: DispatchTensor,
    pub(crate) rank: &'static dyn AnyRank,
}

/// What needs to know the rank of a tensor.
pub(crate) trait AnyRank {
    fn register(&self, gradients: &mut GradientsParams, parameter: ParamId, tensor: DispatchTensor);
    fn flat(&self, tensor: DispatchTensor, count: usize) -> Tensor<1>;
    fn shaped_like(&self, like: &DispatchTensor, flat: Tensor<1>) -> DispatchTensor;
}

struct Rank<const D: usize>;

impl<const D: usize> AnyRank for Rank<D> {
    fn register(&self, gradients: &mut GradientsParams, parameter: ParamId, tensor: DispatchTensor) {
        gradients.register(parameter, Tensor::<D>::from_dispatch(tensor));
    }

    fn flat(&self, tensor: DispatchTensor, count: usize) -> Tensor<1> {
        Tensor::<D>::from_dispatch(tensor).reshape([count])
    }

    fn shaped_like(&self, like: &DispatchTensor, flat: Tensor<1>) -> DispatchTensor {
        let shape = Tensor::<D>::from_dispatch(like.clone()).shape();
        flat.reshape::<D, _>(shape).into_dispatch()
    }
}

impl Gradient {
    /// Gives it back to the container.
    pub(crate) fn register(self, gradients: &mut GradientsParams) {
        self.rank.register(gradients, self.parameter, self.tensor);
    }

    /// The same elements, in one dimension.
    pub(crate) fn flat(&self) -> Tensor<1> {
        self.rank.flat(self.tensor.clone(), self.count)
    }

    /// The gradient with these elements instead.
    pub(crate) fn replaced(self, flat: Tensor<1>) -> Self {
        Self { tensor: self.rank.shaped_like(&self.tensor, flat), ..self }
    }
}

/// The group of the parameter with this path: the first that wants it, counted from 1, or 0 if none does.
pub(crate) fn group_of(path: &str, groups: &[Matches]) -> usize {
    groups.iter().position(|matches| matches(path)).map_or(0, |index| index + 1)
}

/// Checks that what these hold for the parameters of a module can be clipped, and has the ranks of the parameters, since Burn
/// panics later, if not; and that every group has a parameter, and some parameter a gradient, if any requires one.
pub(crate) fn check<'a, M: Module>(
    gradients: impl IntoIterator<Item = &'a GradientsParams>,
    module: &M,
    groups: &[Matches],
) -> Result<(), Error> {
    let mut checker = Checker {
        gradients: gradients.into_iter().collect(),
        groups,
        group_has_parameter: vec![false; groups.len() + 1],
        path: Vec::new(),
        paths: Vec::new(),
        met: HashSet::new(),
        requires_gradients: false,
        has_gradients: false,
        first_error: None,
    };
    module.visit(&mut checker);
    let Checker { gradients, group_has_parameter, paths: parameters, .. } = checker;
    if let Some(error) = checker.first_error {
        return Err(error);
    }
    // That of the parameters that belong to no group may be empty.
    if let Some(index) = group_has_parameter.iter().skip(1).position(|&has_one| !has_one) {
        return Err(Error::EmptyGroup { group: index + 1, parameters });
    }
    if checker.requires_gradients && !checker.has_gradients {
        let given = gradients.iter().map(|own| own.len()).sum();
        return Err(Error::NoGradients { given, parameters });
    }
    Ok(())
}

struct Checker<'a> {
    gradients: Vec<&'a GradientsParams>,
    groups: &'a [Matches],
    group_has_parameter: Vec<bool>,
    path: Vec<String>,
    /// Those of the parameters, of tied ones the first.
    paths: Vec<String>,
    met: HashSet<ParamId>,
    requires_gradients: bool,
    has_gradients: bool,
    first_error: Option<Error>,
}

impl ModuleVisitor for Checker<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        if !self.met.insert(parameter.id) {
            return;
        }
        let path = self.path.join(".");
        self.group_has_parameter[group_of(&path, self.groups)] = true;
        self.requires_gradients |= parameter.is_require_grad();
        for gradients in &self.gradients {
            // There is no other way to learn its rank: all that looks at an entry unwraps its type. This only looks.
            let look = || gradients.get::<D>(parameter.id).map(|gradient| gradient.dtype());
            let error = match catch_unwind(AssertUnwindSafe(look)) {
                Ok(Some(dtype)) if !dtype.is_float() => Error::Type { parameter: path.clone(), dtype },
                Ok(found) => {
                    self.has_gradients |= found.is_some();
                    continue;
                }
                Err(_) => Error::Rank { parameter: path.clone(), rank: D },
            };
            self.first_error.get_or_insert(error);
        }
        self.paths.push(path);
    }
}

/// Takes the gradients of a module from their container, in the order of the parameters: of tied parameters once, of those
/// without a gradient none.
pub(crate) fn take<M: Module>(gradients: &mut GradientsParams, module: &M) -> Vec<Gradient> {
    let mut taker = Taker { gradients, path: Vec::new(), taken: Vec::new() };
    module.visit(&mut taker);
    taker.taken
}

struct Taker<'a> {
    gradients: &'a mut GradientsParams,
    path: Vec<String>,
    taken: Vec<Gradient>,
}

impl ModuleVisitor for Taker<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        // A tied parameter is met again, but its gradient is gone by then.
        if let Some(gradient) = self.gradients.remove::<D>(parameter.id) {
            self.taken.push(Gradient {
                parameter: parameter.id,
                path: self.path.join("."),
                dtype: gradient.dtype(),
                count: gradient.shape().num_elements(),
                tensor: gradient.into_dispatch(),
                rank: &Rank::<D>,
            });
        }
    }
}

/// The gradients of a module, summed over the devices. Each sum is on the device that Burn chooses for its parameter.
pub(crate) fn sum<M: Module>(gradients: &mut MultiGradientsParams, module: &M) -> GradientsParams {
    struct Summer<'a> {
        gradients: &'a mut MultiGradientsParams,
        summed: GradientsParams,
    }

    impl ModuleVisitor for Summer<'_> {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            if let Some((sum, _)) = self.gradients.remove::<D>(parameter.id) {
                self.summed.register(parameter.id, sum);
            }
        }
    }

    let mut summer = Summer { gradients, summed: GradientsParams::new() };
    module.visit(&mut summer);
    summer.summed
}

/// The reverse of [`sum`], as far as possible: each gradient goes to those of its device.
pub(crate) fn spread<M: Module>(summed: GradientsParams, gradients: &mut MultiGradientsParams, module: &M) {
    struct Spreader<'a> {
        gradients: &'a mut MultiGradientsParams,
        summed: GradientsParams,
    }

    impl ModuleVisitor for Spreader<'_> {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            let Some(sum) = self.summed.remove::<D>(parameter.id) else { return };
            let device = sum.device();
            let of_devices = &mut self.gradients.grads;
            let index = of_devices.iter().position(|(_, own)| *own == device).unwrap_or(0);
            if let Some((own, _)) = of_devices.get_mut(index) {
                own.register(parameter.id, sum);
            }
        }
    }

    module.visit(&mut Spreader { gradients, summed });
}
