//! What a caller does with an encoder.

use gradclip::{CLIP_RECORD_WGSL, Clip, Clipper, DType, Error, Gradient, ReadBack, cpu, wgpu};

use crate::common::{Gpu, bits, noise};
use crate::gpu;
use crate::words::{Placed, Placement, slices};

fn place(gpu: &Gpu, gradients: &[Vec<f32>]) -> Placed {
    let lens: Vec<_> = gradients.iter().map(Vec::len).collect();
    gpu.place(&Placement::packed(&lens), gradients)
}

fn scaled(gradients: &[Vec<f32>], coef: f32) -> Vec<Vec<f32>> {
    gradients.iter().map(|gradient| gradient.iter().map(|g| g * coef).collect()).collect()
}

#[test]
fn the_halves_are_the_whole() {
    let gpu = gpu();
    let gradients = vec![noise(1, 5000), noise(2, 33)];
    let clip = Clip::by_global_norm(0.5);
    for clip in [clip, clip.coefficient_only()] {
        let placed = place(gpu, &gradients);
        let plan = gpu.clipper.prepare(&placed.gradients(), clip).unwrap();

        // Before anything has been measured the coefficient is 1, and there is no record.
        let ticket = gpu.submit(|encoder| {
            plan.encode_scale(encoder);
            plan.read_back(encoder)
        });
        assert_eq!(ticket.wait(), Err(Error::NothingMeasured));
        assert_eq!(bits(&placed.read(gpu)), bits(&gradients));

        let ticket = gpu.submit(|encoder| {
            plan.encode_norm(encoder);
            plan.read_back(encoder)
        });
        let record = ticket.wait().unwrap();
        assert!(record.clipped());
        assert_eq!(bits(&placed.read(gpu)), bits(&gradients));

        gpu.submit(|encoder| plan.encode_scale(encoder));
        assert_eq!(bits(&placed.read(gpu)), bits(&scaled(&gradients, record.clip_coef)));
    }
}

#[test]
fn a_clip_by_value_has_no_first_half() {
    let gpu = gpu();
    let gradients = vec![noise(1, 77)];
    let placed = place(gpu, &gradients);
    let plan = gpu.clipper.prepare(&placed.gradients(), Clip::by_value(0.0)).unwrap();
    gpu.submit(|encoder| plan.encode_norm(encoder));
    assert_eq!(bits(&placed.read(gpu)), bits(&gradients));
    gpu.submit(|encoder| plan.encode_scale(encoder));
    assert!(placed.read(gpu).concat().iter().all(|&g| g == 0.0));
}

/// Commands take effect in their order: twice the same plan, then another on the same gradients.
#[test]
fn plans_share_an_encoder() {
    let gpu = gpu();
    let gradients = vec![noise(1, 5000), noise(2, 33)];
    let placed = place(gpu, &gradients);
    let by_norm = gpu.clipper.prepare(&placed.gradients(), Clip::by_global_norm(8.0)).unwrap();
    let by_value = gpu.clipper.prepare(&placed.gradients(), Clip::by_value(0.125)).unwrap();
    let again = gpu.clipper.prepare(&placed.gradients(), Clip::by_global_norm(4.0)).unwrap();
    let tickets = gpu.submit(|encoder| {
        let mut tickets = Vec::new();
        for plan in [&by_norm, &by_norm, &by_value, &again] {
            plan.encode(encoder);
            tickets.extend(plan.record_buffer().map(|_| plan.read_back(encoder)));
        }
        tickets
    });
    let [first, second, third] = tickets.try_into().expect("three plans measure");

    let clipped = |gradients: &[Vec<f32>], max_norm, ticket: ReadBack| {
        let (record, on_cpu) = (ticket.wait().unwrap(), cpu::measure(&slices(gradients), max_norm).unwrap());
        let error = record.total_norm / on_cpu.total_norm - 1.0;
        assert!(error.abs() < 1e-6, "{record:?}, not {on_cpu:?}");
        scaled(gradients, record.clip_coef)
    };
    let once = clipped(&gradients, 8.0, first);
    let mut expected = clipped(&once, 8.0, second);
    expected.iter_mut().flatten().for_each(|g| *g = g.clamp(-0.125, 0.125));
    let expected = clipped(&expected, 4.0, third);
    assert_eq!(bits(&placed.read(gpu)), bits(&expected));
}

/// A plan keeps what it needs: the buffers, and everything of its clipper.
#[test]
fn a_plan_outlives_what_it_was_made_from() {
    let gpu = gpu();
    let plan = {
        let buffer = gpu.buffer(&[3.0, 4.0]);
        let clipper = Clipper::new(&gpu.device).unwrap();
        clipper.prepare(&[Gradient::new(&buffer, DType::F32)], Clip::by_global_norm(1.0)).unwrap()
    };
    let ticket = gpu.submit(|encoder| {
        plan.encode(encoder);
        plan.read_back(encoder)
    });
    assert_eq!(ticket.wait().unwrap().total_norm, 5.0);
}

/// An optimizer's shader that binds the record, in the encoder that writes it.
#[test]
fn a_shader_reads_the_record() {
    const SHADER: &str = "
        @group(0) @binding(0) var<uniform> record: ClipRecord;
        @group(0) @binding(1) var<storage, read_write> seen: array<f32>;
        @compute @workgroup_size(1) fn main() {
            seen[0] = record.total_norm;
            seen[1] = record.clip_coef;
            seen[2] = record.max_magnitude;
            seen[3] = select(0.0, 1.0, (record.flags & CLIP_RECORD_CLIPPED) != 0u);
            seen[4] = select(0.0, 1.0, (record.flags & CLIP_RECORD_NON_FINITE) != 0u);
        }";
    let gpu = gpu();
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl([CLIP_RECORD_WGSL, SHADER].concat().into()),
        }),
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let seen = gpu.buffer(&[-1.0; 5]);
    for (gradient, expected) in [
        ([3.0, -4.0], [5.0, 0.2, 4.0, 1.0, 0.0]),
        ([0.3, -0.4], [0.5, 1.0, 0.4, 0.0, 0.0]),
        ([f32::INFINITY, 0.0], [f32::INFINITY, 0.0, f32::INFINITY, 1.0, 1.0]),
    ] {
        let placed = place(gpu, &[gradient.to_vec()]);
        let plan =
            gpu.clipper.prepare(&placed.gradients(), Clip::by_global_norm(1.0).coefficient_only()).unwrap();
        let record = plan.record_buffer().unwrap();
        let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: record.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: seen.as_entire_binding() },
            ],
        });
        gpu.submit(|encoder| {
            plan.encode(encoder);
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &bind_group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        });
        for (seen, expected) in gpu.read::<f32>(&seen).into_iter().zip(expected) {
            assert!(seen == expected || (seen - expected).abs() < 1e-6, "{seen}, not {expected}");
        }
    }
}
