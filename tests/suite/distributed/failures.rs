//! A rank that fails takes part, and all ranks get the same error.

use std::sync::atomic::{AtomicUsize, Ordering};

use gradclip::distributed::{AllReduce, JoinError, ShardedClip, Share, SingleProcess};
use gradclip::{Clip, ClipRecord, DType, Error, Gradient, NonFinite, NormType, cpu, wgpu};

use super::ranks::ranks;
use crate::{gpu, gpu_with};

const CLIP: Clip = Clip::by_global_norm(1.0);

/// The first step fails before the ranks have compared their options, the third after that.
#[test]
fn a_failure_on_one_rank_is_an_error_on_all_and_the_next_step_works() {
    for norm_type in [NormType::L2, NormType::Inf, NormType::P(9.0)] {
        for bad in 0..3 {
            let results = ranks(3, bad, |rank| {
                let mut clip = ShardedClip::new(&[CLIP.norm_type(norm_type).count_steps()]).unwrap();
                let mut outcomes = Vec::new();
                for step in 0..4 {
                    let share = clip.measure_on_cpu(&[cpu::Gradient::f32(&mut [3.0, -4.0])]);
                    let failed = step % 2 == 0 && rank.rank() == bad;
                    let share = if failed { Err(Error::DeviceLost) } else { share };
                    outcomes.push(clip.join([share], rank));
                }
                (outcomes, clip.step_counts()[0].steps)
            });
            for (rank, (outcomes, steps)) in results.into_iter().enumerate() {
                let cause = (rank == bad).then(|| Box::new(Error::DeviceLost));
                let failed = JoinError::Clip(Error::RankFailed { rank: bad, cause });
                for (step, outcome) in outcomes.into_iter().enumerate() {
                    if step % 2 == 0 {
                        assert_eq!(outcome.unwrap_err(), failed);
                    } else {
                        assert!(outcome.unwrap()[0].clipped());
                    }
                }
                assert_eq!(steps, 2, "failed steps are not counted");
            }
        }
    }
}

#[test]
fn the_first_of_several_failures_is_named() {
    let errors = ranks(4, 3, |rank| {
        let mut clip = ShardedClip::new(&[CLIP]).unwrap();
        let failed = rank.rank() == 1 || rank.rank() == 3;
        let share = if failed { Err(Error::NotSubmitted) } else { Ok(Share::default()) };
        clip.join([share], rank).unwrap_err().to_string()
    });
    let message = "rank 1 could not measure its gradients";
    assert_eq!([&errors[0], &errors[2], &errors[3]], [message; 3]);
    assert_eq!(errors[1], format!("{message}: {}", Error::NotSubmitted));
}

/// The device of one rank is destroyed. Its gradients cannot be measured, and those of the other rank stay as they are.
#[test]
fn a_lost_device_ends_the_step_of_all_ranks() {
    let results = ranks(2, 0, |rank| {
        let is_lost = rank.rank() == 1;
        let own = gpu_with(|_| {});
        let buffer = own.buffer(&[3.0, 4.0]);
        let mut clip = ShardedClip::new(&[CLIP]).unwrap();
        let plan = clip.prepare(&own.clipper, &[Gradient::new(&buffer, DType::F32)]).unwrap();
        assert_eq!(clip.clip(&plan, &own.queue, rank).unwrap()[0].total_norm, 50.0_f32.sqrt());
        let before = own.read::<f32>(&buffer);
        if is_lost {
            own.device.destroy();
        }
        let error = clip.clip(&plan, &own.queue, rank).unwrap_err();
        assert!(is_lost || own.read::<f32>(&buffer) == before);
        error
    });
    assert_eq!(results[0], JoinError::Clip(Error::RankFailed { rank: 1, cause: None }));
    assert_eq!(
        results[1],
        JoinError::Clip(Error::RankFailed { rank: 1, cause: Some(Box::new(Error::DeviceLost)) })
    );
}

/// The error of the policy is the same on all ranks. The record tells the optimizers to skip the step.
#[test]
fn non_finite_gradients_are_an_error_on_all_ranks() {
    let results = ranks(3, 2, |rank| {
        let bad = if rank.rank() == 2 { f32::NAN } else { 1.0 };
        let buffer = gpu().buffer(&[3.0, bad]);
        let mut clip = ShardedClip::new(&[CLIP.non_finite(NonFinite::Error).count_steps()]).unwrap();
        let plan = clip.prepare(&gpu().clipper, &[Gradient::f32(&buffer).label("head")]).unwrap();
        let error = clip.clip(&plan, &gpu().queue, rank).unwrap_err();
        let written = gpu().read::<ClipRecord>(&as_records(plan.record_buffer()))[0];
        assert!(written.skip() && clip.records()[0].skip());
        assert_eq!(gpu().read::<f32>(&buffer)[0], 3.0);
        assert_eq!((clip.step_counts()[0].steps, clip.step_counts()[0].non_finite), (1, 1));
        error.to_string()
    });
    assert!(
        results[0].starts_with("rank 2: the gradients were left unclipped: gradient 0 is the first"),
        "{}",
        results[0]
    );
    assert!(results.iter().all(|error| *error == results[0]));
}

