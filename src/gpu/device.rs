//! Finding a device, for callers who have none of their own.

use wgpu::{Adapter, AdapterInfo, Backends, DeviceType, Instance};

use crate::Error;

/// The adapters of this machine, the fastest kind first: discrete, integrated and virtual GPUs, software last.
///
/// Only backends that are compiled in are asked; see the crate feature `backends`. The environment variables of wgpu
/// (`WGPU_BACKEND` and others) are honoured.
#[must_use]
pub fn adapters() -> Vec<Adapter> {
    pollster::block_on(adapters_async())
}

/// [`adapters`], where blocking is not possible.
pub async fn adapters_async() -> Vec<Adapter> {
    if Instance::enabled_backend_features().is_empty() {
        return Vec::new();
    }
    let instance = Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let mut adapters = instance.enumerate_adapters(Backends::all()).await;
    adapters.sort_by_key(|adapter| rank(&adapter.get_info()));
    adapters
}

fn rank(info: &AdapterInfo) -> u8 {
    match info.device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

/// Whether an adapter computes on the CPU. The [CPU path](crate::cpu) is some twenty times faster than that.
#[must_use]
pub fn is_software(info: &AdapterInfo) -> bool {
    info.device_type == DeviceType::Cpu
}

/// Opens an adapter with all that it allows.
pub(crate) async fn open(adapter: &Adapter) -> Result<(wgpu::Device, wgpu::Queue), Error> {
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("gradclip"),
        required_limits: adapter.limits(),
        ..wgpu::DeviceDescriptor::default()
    };
    adapter.request_device(&descriptor).await.map_err(|error| Error::NoDevice {
        wanted: format!("device of the adapter {:?}", adapter.get_info().name),
        found: error.to_string(),
    })
}
