//! Plans in the caller's compute pass.

use gradclip::wgpu::{self, Features};
use gradclip::{Clip, Gradient};

use crate::common::gpu::{Gpu, adapters, least_limits};
use crate::common::numbers::{bits, noise};
use crate::common::placement::{Placement, extents};

/// Uses a device with few bindings, so that a plan has several dispatches of each stage.
#[test]
fn a_pass_of_the_caller_gives_the_same_bits() {
    let gpu = Gpu::open(&adapters()[0], least_limits());
    let gradients: Vec<_> =
        [5000, 33, 70_001, 4].iter().zip(1..).map(|(&len, seed)| noise(seed, len)).collect();
    let placement = Placement::separate(&extents(&gradients));
    let by_norm = Clip::by_global_norm(0.5);
    for clip in [by_norm, by_norm.coefficient_only(), Clip::by_norm(0.1), Clip::by_value(0.25)] {
        let run = |encode: &dyn Fn(&gradclip::ClipPlan, &mut wgpu::CommandEncoder)| {
            let placed = gpu.place(&placement, &gradients);
            let plan = gpu.clipper.prepare(&placed.gradients(), clip).unwrap();
            assert!(plan.dispatches() > 1);
            let ticket = gpu.submit(|encoder| {
                encode(&plan, encoder);
                plan.record_buffer().map(|_| plan.read_back_all(encoder))
            });
            (ticket.map(|ticket| ticket.wait().unwrap()), bits(&placed.read(&gpu)))
        };
        let whole = run(&|plan, encoder| plan.encode(encoder));
        let in_pass = run(&|plan, encoder| {
            plan.encode_in_pass(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
        });
        assert_eq!(whole, in_pass, "{clip:?}");
        let halves = |plan: &gradclip::ClipPlan, encoder: &mut wgpu::CommandEncoder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            plan.encode_norm_in_pass(&mut pass);
            plan.encode_scale_in_pass(&mut pass);
        };
        let separate = run(&|plan, encoder| {
            plan.encode_norm(encoder);
            plan.encode_scale(encoder);
        });
        assert_eq!(run(&halves), separate, "{clip:?}");
    }
}

#[test]
fn a_pass_of_the_caller_has_timestamps() {
    let adapter = &adapters()[0];
    if !adapter.features().contains(Features::TIMESTAMP_QUERY) {
        println!("skipped: the adapter has no timestamps");
        return;
    }
    let gpu = Gpu::open_with(adapter, wgpu::Limits::default(), Features::TIMESTAMP_QUERY);
    let gradient = gpu.buffer_of(&noise(1, 100_000));
    let plan = gpu.clipper.prepare(&[Gradient::f32(&gradient)], Clip::by_global_norm(0.5)).unwrap();
    let query_set = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
        label: None,
        ty: wgpu::QueryType::Timestamp,
        count: 2,
    });
    let times = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    gpu.submit(|encoder| {
        let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
            query_set: &query_set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
        plan.encode_in_pass(&mut encoder.begin_compute_pass(&descriptor));
        encoder.resolve_query_set(&query_set, 0..2, &times, 0);
    });
    let times: Vec<u64> = gpu.read(&times);
    assert!(times[1] > times[0], "{times:?}");
}