/// Copies the record at the start of a buffer.
fn as_records(records: &wgpu::Buffer) -> wgpu::Buffer {
    let copy = gpu().device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: size_of::<ClipRecord>() as u64,
        usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu().submit(|encoder| encoder.copy_buffer_to_buffer(records, 0, &copy, 0, copy.size()));
    copy
}

/// An all-reduce that fails at a call.
struct Broken {
    calls: AtomicUsize,
    at: usize,
}

impl AllReduce for Broken {
    type Error = &'static str;

    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        2
    }

    fn sum(&mut self, _: &mut [f64]) -> Result<(), &'static str> {
        if self.calls.fetch_add(1, Ordering::Relaxed) == self.at { Err("the link is down") } else { Ok(()) }
    }

    fn max(&mut self, values: &mut [f64]) -> Result<(), &'static str> {
        self.sum(values)
    }
}

#[test]
fn an_error_of_the_library_is_returned_and_changes_nothing() {
    for at in 0..4 {
        let mut clip = ShardedClip::new(&[CLIP.norm_type(NormType::P(9.0)).count_steps()]).unwrap();
        let mut gradient = [3.0, 4.0];
        let gradients = [cpu::Gradient::f32(&mut gradient)];
        let share = clip.measure_on_cpu(&gradients);
        let mut broken = Broken { calls: AtomicUsize::new(0), at };
        let error = clip.join([share.clone()], &mut broken).unwrap_err();
        assert_eq!(error, JoinError::AllReduce("the link is down"));
        assert_eq!(error.to_string(), "the all-reduce of a sharded clip failed: the link is down");
        assert_eq!(clip.step_counts(), []);
        clip.join([share], &mut SingleProcess).unwrap();
    }
}

#[test]
fn clips_that_cannot_be_sharded_are_errors() {
    let error = |clip: Clip| ShardedClip::new(&[clip]).unwrap_err().to_string();
    assert_eq!(error(Clip::by_value(1.0)), "a sharded clip needs a norm, but a clip by value has none");
    let refused = [
        (Clip::by_supplied_norm(1.0), "Clip::by_supplied_norm: it measures the norm itself"),
        (Clip::by_parameter_norm(0.01, 1e-3), "Clip::by_parameter_norm: the parameters are not measured"),
        (
            CLIP.norm_type(NormType::P(0.0)),
            "the 0-norm: it counts gradients, and a gradient may have several shards",
        ),
    ];
    for (clip, message) in refused {
        assert_eq!(error(clip), format!("a sharded clip cannot have {message}"));
    }
    assert!(matches!(ShardedClip::new(&[]), Err(Error::NoClip)));
    let clip = ShardedClip::new(&[Clip::by_norm(1.0)]).unwrap();
    let buffer = gpu().buffer(&[1.0; 4]);
    let error = clip.prepare(&gpu().clipper, &[Gradient::f32(&buffer).rows(2).label("w")]).unwrap_err();
    let message = "gradient 0 (\"w\") has rows or columns with norms of their own, but a sharded clip has one norm for each gradient";
    assert_eq!(error.to_string(), message);
    let mut elements = [1.0; 4];
    let gradients = [cpu::Gradient::f32(&mut elements).columns(2).label("w")];
    assert_eq!(clip.measure_on_cpu(&gradients).unwrap_err().to_string(), message);
    // With a global norm, rows have no norms of their own.
    let clip = ShardedClip::new(&[CLIP]).unwrap();
    assert!(clip.prepare(&gpu().clipper, &[Gradient::f32(&buffer).rows(2)]).is_ok());
}

#[test]
fn records_of_another_clip_are_refused() {
    let clip = ShardedClip::new(&[CLIP]).unwrap();
    let buffer = gpu().buffer(&[1.0; 4]);
    let plan = clip.prepare(&gpu().clipper, &[Gradient::f32(&buffer)]).unwrap();
    let refused = Error::ShardCount { what: "records", given: 2, needed: 1 };
    let records = [ClipRecord::UNCLIPPED; 2];
    assert_eq!(plan.scale(&gpu().queue, &records), Err(refused.clone()));
    assert_eq!(clip.scale_on_cpu(&mut [], &records), Err(refused));
}

/// A share of another shape is an error of the rank that brings it.
#[test]
fn a_share_of_another_shape_is_an_error_of_its_rank() {
    let errors = ranks(2, 0, |rank| {
        let mut clip = ShardedClip::new(&[Clip::by_norm(1.0)]).unwrap();
        let mut elements = [[1.0]; 3];
        let share = |count: usize, elements: &mut [[f32; 1]], clip: &ShardedClip| {
            let gradients: Vec<_> =
                elements[..count].iter_mut().map(|elements| cpu::Gradient::f32(elements)).collect();
            clip.measure_on_cpu(&gradients)
        };
        let first = share(2, &mut elements, &clip);
        clip.join([first], rank).unwrap();
        let count = if rank.rank() == 1 { 3 } else { 2 };
        let second = share(count, &mut elements, &clip);
        clip.join([second], rank).unwrap_err()
    });
    let cause = Error::ShardCount { what: "records", given: 3, needed: 2 };
    assert_eq!(errors[0], JoinError::Clip(Error::RankFailed { rank: 1, cause: None }));
    assert_eq!(errors[1], JoinError::Clip(Error::RankFailed { rank: 1, cause: Some(Box::new(cause)) }));
}
