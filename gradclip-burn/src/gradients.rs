//! Checks the gradients of a module, takes them out of Burn's container, and puts them back.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use burn::backend::DispatchTensor;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::{DType, Device, Tensor};

use crate::Error;

/// Selects the parameters of a group by their paths.
pub(crate) type ParameterFilter = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Selects the gradients that are split into rows or columns, by the paths of their parameters and by their shapes.
pub(crate) type UnitFilter = Arc<dyn Fn(&str, &[usize]) -> bool + Send + Sync>;

/// How a gradient is split into units that are clipped on their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Split {
    /// The gradient is one unit.
    Whole,
    /// A number of rows along the first dimension. The elements of a row are consecutive.
    Rows(usize),
    /// A number of columns along the last dimension. The columns of consecutive elements alternate.
    Columns(usize),
}

impl Split {
    /// Returns the number of units.
    pub(crate) const fn units(self) -> usize {
        match self {
            Self::Whole => 1,
            Self::Rows(units) | Self::Columns(units) => units,
        }
    }
}

/// What a clip takes from a module and its gradients.
#[derive(Clone, Copy)]
pub(crate) struct Selection<'a> {
    /// The filters of the groups.
    pub(crate) groups: &'a [ParameterFilter],
    /// Selects the gradients that are split into rows, if any.
    pub(crate) rows: Option<&'a UnitFilter>,
    /// Selects the gradients that are split into columns, if any.
    pub(crate) columns: Option<&'a UnitFilter>,
    /// Whether the clip reads the parameters.
    pub(crate) with_parameters: bool,
}

impl Selection<'_> {
    /// Returns how a gradient is split. [`check`] has refused a gradient that is split into rows and columns.
    fn split(&self, path: &str, shape: &[usize]) -> Split {
        // A gradient without elements is not split.
        let selects = |filter: Option<&UnitFilter>| {
            !shape.contains(&0) && filter.is_some_and(|is_split| is_split(path, shape))
        };
        match shape {
            [rows, ..] if *rows > 1 && selects(self.rows) => Split::Rows(*rows),
            [.., columns] if *columns > 1 && selects(self.columns) => Split::Columns(*columns),
            _ => Split::Whole,
        }
    }

    /// Checks that a gradient is not split into rows and columns.
    fn check_split(&self, path: &str, shape: &[usize]) -> Result<(), Error> {
        let [by_rows, by_columns] =
            [self.rows, self.columns].map(|filter| filter.is_some_and(|is_split| is_split(path, shape)));
        if by_rows && by_columns {
            return Err(Error::RowsAndColumns { parameter: path.to_owned(), shape: shape.to_vec() });
        }
        Ok(())
    }
}

/// A gradient that was taken out of its container. The container no longer refers to its memory, so Burn can tell
/// whether another tensor does.
pub(crate) struct Gradient {
    pub(crate) info: GradientInfo,
    pub(crate) tensor: DispatchTensor,
    /// Its parameter, if the clip reads it.
    pub(crate) parameter: Option<ParameterTensor>,
}

/// A parameter without autodiff. It has the shape of its gradient.
pub(crate) struct ParameterTensor {
    pub(crate) tensor: DispatchTensor,
    pub(crate) dtype: DType,
}

/// The description of a gradient, without its tensor.
pub(crate) struct GradientInfo {
    parameter: ParamId,
    /// The path of its parameter.
    pub(crate) path: String,
    /// The group of its parameter: 0 if it belongs to none.
    pub(crate) group: usize,
    pub(crate) dtype: DType,
    /// The number of its elements.
    pub(crate) count: usize,
    /// The number of its units divides `count`.
    pub(crate) split: Split,
    rank: &'static dyn AnyRank,
}

/// The operations that need the rank as a constant, for a rank that is known only at run time.
trait AnyRank {
    fn register(&self, gradients: &mut GradientsParams, parameter: ParamId, tensor: DispatchTensor);
    fn flatten(&self, tensor: DispatchTensor, count: usize) -> Tensor<1>;
    fn reshape_like(&self, like: &DispatchTensor, flat: Tensor<1>) -> DispatchTensor;
}

struct Rank<const D: usize>;

impl<const D: usize> AnyRank for Rank<D> {
    fn register(&self, gradients: &mut GradientsParams, parameter: ParamId, tensor: DispatchTensor) {
        gradients.register(parameter, Tensor::<D>::from_dispatch(tensor));
    }

