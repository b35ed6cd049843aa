//! `Device` and `Limits`: what a device allows, and the limits that plans use.

use crate::Error;
use crate::kernels::tables::LARGEST_TILE;
use crate::kernels::{
    BindingType, FIRST_SLOT, Kernel, MAX_BINDINGS_WITHOUT_SLOTS, MAX_STORAGE_WITHOUT_SLOTS, Slots,
    WIDE_WORKGROUP_BYTES, WIDE_WORKGROUP_SIZE, WORKGROUP_BYTES, WORKGROUP_SIZE, slot_count,
};

/// The most windows that one dispatch binds, whatever the device allows. On an H100 the norm kernel takes as long with 64 slots as
/// with one, within 4 %; with 256 it takes 20 to 50 % longer.
pub(crate) const MAX_SLOTS: u32 = 64;

/// [`MAX_SLOTS`] of a software adapter, which takes seconds to compile each case of a `switch` over slots.
const MAX_SLOTS_IN_SOFTWARE: u32 = 32;

/// The most windows of an array of buffers. A device allows hundreds of thousands; an array is up to twice as
/// long as needed, so that few kernels serve many sets.
pub(crate) const MAX_ARRAY_SLOTS: u32 = 1024;

/// The most banks of partials that one dispatch reads. Each bank makes the kernel that reduces them longer.
const MAX_BANKS: u32 = 16;

/// The resource of the device that an [`Error::DeviceLimit`] names.
const PLAN: &str = "a plan for the elements and rows of these gradients";

/// What a device allows. The names are those of the limits of wgpu and WebGPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The alignment of the offset of a storage buffer binding, in bytes.
    pub min_storage_buffer_offset_alignment: u32,
    /// The most invocations of a workgroup in x.
    pub max_compute_workgroup_size_x: u32,
    /// The most invocations of a workgroup.
    pub max_compute_invocations_per_workgroup: u32,
    /// The largest workgroup memory, in bytes.
    pub max_compute_workgroup_storage_size: u32,
    /// The most workgroups in one dimension of a dispatch.
    pub max_compute_workgroups_per_dimension: u32,
    /// The most storage buffers of a shader.
    pub max_storage_buffers_per_shader_stage: u32,
    /// The most uniform buffers of a shader.
    pub max_uniform_buffers_per_shader_stage: u32,
    /// The most buffers of a shader. WebGPU has no such limit.
    pub max_buffers_per_shader_stage: u32,
    /// The most bindings of a bind group.
    pub max_bindings_per_bind_group: u32,
    /// The most buffers in the arrays of a shader; 0 if it cannot have arrays of storage buffers, as in WebGPU.
    pub max_binding_array_elements_per_shader_stage: u32,
    /// The largest binding, in bytes.
    pub max_storage_buffer_binding_size: u64,
    /// The largest buffer, in bytes.
    pub max_buffer_size: u64,
    /// Whether the device computes on the CPU.
    pub is_software: bool,
    /// Whether a pipeline can have as many invocations as the device allows. On Metal, one that uses many registers cannot.
    pub has_full_workgroups: bool,
}

impl Device {
    /// The limits of a device of WebGPU that was requested without limits.
    pub const WEBGPU_DEFAULT: Self = Self {
        min_storage_buffer_offset_alignment: 256,
        max_compute_workgroup_size_x: 256,
        max_compute_invocations_per_workgroup: 256,
        max_compute_workgroup_storage_size: 16384,
        max_compute_workgroups_per_dimension: 65535,
        max_storage_buffers_per_shader_stage: 8,
        max_uniform_buffers_per_shader_stage: 12,
        max_buffers_per_shader_stage: u32::MAX,
        max_bindings_per_bind_group: 1000,
        max_binding_array_elements_per_shader_stage: 0,
        max_storage_buffer_binding_size: 128 << 20,
        max_buffer_size: 256 << 20,
        is_software: false,
        has_full_workgroups: true,
    };
}

/// The limits that plans use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest binding, in bytes. The largest tile fits into it at any offset.
    pub(super) binding_bytes: u64,
    /// The largest buffer of a plan, in bytes.
    pub(super) buffer_bytes: u64,
    /// The alignment of the offset of a binding, in bytes; at least 16.
    pub(super) alignment: u64,
    /// The most storage buffers of a kernel.
    pub(super) storage_buffers: usize,
    /// The most bindings of a kernel.
    pub(super) bindings: usize,
    /// The most windows that one dispatch may bind separately.
    pub(super) slots: usize,
    /// The most windows that one dispatch may bind as an array; 0 if the device has no such arrays.
    pub(super) array_slots: usize,
    /// The most banks of partials: a power of two.
    pub(super) banks: usize,
    /// Whether a workgroup may have 1024 invocations.
    pub(super) wide: bool,
    /// The most workgroups in one dimension of a dispatch.
    pub(super) workgroups_per_dimension: u32,
}

