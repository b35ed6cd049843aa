//! The declarations at the head of a kernel, for each runtime that compiles it.

use super::BindingType;

/// The rules of the runtime that compiles a kernel. They differ in how bindings and constants are declared; the code below the
/// declarations is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// WebGPU as specified: read-only and uniform bindings, and pipeline-overridable constants, whose values are
    /// [`Kernel::pipeline_constants`](super::Kernel::pipeline_constants).
    WebGpu,
    /// CubeCL, as of its release 0.11. Every binding is `storage, read_write`: CubeCL shares one buffer among many tensors, and
    /// a buffer must not be bound both for reading and for writing in one dispatch. Constants are part of the text, since
    /// CubeCL passes none to the pipeline. All workgroups have the same size, except wide ones.
    CubeCl,
}

/// A constant of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Constant {
    pub(super) name: &'static str,
    ty: &'static str,
    value: Value,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Number(f64),
    /// A WGSL expression of other constants.
    Expression(&'static str),
}

impl Constant {
    pub(super) fn u32(name: &'static str, value: u32) -> Self {
        Self { name, ty: "u32", value: Value::Number(value.into()) }
    }

    pub(super) const fn f32(name: &'static str, value: f64) -> Self {
        Self { name, ty: "f32", value: Value::Number(value) }
    }

    pub(super) const fn derived(name: &'static str, expression: &'static str) -> Self {
        Self { name, ty: "u32", value: Value::Expression(expression) }
    }

    /// The name and the value; `None` for an expression of other constants.
    pub(super) const fn number(&self) -> Option<(&'static str, f64)> {
        match self.value {
            Value::Number(value) => Some((self.name, value)),
            Value::Expression(_) => None,
        }
    }
}

impl Dialect {
    /// Whether the unaligned tiles of an elementwise pass are only the edges of gradients. If not, they may be whole gradients.
    pub(super) const fn unaligned_tiles_are_edges(self) -> bool {
        matches!(self, Self::WebGpu)
    }

    pub(super) fn declare_constant(self, constant: &Constant) -> String {
        let Constant { name, ty, value } = constant;
        match (self, value) {
            (Self::WebGpu, Value::Number(_)) => format!("override {name}: {ty};\n"),
            (Self::WebGpu, Value::Expression(value)) => format!("override {name}: {ty} = {value};\n"),
            (Self::CubeCl, Value::Number(value)) if *ty == "u32" => {
                format!("const {name}: u32 = {value:.0}u;\n")
            }
            (Self::CubeCl, Value::Number(value)) => format!("const {name}: {ty} = {value:?};\n"),
            (Self::CubeCl, Value::Expression(value)) => format!("const {name}: {ty} = {value};\n"),
        }
    }

    pub(super) fn declare_binding(
        self,
        index: usize,
        ty: BindingType,
        (name, element): &(String, String),
    ) -> String {
        let space = match (self, ty) {
            (Self::CubeCl, _) | (Self::WebGpu, BindingType::ReadWrite) => "storage, read_write",
            (Self::WebGpu, BindingType::Read) => "storage, read",
            (Self::WebGpu, BindingType::Uniform) => "uniform",
        };
        format!("@group(0) @binding({index}) var<{space}> {name}: {element};\n")
    }
}