    fn flatten(&self, tensor: DispatchTensor, count: usize) -> Tensor<1> {
        let tensor = Tensor::<D>::from_dispatch(tensor);
        match count {
            // In a shape, Burn reads 0 as the length before.
            0 => Tensor::empty([0], (&tensor.device(), tensor.dtype())),
            _ => tensor.reshape([count]),
        }
    }

    fn reshape_like(&self, like: &DispatchTensor, flat: Tensor<1>) -> DispatchTensor {
        let shape = Tensor::<D>::from_dispatch(like.clone()).shape();
        flat.reshape::<D, _>(shape).into_dispatch()
    }
}

/// Returns the element type for gradclip's kernels, or `None` if they do not support it.
pub(crate) const fn kernel_dtype(dtype: DType) -> Option<gradclip::DType> {
    match dtype {
        DType::F32 | DType::Flex32 => Some(gradclip::DType::F32),
        DType::F16 => Some(gradclip::DType::F16),
        DType::BF16 => Some(gradclip::DType::BF16),
        _ => None,
    }
}

impl Gradient {
    /// Puts the gradient back into a container.
    pub(crate) fn register(self, gradients: &mut GradientsParams) {
        self.info.rank.register(gradients, self.info.parameter, self.tensor);
    }

    /// Returns the device of the gradient.
    pub(crate) fn device(&self) -> Device {
        self.flatten().device()
    }

    /// Returns the gradient, flattened to one dimension.
    pub(crate) fn flatten(&self) -> Tensor<1> {
        self.info.rank.flatten(self.tensor.clone(), self.info.count)
    }

    /// Returns the parameter, flattened to one dimension, if the clip reads it.
    pub(crate) fn flatten_parameter(&self) -> Option<Tensor<1>> {
        let parameter = self.parameter.as_ref()?;
        Some(self.info.rank.flatten(parameter.tensor.clone(), self.info.count))
    }

    /// Replaces the elements, and keeps the shape.
    pub(crate) fn with_elements(self, flat: Tensor<1>) -> Self {
        Self { tensor: self.info.rank.reshape_like(&self.tensor, flat), ..self }
    }
}

/// Returns the group of a parameter: the first group that matches its path, counted from 1, or 0 if none does.
fn group_of(path: &str, groups: &[ParameterFilter]) -> usize {
    groups.iter().position(|matches| matches(path)).map_or(0, |index| index + 1)
}

/// Checks that each gradient can be clipped and has the rank of its parameter (also the shape, if the clip reads the
/// parameters), that it is not split in two ways, that each group has a parameter, and that there is a gradient if any parameter requires one. On a
/// different rank, Burn would panic.
pub(crate) fn check<'a, M: Module>(
    containers: impl IntoIterator<Item = &'a GradientsParams>,
    module: &M,
    selection: Selection<'_>,
) -> Result<(), Error> {
    let groups = selection.groups;
    let mut checker = Checker {
        containers: containers.into_iter().collect(),
        selection,
        group_has_parameter: vec![false; groups.len() + 1],
        path: Vec::new(),
        paths: Vec::new(),
        visited: HashSet::new(),
        requires_gradients: false,
        has_gradients: false,
        first_error: None,
    };
    module.visit(&mut checker);
    let Checker { containers, group_has_parameter, paths: parameters, .. } = checker;
    if let Some(error) = checker.first_error {
        return Err(error);
    }
    // Group 0, the parameters in no group, may be empty.
    if let Some(index) = group_has_parameter.iter().skip(1).position(|&has_parameter| !has_parameter) {
        return Err(Error::EmptyGroup { group: index + 1, parameters });
    }
    if checker.requires_gradients && !checker.has_gradients {
        let given = containers.iter().map(|gradients| gradients.len()).sum();
        return Err(Error::NoGradients { given, parameters });
    }
    Ok(())
}

