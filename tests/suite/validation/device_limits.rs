//! Limits of a device.

use gradclip::{Clip, Clipper, Error, wgpu};

use super::{NORM, Noop, f32s};
use crate::common::gpu::least_limits;

#[test]
fn a_device_must_allow_the_smallest_kernel() {
    type Lower = fn(&mut wgpu::Limits, u64);
    fn u32(limit: u64) -> u32 {
        limit.try_into().unwrap()
    }
    let rows: [(&str, u64, Lower); 10] = [
        ("max_compute_workgroup_size_x", 256, |limits, to| limits.max_compute_workgroup_size_x = u32(to)),
        ("max_compute_invocations_per_workgroup", 256, |limits, to| {
            limits.max_compute_invocations_per_workgroup = u32(to);
        }),
        ("max_compute_workgroup_storage_size", 5120, |limits, to| {
            limits.max_compute_workgroup_storage_size = u32(to);
        }),
        ("max_compute_workgroups_per_dimension", 256, |limits, to| {
            limits.max_compute_workgroups_per_dimension = u32(to);
        }),
        ("max_storage_buffers_per_shader_stage", 4, |limits, to| {
            limits.max_storage_buffers_per_shader_stage = u32(to);
        }),
        ("max_buffers_and_acceleration_structures_per_shader_stage", 5, |limits, to| {
            limits.max_buffers_and_acceleration_structures_per_shader_stage = u32(to);
        }),
        ("max_bindings_per_bind_group", 5, |limits, to| limits.max_bindings_per_bind_group = u32(to)),
        ("max_uniform_buffers_per_shader_stage", 1, |limits, to| {
            limits.max_uniform_buffers_per_shader_stage = u32(to);
        }),
        ("max_storage_buffer_binding_size", 4 * 65536 + 256, |limits, to| {
            limits.max_storage_buffer_binding_size = to;
        }),
        ("max_buffer_size", 4 * 65536 + 256, |limits, to| limits.max_buffer_size = to),
    ];
    for (name, needed, lower) in rows {
        let mut limits = wgpu::Limits::default();
        lower(&mut limits, needed);
        let enough = Noop::new(limits.clone());
        let gradients = [enough.storage(4 * 65536), enough.storage(20)];
        for clip in [NORM, Clip::by_value(1.0)] {
            enough.clipper().prepare(&gradients.each_ref().map(f32s), clip).unwrap();
        }

        lower(&mut limits, needed - 1);
        let error = Clipper::new(&Noop::new(limits).device).unwrap_err();
        assert_eq!(error, Error::DeviceLimit { what: "clipping", name, needed, allowed: needed - 1 });
    }
}

#[test]
fn tables_must_fit_into_a_binding() {
    let noop = Noop::new(least_limits());
    let buffer = noop.storage(4 * 70_000);
    let scalars: Vec<_> = (0..70_000).map(|at| f32s(&buffer).elements(at..at + 1)).collect();
    let error = noop.clipper().prepare(&scalars, NORM).unwrap_err();
    let Error::DeviceLimit { name, needed, allowed, .. } = error else { panic!("{error:?}") };
    assert!(name.contains("max_storage_buffer_binding_size"));
    assert!(needed > allowed && allowed == least_limits().max_storage_buffer_binding_size);
}

#[test]
fn a_grid_must_hold_the_tiles() {
    // Tests the largest two-dimensional grid, and one row of tiles more. The tables fit in both cases.
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 256, ..Default::default() };
    let noop = Noop::new(limits);
    let buffer = noop.storage(4 * 256 * 257);
    let scalars = |count| (0..count).map(|at| f32s(&buffer).elements(at..at + 1)).collect::<Vec<_>>();
    let clipper = noop.clipper();
    let plan = clipper.prepare(&scalars(256 * 256), NORM).unwrap();
    let mut encoder = noop.encoder();
    plan.encode(&mut encoder);
    noop.queue.submit([encoder.finish()]);
    match clipper.prepare(&scalars(256 * 257), NORM) {
        Err(error) => assert!(matches!(error, Error::DeviceLimit { .. }), "{error:?}"),
        Ok(plan) => {
            let mut encoder = noop.encoder();
            plan.encode(&mut encoder);
            noop.queue.submit([encoder.finish()]);
        }
    }
}

#[test]
fn arrays_of_buffers_need_features_and_a_limit() {
    let noop = Noop::new(wgpu::Limits::default());
    let Err(error) = noop.clipper().with_binding_arrays() else { panic!("the device has no such features") };
    let Error::DeviceLimit { what, name, needed, allowed } = &error else { panic!("{error:?}") };
    assert_eq!((*what, *allowed), ("a clipper with arrays of buffers", 0), "{error}");
    assert!(name.contains("max_binding_array_elements_per_shader_stage") && *needed > 1, "{error}");
    assert!(name.contains("Clipper::BINDING_ARRAYS"), "{error}");
}
