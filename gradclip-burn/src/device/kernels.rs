//! gradclip's kernels as CubeCL launches them.
//!
//! The text is the core's own. CubeCL launches it under rules of its own, and this is where they are met: all bindings are in
//! one group, in the order of the arguments, and none may be left unused; a page of memory holds many tensors, and wgpu
//! refuses to bind it for reading and for writing in one dispatch, so that everything is bound for writing; there are no
//! uniform buffers and no pipeline constants.

use burn::cubecl::ir::settings::{Dim3, KernelSettings};
use burn::cubecl::ir::{ElemType, Scope, UIntKind, metadata::Info};
use burn::cubecl::prelude::{AddressType, KernelDefinition, KernelId, KernelMetadata};
use burn::cubecl::{CubeKernel, ExecutionMode, PrecompiledSource};
use gradclip::wgsl::{Access, Finding, Kernel, Leaves, Manner, WORKGROUP_SIZE};

/// How the norm pass goes through gradients of this manner.
pub(super) fn to_measure(finding: Finding, manner: Manner) -> Manner {
    if finding.reads_vectors() { manner } else { Manner { access: Access::Elements, ..manner } }
}

/// Whether the kernel that leaves statistics asks which gradient a partial is of.
pub(super) fn stats_need_owners(finding: Finding) -> bool {
    !finding.reads_vectors()
}

/// How many slots a kernel is made for that is to have `needed` of at most `allowed`: the same where they are few and
/// gradients large, else powers of two, so that models share kernels.
pub(super) fn slots_for(needed: usize, allowed: usize) -> usize {
    if needed <= 4 { needed } else { needed.next_power_of_two().min(allowed) }
}

/// A kernel of gradclip's. One that leaves records leaves norms and factors besides, and binds them last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Launchable(pub(super) Kernel);

impl Launchable {
    fn text(self) -> String {
        let mut text = self.0.source();
        match self.0 {
            Kernel::Finalize { leaves: Leaves::Record, .. } => {
                // Burn gets them as tensors of their own.
                text.push_str("@group(0) @binding(5) var<storage, read_write> norms: array<f32>;\n");
                text.push_str("@group(0) @binding(6) var<storage, read_write> factors: array<f32>;\n");
                text = text.replace(LEAVES_RECORD, LEAVES_RECORD_AND_MORE);
            }
            Kernel::Finalize { leaves: Leaves::Stats, finding, .. } if !stats_need_owners(finding) => {
                // A binding without use does not exist.
                text = text.replace(OWNERS, "").replace(STATS, &STATS.replace('4', "3"));
            }
            _ => {}
        }
        for (name, value) in self.0.constants() {
            // The core has smaller workgroups for the edges of gradients; here they are whole gradients.
            let value = if name == "WORKGROUP_SIZE" { f64::from(WORKGROUP_SIZE) } else { value };
            for (ty, number) in [("u32", format!("{value:.0}u")), ("f32", format!("{value:?}"))] {
                text = text
                    .replace(&format!("override {name}: {ty};"), &format!("const {name}: {ty} = {number};"));
            }
        }
        // What is left follows from these.
        text.replace("override ", "const ")
            .replace("var<storage, read>", "var<storage, read_write>")
            .replace("var<uniform>", "var<storage, read_write>")
    }
}

const LEAVES_RECORD: &str = "records[index] = record;";
const LEAVES_RECORD_AND_MORE: &str = "records[index] = record;
    norms[index] = record.total_norm;
    factors[index] = record.factor;";
const OWNERS: &str = "@group(0) @binding(3) var<storage, read> owners: array<u32>;";
const STATS: &str = "@binding(4) var<storage, read_write> stats";

impl KernelMetadata for Launchable {
    /// The text follows from the value, so the value names the kernel.
    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
            .info(*self)
            .cube_dim(Dim3::new_1d(WORKGROUP_SIZE))
            // Every loop of these shaders ends by itself.
            .mode(ExecutionMode::Unchecked)
    }

    fn address_type(&self) -> ElemType {
        ElemType::UInt(UIntKind::U32)
    }
}

impl CubeKernel for Launchable {
    /// There is nothing but the text; this only says how large a workgroup is.
    fn define(&self) -> KernelDefinition {
        let settings =
            KernelSettings::new(Dim3::new_1d(WORKGROUP_SIZE), ExecutionMode::Unchecked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource { source: self.text(), entrypoint_name: "main".to_owned(), lang: "wgsl" })
    }
}

#[cfg(test)]
mod tests;