struct Checker<'a> {
    containers: Vec<&'a GradientsParams>,
    selection: Selection<'a>,
    group_has_parameter: Vec<bool>,
    /// The path of the module that is being visited.
    path: Vec<String>,
    /// The paths of the parameters. Tied parameters are listed once, by their first path.
    paths: Vec<String>,
    visited: HashSet<ParamId>,
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
        if !self.visited.insert(parameter.id) {
            return;
        }
        let path = self.path.join(".");
        self.group_has_parameter[group_of(&path, self.selection.groups)] = true;
        self.requires_gradients |= parameter.is_require_grad();
        for gradients in &self.containers {
            // Burn offers no other way to check the rank of an entry: every access unwraps its type. This access is
            // read-only.
            let look_up =
                || gradients.get::<D>(parameter.id).map(|gradient| (gradient.dtype(), gradient.dims()));
            let error = match catch_unwind(AssertUnwindSafe(look_up)) {
                Ok(Some((dtype, _))) if !dtype.is_float() => Error::Type { parameter: path.clone(), dtype },
                Ok(found) => {
                    self.has_gradients |= found.is_some();
                    let check = |(_, shape): (DType, [usize; D])| {
                        self.selection.check_split(&path, &shape)?;
                        if self.selection.with_parameters {
                            check_parameter(parameter, &path, shape)?;
                        }
                        Ok(())
                    };
                    match found.map_or(Ok(()), check) {
                        Err(error) => error,
                        Ok(()) => continue,
                    }
                }
                Err(_) => Error::Rank { parameter: path.clone(), rank: D },
            };
            self.first_error.get_or_insert(error);
        }
        self.paths.push(path);
    }
}

/// Checks that the norm of a parameter can be measured, and that its gradient has its shape.
fn check_parameter<const D: usize>(
    parameter: &Param<Tensor<D>>,
    path: &str,
    gradient: [usize; D],
) -> Result<(), Error> {
    let value = parameter.val();
    let (dtype, expected) = (value.dtype(), value.dims());
    if !dtype.is_float() {
        return Err(Error::ParameterType { parameter: path.to_owned(), dtype });
    }
    if gradient != expected {
        return Err(Error::Shape {
            parameter: path.to_owned(),
            gradient: gradient.to_vec(),
            expected: expected.to_vec(),
        });
    }
    Ok(())
}

/// Takes the gradients of a module out of their container, in the order of the parameters. It takes the gradient of
/// tied parameters once, and skips parameters without a gradient.
pub(crate) fn take<M: Module>(
    gradients: &mut GradientsParams,
    module: &M,
    selection: Selection<'_>,
) -> Vec<Gradient> {
    let mut taker = Taker { gradients, selection, path: Vec::new(), taken: Vec::new() };
    module.visit(&mut taker);
    taker.taken
}

struct Taker<'a> {
    gradients: &'a mut GradientsParams,
    selection: Selection<'a>,
    /// The path of the module that is being visited.
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
        // The gradient of a tied parameter is gone at its second visit.
        let Some(gradient) = self.gradients.remove::<D>(parameter.id) else { return };
        let path = self.path.join(".");
        let (shape, count) = (gradient.dims(), gradient.shape().num_elements());
        let split = self.selection.split(&path, &shape);
        let info = GradientInfo {
            parameter: parameter.id,
            group: group_of(&path, self.selection.groups),
            path,
            dtype: gradient.dtype(),
            count,
            split,
            rank: &Rank::<D>,
        };
        let parameter = self.selection.with_parameters.then(|| {
            let value = parameter.val().inner();
            ParameterTensor { dtype: value.dtype(), tensor: value.into_dispatch() }
        });
        self.taken.push(Gradient { info, tensor: gradient.into_dispatch(), parameter });
    }
}

/// Sums the gradients of a module over devices. Each sum is on the device that Burn chooses for its parameter.
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

/// Distributes the results of [`sum`] to the containers of their devices.
pub(crate) fn distribute<M: Module>(
    summed: GradientsParams,
    gradients: &mut MultiGradientsParams,
    module: &M,
) {
    struct Distributor<'a> {
        gradients: &'a mut MultiGradientsParams,
        summed: GradientsParams,
    }

    impl ModuleVisitor for Distributor<'_> {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            let Some(sum) = self.summed.remove::<D>(parameter.id) else { return };
            let device = sum.device();
            let containers = &mut self.gradients.grads;
            let index = containers.iter().position(|(_, of_device)| *of_device == device).unwrap_or(0);
            if let Some((gradients, _)) = containers.get_mut(index) {
                gradients.register(parameter.id, sum);
            }
        }
    }

    module.visit(&mut Distributor { gradients, summed });
}
