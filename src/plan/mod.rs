//! The plan of a clip as data: buffers, kernels, bindings and grids. This module does not call wgpu, so other hosts can execute a
//! plan, as the npm package does. Code that clips wgpu buffers calls [`Clipper`](crate::Clipper), the host for wgpu.
//!
//! [`Plan::new`] checks the gradients and decides everything that a clip does on the device. A host does the rest:
//!
//! 1. Create the [`buffers`](Plan::buffers) with their contents, and compile the kernels of the [`passes`](Plan::passes).
//! 2. Bind each [`Dispatch`]: the plan's buffers, the buffers of the gradients, and a filler for unused slots.
//! 3. At every step, record the dispatches of a pass in order.
//! 4. Copy a readable buffer to the host, and decode it with a method of [`Plan`].
//!
//! This module may change in any minor version.
//!
//! ```
//! use gradclip::plan::{Device, DeviceBuffer, Gradient, Limits, Plan};
//! use gradclip::{Clip, DType};
//!
//! /// A buffer of your API.
//! #[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
//! struct Buffer {
//!     id: u32,
//!     bytes: u64,
//! }
//!
//! impl DeviceBuffer for Buffer {
//!     fn size(&self) -> u64 {
//!         self.bytes
//!     }
//!     fn check_usage(&self) -> Result<(), String> {
//!         Ok(())
//!     }
//!     fn is_mapped(&self) -> bool {
//!         false
//!     }
//! }
//!
//! let (weight, bias) = (Buffer { id: 0, bytes: 1 << 20 }, Buffer { id: 1, bytes: 1 << 10 });
//! let gradients = [&weight, &bias].map(|buffer| Gradient::new(buffer, DType::F32));
//! let limits = Limits::new(&Device::WEBGPU_DEFAULT)?;
//! let (plan, buffers) = Plan::new(&gradients, &[Clip::by_global_norm(1.0)], limits)?;
//! assert_eq!(buffers, [&weight, &bias]);
//! for dispatch in plan.passes().all() {
//!     println!("{}: {:?}", dispatch.kernel.label(), dispatch.grid);
//! }
//! # Ok::<(), gradclip::Error>(())
//! ```

mod buffer_range;
mod builder;
mod by_norm;
mod by_value;
mod gradient;
mod labels;
mod layout;
mod limits;
mod origin;
mod partials;
mod passes;
mod readout;
mod segment_map;
#[cfg(test)]
mod tests;
mod write;

pub use buffer_range::DeviceBuffer;
pub use gradient::{Gradient, Parameter};
pub use limits::{Device, Limits};
pub use origin::Use;
pub use partials::Partials;
pub use passes::{BoundRange, Dispatch, Passes, Source};
pub use readout::Readout;
pub use write::{Place, Write};

#[cfg(feature = "wgpu")]
pub(crate) use limits::{MAX_ARRAY_SLOTS, MAX_SLOTS};

use crate::kernels::tables::Segment;
use crate::operation::{Limit, Operation};
use crate::{AutoClip, Clip, Error};
use gradient::Set;
use origin::Origin;

/// The usage of a buffer, as flags with the values of WebGPU's `GPUBufferUsage`.
pub mod usage {
    /// The buffer can be copied from.
    pub const COPY_SRC: u32 = 0x4;
    /// The buffer can be copied to, and written by the host.
    pub const COPY_DST: u32 = 0x8;
    /// A shader binds it as uniform.
    pub const UNIFORM: u32 = 0x40;
    /// A shader binds it as storage.
    pub const STORAGE: u32 = 0x80;

    /// The usage of state that lasts from step to step and can be saved and restored.
    pub(super) const STATE: u32 = STORAGE | COPY_SRC | COPY_DST;
}

/// The words at the end of a [readable](PlanBuffer::readable) buffer. A host copies them with the results. If they are missing in
/// the copy, the copy has not run.
pub const MARK: [u32; 3] = [0, u32::from_le_bytes(*b"ran!"), 0];

/// The plan of a clip: what a host creates and dispatches. See [the module](self).
#[derive(Debug)]
pub struct Plan {
    buffers: Vec<PlanBuffer>,
    passes: Passes,
    /// None for a clip by value.
    outcome: Option<Outcome>,
    /// The buffers of a clip by value that begin with the inverse loss scale, one for each element type.
    inverse_scales: Option<[usize; 3]>,
    origin: Origin,
}

/// A buffer of a plan.
#[derive(Clone, Debug)]
pub struct PlanBuffer {
    /// Its label.
    pub label: &'static str,
    /// Its usage, as flags of [`usage`].
    pub usage: u32,
    /// Its size in bytes; never 0.
    pub bytes: u64,
    /// Its initial contents. If empty, the buffer starts zeroed.
    pub words: Vec<u32>,
    /// Whether a rebound plan keeps this buffer and its contents: state that lasts from step to step. The kept buffers of both
    /// plans have the same order.
    pub is_kept: bool,
    /// The number of bytes that the host can read; `None` if it cannot. The contents end with [`MARK`].
    pub readable: Option<usize>,
}

