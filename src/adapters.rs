//! The adapters of this machine, for callers that have no device yet.

#[cfg(not(target_arch = "wasm32"))]
use std::sync::OnceLock;

use wgpu::{Adapter, AdapterInfo, Backend, Backends, DeviceType, Instance};

use crate::{Error, panics};

/// Returns the adapters of this machine, the fastest kind first: discrete, integrated and virtual GPUs, software last.
///
/// Several backends may list one GPU once each. Among adapters of one kind, those of Vulkan, Metal and DirectX 12 come before those
/// of OpenGL.
///
/// Only backends that are compiled in are used; see the crate feature `backends`. The first call reads the environment
/// variables of wgpu, such as `WGPU_BACKEND`.
///
/// All calls share one [`wgpu::Instance`], so that wgpu detects a buffer, queue or encoder of the wrong device. It cannot
/// detect one of another instance.
///
/// Not on wasm32, where nothing may block: see [`enumerate_async`].
#[cfg(not(target_arch = "wasm32"))]
#[must_use]
pub fn enumerate() -> Vec<Adapter> {
    pollster::block_on(enumerate_async())
}

/// `enumerate` for callers that must not block. In a browser it returns the adapter that the browser chooses, without a name.
pub async fn enumerate_async() -> Vec<Adapter> {
    if Instance::enabled_backend_features().is_empty() {
        return Vec::new();
    }
    let mut adapters = instance().enumerate_adapters(Backends::all()).await;
    adapters.sort_by_key(|adapter| rank(&adapter.get_info()));
    adapters
}

/// Returns the instance of all adapters that this crate finds.
#[cfg(not(target_arch = "wasm32"))]
fn instance() -> &'static Instance {
    static INSTANCE: OnceLock<Instance> = OnceLock::new();
    INSTANCE.get_or_init(new_instance)
}

/// In a browser an instance cannot be shared between threads, and all instances are the same.
#[cfg(target_arch = "wasm32")]
fn instance() -> Instance {
    new_instance()
}

fn new_instance() -> Instance {
    Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// Returns the place of an adapter: first by its kind, then by its backend.
fn rank(info: &AdapterInfo) -> (u8, u8) {
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    };
    let backend = match info.backend {
        Backend::Vulkan | Backend::Metal | Backend::Dx12 | Backend::BrowserWebGpu => 0,
        Backend::Gl | Backend::Noop => 1,
    };
    (kind, backend)
}

/// Returns whether an adapter computes on the CPU. The [CPU path](crate::cpu) is about twenty times as fast.
#[must_use]
pub fn is_software(info: &AdapterInfo) -> bool {
    info.device_type == DeviceType::Cpu
}

/// Opens an adapter with its own limits.
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
    // wgpu 30 panics if the driver has no memory for wgpu's internal pipelines.
    let request = panics::catch(|| adapter.request_device(&descriptor))
        .map_err(|_| no_device("wgpu panicked while it opened the device".to_owned()))?;
    request.await.map_err(|error| no_device(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_decides_and_then_the_backend() {
        use Backend::{Dx12, Gl, Metal, Vulkan};
        use DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, Other};
        let listed = [
            (Cpu, Gl),
            (Cpu, Vulkan),
            (Other, Gl),
            (IntegratedGpu, Gl),
            (DiscreteGpu, Gl),
            (IntegratedGpu, Metal),
            (DiscreteGpu, Dx12),
            (DiscreteGpu, Vulkan),
        ];
        let mut sorted = listed;
        sorted.sort_by_key(|&(device_type, backend)| rank(&AdapterInfo::new(device_type, backend)));
        let expected = [
            // In the order of the list, which is wgpu's.
            (DiscreteGpu, Dx12),
            (DiscreteGpu, Vulkan),
            (DiscreteGpu, Gl),
            (IntegratedGpu, Metal),
            (IntegratedGpu, Gl),
            (Other, Gl),
            (Cpu, Vulkan),
            (Cpu, Gl),
        ];
        assert_eq!(sorted, expected);
    }
}
