//! Stage `step_counts`: counts of steps by their outcome.

use gradclip::stats::StepCounts;
use gradclip::{Clip, DType, Gradient, cpu};

use crate::gpu;

/// Returns the gradients of a step, which are in two groups.
fn grouped(step: u16) -> [f32; 3] {
    let odd = if step % 5 == 4 { f32::NAN } else { f32::from(step) };
    [0.25 * f32::from(step), 2.0, odd]
}

#[test]
fn the_device_counts_the_steps_of_each_record() {
    let gpu = gpu();
    let buffer = gpu.writable(12);
    let gradient = |at| Gradient::new(&buffer, DType::F32).elements(at..at + 1);
    let gradients = [gradient(0), gradient(1), gradient(2).group(1)];
    for clips in [vec![Clip::by_global_norm(2.5); 2], vec![Clip::by_norm(2.5); 2]] {
        let counting: Vec<_> = clips.iter().map(|clip| clip.count_steps()).collect();
        let plan = gpu.clipper.prepare_groups(&gradients, &counting).unwrap();
        let without = gpu.clipper.prepare_groups(&gradients, &clips).unwrap();
        assert_eq!(plan.dispatches(), without.dispatches() + 1);
        let mut on_cpu = cpu::ClipPlan::new(&clips).unwrap();
        let mut by_hand = vec![StepCounts::default(); plan.records()];
        for step in 0..17 {
            let mut numbers = grouped(step);
            gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&numbers));
            for (counts, record) in by_hand.iter_mut().zip(gpu.records(&plan)) {
                counts.add(&record);
            }
            let [a, b, c] = numbers.each_mut().map(|number| cpu::Gradient::f32(std::slice::from_mut(number)));
            on_cpu.clip(&mut [a, b, c.group(1)]).unwrap();
        }
        let counts = gpu.submit(|encoder| plan.read_back_step_counts(encoder)).wait().unwrap();
        assert_eq!(counts, by_hand);
        assert_eq!(counts, on_cpu.step_counts());
        assert_eq!((counts[0].steps, counts.last().unwrap().non_finite), (17, 3));

        plan.set_step_counts(&gpu.queue, &vec![StepCounts::default(); plan.records()]).unwrap();
        let counts = gpu.submit(|encoder| {
            plan.encode_norm(encoder);
            plan.read_back_step_counts(encoder)
        });
        assert_eq!(counts.wait().unwrap()[0].steps, 1);
    }
}
