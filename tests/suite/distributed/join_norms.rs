//! The joint norm of shards.

use gradclip::distributed::join_norms;
use gradclip::{Clip, ClipRecord, DType, Gradient, NonFinite, NormType, cpu};

use crate::common::numbers::noise;
use crate::gpu;

const NORM: Clip = Clip::by_global_norm(1.0);

/// Each shard has its own plan. One shard is empty.
#[test]
fn the_joint_norm_is_the_norm_of_all_shards() {
    let gpu = gpu();
    let shards = [noise(1, 5000), noise(2, 77), Vec::new(), vec![-9.5; 33]];
    let buffers = shards.each_ref().map(|shard| gpu.buffer(shard));
    let powers = [3.0, 0.5, 0.0, -1.0, f32::NEG_INFINITY].map(NormType::P);
    for norm_type in [NormType::L1, NormType::L2, NormType::Inf].into_iter().chain(powers) {
        let measure = NORM.norm_type(norm_type).coefficient_only();
        let records = buffers.each_ref().map(|buffer| {
            gpu.record(&gpu.clipper.prepare(&[Gradient::new(buffer, DType::F32)], measure).unwrap())
        });
        let gradients = buffers.each_ref().map(|buffer| Gradient::new(buffer, DType::F32));
        let whole = gpu.record(&gpu.clipper.prepare(&gradients, measure).unwrap());
        let joined = join_norms(&records, norm_type);
        let error = joined / whole.total_norm - 1.0;
        assert!(error.abs() <= 3e-6, "{joined}, not {} for {norm_type:?}", whole.total_norm);
    }
}

/// If one shard has failed, no shard is clipped.
#[test]
fn a_failed_shard_makes_the_joint_norm_non_finite() {
    let gpu = gpu();
    let buffer = gpu.buffer(&[3.0, 4.0]);
    let gradients = [Gradient::new(&buffer, DType::F32)];
    let own = gpu.record(&gpu.clipper.prepare(&gradients, NORM.coefficient_only()).unwrap());
    let clip = Clip::by_supplied_norm(1.0).non_finite(NonFinite::Skip);
    let plan = gpu.clipper.prepare(&gradients, clip).unwrap();
    for parts in [[own, ClipRecord::FAILED], [ClipRecord::FAILED, own]] {
        let total = join_norms(&parts, NormType::L2);
        plan.supply_norm(&gpu.queue, total).unwrap();
        assert!(gpu.record(&plan).skip());
        assert_eq!(gpu.read::<f32>(&buffer), [3.0, 4.0]);
        let record = cpu::clip_with_norm(&mut [cpu::Gradient::f32(&mut [3.0])], clip, total).unwrap();
        assert!(record.skip());
    }
}

/// Norms beyond f32, which records hold as significand and exponent, may have a joint norm within f32.
#[test]
fn shards_beyond_f32_are_joined() {
    let gpu = gpu();
    let buffers = [gpu.buffer(&[3e38; 4]), gpu.buffer(&[2.0])];
    let records = buffers.each_ref().map(|buffer| {
        let plan = gpu.clipper.prepare(&[Gradient::new(buffer, DType::F32)], NORM.coefficient_only());
        gpu.record(&plan.unwrap())
    });
    assert_eq!(records[0].total_norm, f32::INFINITY);
    // For p = -∞ the smallest norm is the joint norm.
    assert_eq!(join_norms(&records, NormType::P(f32::NEG_INFINITY)), 2.0);
    assert_eq!(join_norms(&records, NormType::L2), f32::INFINITY);
    let significand = f64::from(records[0].norm_significand) * f64::from(records[0].norm_exponent).exp2();
    assert!((significand / 6e38 - 1.0).abs() < 1e-6, "{significand:e}");
}
