//! Adapts gradclip's kernels to CubeCL's interface for precompiled sources. The source is in [`Dialect::CubeCl`].

use burn::cubecl::ir::settings::{Dim3, KernelSettings};
use burn::cubecl::ir::{ElemType, Scope, UIntKind, metadata::Info};
use burn::cubecl::prelude::{AddressType, KernelDefinition, KernelId, KernelMetadata};
use burn::cubecl::{CubeKernel, ExecutionMode, PrecompiledSource};
use gradclip::kernels::{Dialect, Kernel};

/// A kernel of gradclip for CubeCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct GradclipKernel(pub(super) Kernel);

/// The mode without checks. CubeCL compiles WGSL without bounds checks in either mode, so every index must be in range;
/// the layout tests verify this for tiles, partials and segments. The checked mode only bounds loops, and the length of
/// a tile, a segment or a workgroup already bounds every loop of the kernels.
const MODE: ExecutionMode = ExecutionMode::Unchecked;

impl GradclipKernel {
    fn cube_dim(self) -> Dim3 {
        Dim3::new_1d(self.0.workgroup_size(Dialect::CubeCl))
    }
}

impl KernelMetadata for GradclipKernel {
    /// Returns an id that holds the kernel, which determines the source.
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(*self).cube_dim(self.cube_dim()).mode(MODE)
    }

    fn address_type(&self) -> ElemType {
        ElemType::UInt(UIntKind::U32)
    }
}

impl CubeKernel for GradclipKernel {
    /// Returns the settings with an empty body, because the source is precompiled.
    fn define(&self) -> KernelDefinition {
        let settings = KernelSettings::new(self.cube_dim(), MODE, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        let source = self.0.source(Dialect::CubeCl);
        Some(PrecompiledSource { source, entrypoint_name: "main".to_owned(), lang: "wgsl" })
    }
}
