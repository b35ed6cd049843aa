//! Records of each gradient by itself, and the newest record of many steps.

use gradclip::{
    Clip, ClipRecord, DType, Error, Gradient, NonFinite, NormType, ReadBack, Recent, cpu, reference, wgpu,
};

use crate::common::{Gpu, noise};
use crate::gpu;
use crate::words::{Placed, Placement};

const LENS: [usize; 6] = [5000, 0, 1, 33, 70_000, 4096];

fn placed(gpu: &Gpu, gradients: &[Vec<f32>]) -> Placed {
    gpu.place(&Placement::packed(&gradients.iter().map(Vec::len).collect::<Vec<_>>()), gradients)
}

fn gradients() -> Vec<Vec<f32>> {
    LENS.iter().zip(0..).map(|(&len, seed)| noise(seed, len)).collect()
}

/// The records of each gradient that a plan of this clip leaves, and that of all of them.
fn measured(gradients: &[Vec<f32>], clip: Clip) -> (Vec<ClipRecord>, ClipRecord) {
    let gpu = gpu();
    let placed = placed(gpu, gradients);
    let plan = gpu.clipper.prepare(&placed.gradients(), clip).unwrap();
    assert!(plan.tensor_record_buffer().is_some());
    let tickets = gpu.submit(|encoder| {
        plan.encode(encoder);
        (plan.read_back_tensors(encoder), plan.read_back(encoder))
    });
    (tickets.0.wait().unwrap(), tickets.1.wait().unwrap())
}

#[test]
fn each_gradient_has_its_norm_besides() {
    let gradients = gradients();
    for norm_type in [NormType::L2, NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(0.0)] {
        let clip = Clip::by_global_norm(1.0).norm_type(norm_type);
        let (tensors, all) = measured(&gradients, clip.tensor_norms());
        assert_eq!(tensors.len(), gradients.len());

        let mut copies = gradients.clone();
        let copies: Vec<_> = copies.iter_mut().map(|copy| cpu::Gradient::f32(copy)).collect();
        let stats = cpu::tensor_stats(&copies, clip).unwrap();
        for (index, (record, stats)) in tensors.iter().zip(&stats).enumerate() {
            let close = (record.total_norm - stats.norm).abs() <= 3e-6 * stats.norm;
            assert!(close, "{norm_type:?}, gradient {index}: {record:?} but {stats:?}");
            assert_eq!(record.max_magnitude.to_bits(), stats.max_magnitude.to_bits(), "gradient {index}");
        }
        // What all share is what it is without them.
        assert_eq!(all, measured(&gradients, clip.tensor_norms().coefficient_only()).1);
    }
}

#[test]
fn they_tell_which_gradient_is_not_finite() {
    let mut gradients = gradients();
    gradients[3][7] = f32::INFINITY;
    gradients[4][69_999] = f32::NAN;
    let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Skip).loss_scale(4.0).tensor_norms();
    let (tensors, all) = measured(&gradients, clip);
    assert_eq!(all.first_non_finite(), Some(3));
    let named: Vec<_> = tensors.iter().map(ClipRecord::first_non_finite).collect();
    assert_eq!(named, [None, None, None, Some(3), Some(4), None]);
    let finite = tensors[0].total_norm;
    let alone = cpu::total_norm(&[&gradients[0]]) / 4.0;
    assert!((finite - alone).abs() <= 1e-6 * alone, "{finite} without the loss scale, not {alone}");
}

#[test]
fn they_are_there_where_each_is_clipped_by_itself_and_nowhere_else() {
    let gpu = gpu();
    let gradients = gradients();
    let placed = placed(gpu, &gradients);
    let plan = gpu.clipper.prepare(&placed.gradients(), Clip::by_norm(1.0)).unwrap();
    let (tensors, all) = gpu.submit(|encoder| {
        plan.encode_norm(encoder);
        (plan.read_back_tensors(encoder), plan.read_back_all(encoder))
    });
    assert_eq!(tensors.wait().unwrap(), all.wait().unwrap());

    let plan = gpu.clipper.prepare(&placed.gradients(), Clip::by_global_norm(1.0)).unwrap();
    assert!(plan.tensor_record_buffer().is_none());
    let ticket = gpu.submit(|encoder| plan.read_back_tensors(encoder));
    assert_eq!(ticket.wait(), Err(Error::NothingMeasured));
    for clip in [Clip::by_value(1.0), Clip::by_supplied_norm(1.0)] {
        let error = gpu.clipper.prepare(&placed.gradients(), clip.tensor_norms()).unwrap_err();
        assert_eq!(error, Error::NeedsNorm);
    }
}

