//! Plans in the caller's encoder.

use gradclip::{Clip, Clipper, DType, Error, Gradient, ReadBack, cpu};

use crate::common::numbers::{bits, noise, scaled, slices};
use crate::gpu;

#[test]
fn a_norm_pass_and_a_scale_pass_make_a_clip() {
    let gpu = gpu();
    let gradients = vec![noise(1, 5000), noise(2, 33)];
    let clip = Clip::by_global_norm(0.5);
    for clip in [clip, clip.coefficient_only()] {
        let placed = gpu.place_packed(&gradients);
        let plan = gpu.clipper.prepare(&placed.gradients(), clip).unwrap();

        // Before the first norm pass the coefficient is 1, and there is no record.
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

/// Commands take effect in their order: one plan twice, then two others on the same gradients.
#[test]
fn plans_share_an_encoder() {
    let gpu = gpu();
    let gradients = vec![noise(1, 5000), noise(2, 33)];
    let placed = gpu.place_packed(&gradients);
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

/// A plan keeps its buffers and the state of its clipper alive.
#[test]
fn a_plan_outlives_its_buffers_and_its_clipper() {
    let gpu = gpu();
    let plan = {
        let buffer = gpu.buffer(&[3.0, 4.0]);
        let clipper = Clipper::new(&gpu.device).unwrap();
        clipper.prepare(&[Gradient::new(&buffer, DType::F32)], Clip::by_global_norm(1.0)).unwrap()
    };
    assert_eq!(gpu.record(&plan).total_norm, 5.0);
}