impl Limits {
    /// Returns the limits that plans use.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLimit`] if the device allows less than the smallest kernel needs.
    pub fn new(device: &Device) -> Result<Self, Error> {
        let alignment = u64::from(device.min_storage_buffer_offset_alignment.max(16));
        let needed: [(&'static str, u64, u64); 10] = [
            (
                "max_compute_workgroup_size_x",
                WORKGROUP_SIZE.into(),
                device.max_compute_workgroup_size_x.into(),
            ),
            (
                "max_compute_invocations_per_workgroup",
                WORKGROUP_SIZE.into(),
                device.max_compute_invocations_per_workgroup.into(),
            ),
            (
                "max_compute_workgroup_storage_size",
                WORKGROUP_BYTES.into(),
                device.max_compute_workgroup_storage_size.into(),
            ),
            (
                "max_compute_workgroups_per_dimension",
                1 << 8,
                device.max_compute_workgroups_per_dimension.into(),
            ),
            (
                "max_storage_buffers_per_shader_stage",
                MAX_STORAGE_WITHOUT_SLOTS.into(),
                device.max_storage_buffers_per_shader_stage.into(),
            ),
            ("max_uniform_buffers_per_shader_stage", 1, device.max_uniform_buffers_per_shader_stage.into()),
            (
                "max_buffers_and_acceleration_structures_per_shader_stage",
                MAX_BINDINGS_WITHOUT_SLOTS.into(),
                device.max_buffers_per_shader_stage.into(),
            ),
            (
                "max_bindings_per_bind_group",
                MAX_BINDINGS_WITHOUT_SLOTS.into(),
                device.max_bindings_per_bind_group.into(),
            ),
            (
                "max_storage_buffer_binding_size",
                4 * LARGEST_TILE + alignment,
                device.max_storage_buffer_binding_size,
            ),
            ("max_buffer_size", 4 * LARGEST_TILE + alignment, device.max_buffer_size),
        ];
        for (name, needed, allowed) in needed {
            if allowed < needed {
                return Err(Error::DeviceLimit { what: "clipping", name, needed, allowed });
            }
        }
        let storage_buffers = device.max_storage_buffers_per_shader_stage;
        let bindings = device.max_buffers_per_shader_stage.min(device.max_bindings_per_bind_group);
        let slots = storage_buffers.min(bindings) - FIRST_SLOT;
        // With several banks, the kernel that reduces partials also binds their locations and the other banks.
        let more = storage_buffers
            .saturating_sub(MAX_STORAGE_WITHOUT_SLOTS)
            .min(bindings.saturating_sub(MAX_BINDINGS_WITHOUT_SLOTS));
        // Shaders address windows in 32 bits.
        let binding_bytes = device.max_storage_buffer_binding_size.min(1 << 31) / 16 * 16;
        Ok(Self {
            binding_bytes,
            buffer_bytes: binding_bytes.min(device.max_buffer_size),
            alignment,
            storage_buffers: storage_buffers as usize,
            bindings: bindings as usize,
            slots: slots.min(if device.is_software { MAX_SLOTS_IN_SOFTWARE } else { MAX_SLOTS }) as usize,
            array_slots: device.max_binding_array_elements_per_shader_stage.min(MAX_ARRAY_SLOTS) as usize,
            wide: device.has_full_workgroups
                && WIDE_WORKGROUP_SIZE
                    <= device.max_compute_workgroup_size_x.min(device.max_compute_invocations_per_workgroup)
                && WIDE_WORKGROUP_BYTES <= device.max_compute_workgroup_storage_size,
            banks: 1 << more.clamp(1, MAX_BANKS).ilog2(),
            workgroups_per_dimension: device.max_compute_workgroups_per_dimension,
        })
    }

    /// Returns the alignment of the offset of a binding, in bytes.
    #[must_use]
    pub const fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Returns the size of the buffer for [`Source::Filler`](super::Source::Filler), in bytes. Each slot has its own aligned range,
    /// so that no two overlap.
    #[must_use]
    pub const fn filler_bytes(&self) -> u64 {
        self.alignment * self.windows() as u64
    }

    /// Returns the most windows that one dispatch may bind.
    pub(super) const fn windows(&self) -> usize {
        if self.slots < self.array_slots { self.array_slots } else { self.slots }
    }

    /// Returns the slots of a dispatch that binds `windows` windows: an array only if there are too many for separate bindings.
    pub(super) fn slots_for(&self, windows: usize) -> Slots {
        if windows <= self.slots {
            Slots::Separate(slot_count(windows, self.slots))
        } else {
            Slots::Array(slot_count(windows, self.array_slots))
        }
    }

    /// Checks that a dispatch may bind more windows as an array than separately.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLimit`].
    #[cfg(feature = "wgpu")]
    pub(crate) fn check_arrays(&self) -> Result<(), Error> {
        let (needed, allowed) = (self.slots as u64 + 1, self.array_slots as u64);
        let name =
            "max_binding_array_elements_per_shader_stage, with the features of Clipper::BINDING_ARRAYS";
        let what = "a clipper with arrays of buffers";
        if allowed < needed { Err(Error::DeviceLimit { what, name, needed, allowed }) } else { Ok(()) }
    }

    /// Checks that a plan may have `needed` bytes of tables and partials.
    pub(super) fn check_scratch(&self, needed: u64) -> Result<(), Error> {
        let allowed = self.buffer_bytes;
        let name = "max_storage_buffer_binding_size and max_buffer_size";
        if needed > allowed { Err(Error::DeviceLimit { what: PLAN, name, needed, allowed }) } else { Ok(()) }
    }

    /// Checks the number of workgroups of the largest dispatch.
    pub(super) fn check_workgroups(&self, workgroups: usize) -> Result<(), Error> {
        let (allowed, workgroups) = (u64::from(self.workgroups_per_dimension), workgroups as u64);
        if workgroups <= allowed * allowed {
            return Ok(());
        }
        let name = "max_compute_workgroups_per_dimension";
        // The side of the smallest square that holds more workgroups.
        let mut needed = allowed;
        while needed * needed <= workgroups {
            needed += 1;
        }
        Err(Error::DeviceLimit { what: PLAN, name, needed, allowed })
    }

    /// Returns whether the device allows the bindings of a kernel.
    pub(super) fn allows(&self, kernel: Kernel) -> bool {
        let bindings = kernel.bindings();
        let storage = bindings.iter().filter(|binding| binding.ty != BindingType::Uniform).count();
        storage <= self.storage_buffers && bindings.len() <= self.bindings
    }
}