#[test]
fn they_take_one_dispatch() {
    let gpu = gpu();
    let placed = placed(gpu, &gradients());
    let dispatches = |clip| gpu.clipper.prepare(&placed.gradients(), clip).unwrap().dispatches();
    let clip = Clip::by_global_norm(1.0);
    assert_eq!(dispatches(clip.tensor_norms()), dispatches(clip) + 1);
}

/// A step of a plan whose gradient is this number.
fn step(gpu: &Gpu, number: f32, clip: Clip) -> ReadBack {
    let buffer = gpu.buffer(&[number]);
    let plan = gpu.clipper.prepare(&[Gradient::new(&buffer, DType::F32)], clip).unwrap();
    gpu.submit(|encoder| {
        plan.encode(encoder);
        plan.read_back(encoder)
    })
}

fn finish(gpu: &Gpu) {
    // Twice: the first finds the steps done, the second their records mapped.
    for _ in 0..2 {
        gpu.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    }
}

#[test]
fn the_newest_record_comes_without_waiting() {
    let gpu = gpu();
    let mut recent = Recent::new(3);
    assert_eq!(recent.latest(), Ok(None));
    for number in 1..=9_u16 {
        recent.push(number.into(), step(gpu, number.into(), Clip::by_global_norm(1.0)));
    }
    finish(gpu);
    let (step_of, record) = recent.latest().unwrap().unwrap();
    assert_eq!((step_of, record.total_norm), (9, 9.0));
    assert_eq!(recent.latest().unwrap().unwrap().0, 9, "it stays until a newer one comes");
}

#[test]
fn an_error_is_told_once() {
    let gpu = gpu();
    let mut recent = Recent::default();
    let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Error);
    for (number, gradient) in [(0, 1.0), (1, f32::INFINITY), (2, 3.0)] {
        recent.push(number, step(gpu, gradient, clip));
    }
    finish(gpu);
    let error = Error::NonFinite { gradient: Some(0), total_norm: f32::INFINITY };
    assert_eq!(recent.latest(), Err(error));
    assert_eq!(recent.latest().unwrap().unwrap().1.total_norm, 3.0);
}

#[test]
fn of_no_gradients_there_are_no_records() {
    let gpu = gpu();
    for (clip, expected) in [(Clip::by_norm(1.0), 0), (Clip::by_rms(1.0), 0), (Clip::by_global_norm(1.0), 1)]
    {
        let plan = gpu.clipper.prepare(&[], clip).unwrap();
        let records = gpu.submit(|encoder| {
            plan.encode(encoder);
            plan.read_back_all(encoder)
        });
        assert_eq!((records.wait().unwrap().len(), plan.records()), (expected, expected), "{clip:?}");
        assert_eq!(cpu::clip_all(&mut [], clip).unwrap().len(), expected);
    }
}

#[test]
fn a_small_p_sees_what_is_far_below_the_largest() {
    let gradients = vec![vec![1e30, 2e30, 3e-30], vec![5.0, 1e-42]];
    for p in [0.1, 0.25, -0.1] {
        let clip = Clip::by_global_norm(1.0).norm_type(NormType::P(p)).tensor_norms();
        let (_, record) = measured(&gradients, clip);
        let expected = reference::norm(&[&gradients[0], &gradients[1]], NormType::P(p));
        let found = f64::from(record.norm_significand) * f64::from(record.norm_exponent).exp2();
        assert!((found - expected).abs() <= 1e-5 * expected, "p = {p}: {found:e}, not {expected:e}");
    }
}
