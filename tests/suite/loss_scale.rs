//! Loss scales: undone by a clip, and adjusted from its records.

use gradclip::loss_scale::{LossScale, ScaleUpdate};
use gradclip::{Clip, ClipPlan, NonFinite, ReadBackQueue};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::numbers::bits;
use crate::properties::{Gradients, on_both_paths};
use crate::read_back_queue::Training;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// A power of two is undone exactly.
    #[test]
    fn a_loss_scale_is_undone(gradients in vec(vec(-8.0_f32..8.0, 0..50), 0..5), max_norm in 0.01_f32..20.0) {
        let scaled: Gradients = gradients.iter().map(|some| some.iter().map(|g| g * 1024.0).collect()).collect();
        let clip = Clip::by_global_norm(max_norm);
        let plain = on_both_paths(&gradients, clip);
        for (plain, unscaled) in plain.into_iter().zip(on_both_paths(&scaled, clip.loss_scale(1024.0))) {
            prop_assert_eq!(plain.record().total_norm, unscaled.record().total_norm);
            prop_assert_eq!(plain.record().clip_coef, unscaled.record().clip_coef);
            prop_assert_eq!(bits(&plain.gradients), bits(&unscaled.gradients));
        }
    }
}

/// Returns the scale after each step, as `torch.amp.GradScaler` computes it in `_amp_update_scale_`.
fn grad_scaler(overflows: &[bool], mut scale: f32, growth: f32, backoff: f32, interval: u32) -> Vec<f32> {
    let mut tracker = 0;
    let mut update = |&overflows: &bool| {
        if overflows {
            scale *= backoff;
            tracker = 0;
        } else {
            tracker += 1;
            if tracker == interval {
                scale *= growth;
                tracker = 0;
            }
        }
        scale
    };
    overflows.iter().map(&mut update).collect()
}

/// The training loop of the guide. The host gets the record of every step even if it is busy for many steps, also after
/// an overflow.
#[test]
fn a_loss_scale_follows_grad_scaler_even_if_the_host_polls_late() {
    let overflows: Vec<bool> = (0..200).map(|step| [3, 4, 40, 90, 91, 92, 150].contains(&step)).collect();
    let expected = grad_scaler(&overflows, 1024.0, 2.0, 0.5, 10);
    assert!(expected.iter().any(|&scale| scale > 1024.0) && expected.iter().any(|&scale| scale < 512.0));
    for polls_every in [1, 3, 64, 1000] {
        let mut loss_scale = LossScale::new(1024.0).unwrap().growth(2.0, 10).unwrap();
        let clip = Clip::by_global_norm(1.0).loss_scale(loss_scale.scale()).non_finite(NonFinite::Skip);
        let training = Training::new(1, clip);
        let (mut log, mut scales, mut heard) = (ReadBackQueue::new(), Vec::new(), Vec::new());
        let mut hear = |records: Vec<(u64, gradclip::ClipRecord)>, loss_scale: &mut LossScale| {
            for (step, record) in records {
                if loss_scale.update(&record) == ScaleUpdate::Shrunk {
                    heard.push(step);
                }
                scales.push(loss_scale.scale());
            }
        };
        for (step, &overflows) in (0..).zip(&overflows) {
            training.plan.set_loss_scale(&training.gpu.queue, loss_scale.scale()).unwrap();
            let gradient = if overflows { f32::INFINITY } else { 1.0 };
            log.push(step, training.step(&[gradient], ClipPlan::read_back));
            if step % polls_every == 0 {
                hear(log.arrived().unwrap(), &mut loss_scale);
            }
        }
        hear(log.wait().unwrap(), &mut loss_scale);
        assert_eq!(heard, [3, 4, 40, 90, 91, 92, 150]);
        assert_eq!(scales, expected, "polled every {polls_every} steps");
    }
}
