//! The caller's pipeline caches.

use gradclip::adapters::is_software;
use gradclip::wgpu::{self, Features};
use gradclip::{Clip, Clipper, Error, Gradient};

use crate::common::gpu::{Gpu, adapters};

/// The cache stores kernels, and a second device starts from its data. The cache of a software adapter may stay empty.
#[test]
fn kernels_are_stored_in_a_pipeline_cache() {
    let adapter = &adapters()[0];
    if !adapter.features().contains(Features::PIPELINE_CACHE) {
        println!("skipped: the adapter has no pipeline caches");
        return;
    }
    let open = |data: Option<&[u8]>| {
        let gpu = Gpu::open_with(adapter, wgpu::Limits::default(), Features::PIPELINE_CACHE);
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
        #[expect(unsafe_code, reason = "wgpu cannot check the data of a cache")]
        // SAFETY: the data, if there is any, comes from a cache of the same adapter.
        let cache = unsafe { gpu.device.create_pipeline_cache(&descriptor) };
        let clipper = Clipper::with_pipeline_cache(&gpu.device, &cache).unwrap();
        (Gpu { clipper, ..gpu }, cache)
    };
    let clip = |gpu: &Gpu| {
        let gradient = gpu.buffer_of(&[3.0_f32, 4.0]);
        let plan = gpu.clipper.prepare(&[Gradient::f32(&gradient)], Clip::by_global_norm(1.0)).unwrap();
        assert_eq!(gpu.record(&plan).total_norm, 5.0);
        assert!(gpu.read::<f32>(&gradient)[0] < 0.61);
    };
    let (first, cache) = open(None);
    let empty = cache.get_data().map_or(0, |data| data.len());
    clip(&first);
    let data = cache.get_data().expect("a cache with data");
    assert!(
        data.len() > empty || is_software(&adapter.get_info()),
        "{empty} bytes before, {} after",
        data.len()
    );
    clip(&open(Some(&data)).0);

    // Another device's cache is an error, which shows that kernels are compiled with the given cache.
    let (second, _) = open(None);
    let clipper = Clipper::with_pipeline_cache(&second.device, &cache).unwrap();
    let gradient = second.buffer_of(&[3.0_f32, 4.0]);
    let error = clipper.prepare(&[Gradient::f32(&gradient)], Clip::by_global_norm(1.0)).unwrap_err();
    assert!(matches!(error, Error::BufferRejected { gradient: None, .. }), "{error}");
}
