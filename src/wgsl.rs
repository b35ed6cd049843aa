//! The kernels as text, for packages that launch them by other means than wgpu: `gradclip-burn` does. Whoever clips buffers of
//! wgpu has no use for it.
//!
//! What a kernel binds, and how a tile, a segment and a partial lie in memory, is declared in the text. Both may change with
//! any minor version.
//!
//! ```
//! use gradclip::wgsl::{Access, Finding, Kernel, Manner};
//! use gradclip::{DType, NormType};
//!
//! let manner = Manner { access: Access::Vectors, dtype: DType::BF16 };
//! let kernel = Kernel::Partials { finding: Finding::of(NormType::L2, false), manner, slots: 3 };
//! assert!(kernel.source().contains("@compute"));
//! assert_eq!(kernel.constants(), [("WORKGROUP_SIZE", 256.0)]);
//! ```

pub use crate::gpu::kernels::{Finding, Kernel, Leaves, WORKGROUP_SIZE};
pub use crate::gpu::layout::{Access, Manner, tile_elements};