/// The buffers of a clip by norm that last from step to step, and the data to update them. A buffer is an index into
/// [`Plan::buffers`].
#[derive(Debug)]
struct Outcome {
    records: usize,
    /// The number of records.
    count: usize,
    /// Whether reading the record of non-finite gradients is an error.
    is_error: bool,
    norm_params: usize,
    /// Whether the plan updates the loss scale.
    has_dynamic_scale: bool,
    /// The `Segment`s of `segment.wgsl`, which hold the limits.
    segments: usize,
    /// The host copy of the segments, for updates of the limits.
    table: Vec<Segment>,
    /// How the limit of each record follows from that of its group.
    limits: Vec<Limit>,
    groups: usize,
    /// Whether each segment is a group.
    together: bool,
    /// The norm that the caller supplies, for a clip by supplied norm.
    supplied: Option<usize>,
    histories: Option<usize>,
    norm_windows: Option<(AutoClip, usize)>,
    step_counts: Option<usize>,
    tensor_stats: Option<usize>,
    /// Only for a shard of a reproducible norm.
    tile_partials: Option<TilePartials>,
}

/// The partials of the plan's own tiles, for the host to read.
#[derive(Debug)]
struct TilePartials {
    /// The buffers of the banks.
    banks: Vec<usize>,
    /// The location of each partial, if there are several banks; see [`Layout::partial_locations`](layout::Layout).
    locations: Vec<u32>,
    /// The size of a partial, in words.
    words: usize,
    /// The buffer for all banks, one after the other.
    copy: usize,
}

impl Plan {
    /// Plans the clip of `gradients`, with one clip for each [group](Gradient::group). Returns the plan and the distinct buffers of
    /// the gradients; [`Source::Given`] is an index into these.
    ///
    /// # Errors
    ///
    /// Those of [`Clipper::prepare_groups`](crate::Clipper::prepare_groups) that need no device.
    pub fn new<'a, B: DeviceBuffer>(
        gradients: &[Gradient<'a, B>],
        clips: &[Clip],
        limits: Limits,
    ) -> Result<(Self, Vec<&'a B>), Error> {
        Self::of_operations(gradients, &Clip::checked_groups(clips)?, limits, None)
    }

    /// [`new`](Self::new) for checked clips. `total_elements` is the number of elements of all shards, for a shard whose partials
    /// are read back.
    pub(crate) fn of_operations<'a, B: DeviceBuffer>(
        gradients: &[Gradient<'a, B>],
        operations: &[Operation],
        limits: Limits,
        total_elements: Option<u64>,
    ) -> Result<(Self, Vec<&'a B>), Error> {
        let (set, buffers) = Set::resolve(gradients, operations, total_elements)?;
        Ok((Self::build(set, operations, limits)?, buffers))
    }

    fn build(set: Set, operations: &[Operation], limits: Limits) -> Result<Self, Error> {
        let (buffers, passes, outcome, inverse_scales) = if let [Operation::Norm(norm), ..] = operations {
            let max_norms: Vec<f32> = operations.iter().map(Operation::limit).collect();
            let (buffers, passes, outcome) = by_norm::plan(norm, &max_norms, &set, limits)?;
            (buffers, passes, Some(outcome), None)
        } else {
            let (buffers, passes, inverse_scales) = by_value::plan(operations, &set, limits)?;
            (buffers, passes, None, inverse_scales)
        };
        let origin = Origin { operations: operations.into(), limits, set };
        Ok(Self { buffers, passes, outcome, inverse_scales, origin })
    }

    /// Returns the buffers that the plan needs besides those of the gradients.
    #[must_use]
    pub fn buffers(&self) -> &[PlanBuffer] {
        &self.buffers
    }

    /// Removes the initial contents of all buffers, which a host does not need once it has created them.
    pub fn forget_contents(&mut self) {
        for buffer in &mut self.buffers {
            buffer.words = Vec::new();
        }
    }

    /// Returns the dispatches.
    #[must_use]
    pub fn passes(&self) -> &Passes {
        &self.passes
    }

    /// Returns the size of all buffers of the plan, in bytes.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.bytes).sum()
    }

    /// Returns the label of a gradient.
    #[must_use]
    pub fn label(&self, gradient: usize) -> Option<&str> {
        self.origin.set.labels.get(gradient)
    }

    /// Returns the number of records; 0 for a clip by value.
    #[must_use]
    pub fn records(&self) -> usize {
        self.outcome.as_ref().map_or(0, |outcome| outcome.count)
    }
}
