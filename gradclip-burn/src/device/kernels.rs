//! gradclip's kernels as CubeCL launches them. The text is that of [`Dialect::CubeCl`].

use burn::cubecl::ir::settings::{Dim3, KernelSettings};
use burn::cubecl::ir::{ElemType, Scope, UIntKind, metadata::Info};
use burn::cubecl::prelude::{AddressType, KernelDefinition, KernelId, KernelMetadata};
use burn::cubecl::{CubeKernel, ExecutionMode, PrecompiledSource};
use gradclip::kernels::{Dialect, Kernel};

/// A kernel for CubeCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct GradclipKernel(pub(super) Kernel);

/// No check at run time. CubeCL compiles WGSL without bounds checks in either mode, so every index must be in range: tests of
/// the layout prove it for tiles, partials and segments. Its checked mode would only bound loops, and all loops of the
/// kernels are bounded by the length of a tile, a segment or a workgroup.
const MODE: ExecutionMode = ExecutionMode::Unchecked;

impl GradclipKernel {
    fn cube_dim(self) -> Dim3 {
        Dim3::new_1d(self.0.workgroup_size(Dialect::CubeCl))
    }
}

impl KernelMetadata for GradclipKernel {
    /// The kernel determines its text, so it is the id.
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(*self).cube_dim(self.cube_dim()).mode(MODE)
    }

    fn address_type(&self) -> ElemType {
        ElemType::UInt(UIntKind::U32)
    }
}

impl CubeKernel for GradclipKernel {
    /// The body is empty, since the text is precompiled; CubeCL reads the settings only.
    fn define(&self) -> KernelDefinition {
        let settings = KernelSettings::new(self.cube_dim(), MODE, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        let source = self.0.source(Dialect::CubeCl);
        Some(PrecompiledSource { source, entrypoint_name: "main".to_owned(), lang: "wgsl" })
    }
}
