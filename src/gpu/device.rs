//! Finding a device, for callers who have none of their own.

use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(not(target_arch = "wasm32"))]
use std::sync::OnceLock;

use wgpu::{Adapter, AdapterInfo, Backends, DeviceType, Instance};

use crate::Error;

/// The adapters of this machine, the fastest kind first: discrete, integrated and virtual GPUs, software last.
///
/// Only backends that are compiled in are asked; see the crate feature `backends`. The environment variables of wgpu
/// (`WGPU_BACKEND` and others) are honoured, as they are at the first call.
///
/// All calls share one [`wgpu::Instance`]. So wgpu can tell the buffers, queues and encoders of one of these adapters'
/// devices from those of another, and refuses what is not its own; between devices of two instances it cannot.
#[must_use]
pub fn adapters() -> Vec<Adapter> {
    pollster::block_on(adapters_async())
}

/// [`adapters`], where blocking is not possible.
pub async fn adapters_async() -> Vec<Adapter> {
    if Instance::enabled_backend_features().is_empty() {
        return Vec::new();
    }
    let mut adapters = instance().enumerate_adapters(Backends::all()).await;
    adapters.sort_by_key(|adapter| rank(&adapter.get_info()));
    adapters
}

/// The instance of all adapters that this crate finds.
#[cfg(not(target_arch = "wasm32"))]
fn instance() -> &'static Instance {
    static INSTANCE: OnceLock<Instance> = OnceLock::new();
    INSTANCE.get_or_init(new_instance)
}

/// In a browser it cannot be shared between threads, and all instances are one there anyway.
#[cfg(target_arch = "wasm32")]
fn instance() -> Instance {
    new_instance()
}

fn new_instance() -> Instance {
    Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
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
    let no_device = |found: String| {
        let wanted = format!("usable device of the adapter {:?}", adapter.get_info().name);
        Error::NoDevice { wanted, found }
    };
    // wgpu 30 panics where the driver has no memory for the pipelines of wgpu's own.
    let request = catch_unwind(AssertUnwindSafe(|| adapter.request_device(&descriptor)))
        .map_err(|_| no_device("wgpu panicked while it opened the device".to_owned()))?;
    request.await.map_err(|error| no_device(error.to_string()))
}
