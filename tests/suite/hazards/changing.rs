//! Options that change from step to step, norms from elsewhere, and many records.

use gradclip::distributed::join_norms;
use gradclip::wgpu::{Buffer, CommandEncoderDescriptor};
use gradclip::{
    Clip, ClipPlan, ClipRecord, Clipper, DType, Error, Gradient, GradientId, NonFinite, NormType, cpu,
};

use crate::common::{bits, noise};
use crate::gpu;

const NORM: Clip = Clip::by_global_norm(1.0);

/// A triangle of norm 5, and one of norm 13 in a group of its own.
fn triangles() -> [Buffer; 2] {
    [[3.0, -4.0], [5.0, 12.0]].map(|triangle| gpu().buffer(&triangle))
}

fn by_groups([one, other]: &[Buffer; 2], clips: &[Clip]) -> ClipPlan {
    let gradients = [Gradient::new(one, DType::F32), Gradient::new(other, DType::F32).group(clips.len() - 1)];
    gpu().clipper.prepare_groups(&gradients, clips).unwrap()
}

/// Encodes a plan, submits, and gives its records.
fn run(plan: &ClipPlan) -> Vec<ClipRecord> {
    let ticket = gpu().submit(|encoder| {
        plan.encode(encoder);
        plan.read_back_all(encoder)
    });
    ticket.wait().unwrap()
}

fn norms(records: &[ClipRecord]) -> Vec<f32> {
    records.iter().map(|record| record.total_norm).collect()
}

fn assert_near(x: f32, expected: f32) {
    assert!((x - expected).abs() <= 1e-6 * expected.abs(), "{x}, not {expected}");
}

#[test]
fn limits_change_for_what_is_submitted_later() {
    let gpu = gpu();
    let buffers = triangles();
    let plan = by_groups(&buffers, &[NORM.coefficient_only(); 2]);
    let mut encoder = gpu.device.create_command_encoder(&CommandEncoderDescriptor::default());
    plan.encode(&mut encoder);
    let ticket = plan.read_back_all(&mut encoder);
    plan.set_max_norms(&gpu.queue, &[2.5, 26.0]).unwrap();
    gpu.queue.submit([encoder.finish()]);
    let [first, second] = ticket.wait().unwrap().try_into().unwrap();
    assert_near(first.clip_coef, 0.5);
    assert_eq!((second.clip_coef, second.clipped()), (1.0, false));

    plan.set_max_norms(&gpu.queue, &[0.0, f32::INFINITY]).unwrap();
    assert_eq!(run(&plan).iter().map(|record| record.clip_coef).collect::<Vec<_>>(), [0.0, 1.0]);
    // What is refused changes nothing.
    plan.set_max_norms(&gpu.queue, &[1.0, -1.0]).unwrap_err();
    plan.set_max_norms(&gpu.queue, &[1.0]).unwrap_err();
    assert_eq!(run(&plan)[0].clip_coef, 0.0);
}

/// The limit of a root mean square is one of each gradient, whose length remains.
#[test]
fn a_limit_of_root_mean_squares_changes() {
    let gpu = gpu();
    let gradients = [gpu.buffer(&[3.0; 16]), gpu.buffer(&[3.0; 5])];
    let gradients = gradients.each_ref().map(|buffer| Gradient::new(buffer, DType::F32));
    let plan = gpu.clipper.prepare(&gradients, Clip::by_rms(1.0).coefficient_only()).unwrap();
    for (threshold, coef) in [(1.0, 1.0 / 3.0), (1.5, 0.5), (3.5, 1.0)] {
        plan.set_max_norms(&gpu.queue, &[threshold]).unwrap();
        for record in run(&plan) {
            assert_near(record.clip_coef, coef);
        }
    }
}

#[test]
fn limits_change_within_an_encoder() {
    let gpu = gpu();
    let buffers = triangles();
    let plan = by_groups(&buffers, &[NORM.coefficient_only(); 2]);
    let limits = gpu.buffer(&[-7.0, 2.5, 6.5]);
    let tickets = gpu.submit(|encoder| {
        plan.encode(encoder);
        let first = plan.read_back_all(encoder);
        plan.copy_max_norm(encoder, 0, &limits, 4).unwrap();
        plan.encode(encoder);
        let second = plan.read_back_all(encoder);
        plan.copy_max_norm(encoder, 1, &limits, 8).unwrap();
        plan.encode(encoder);
        [first, second, plan.read_back_all(encoder)]
    });
    let expected = [[0.2, 1.0 / 13.0], [0.5, 1.0 / 13.0], [0.5, 0.5]];
    for (ticket, expected) in tickets.into_iter().zip(expected) {
        for (record, expected) in ticket.wait().unwrap().iter().zip(expected) {
            assert_near(record.clip_coef, expected);
        }
    }
}

#[test]
fn the_loss_scale_changes() {
    let gpu = gpu();
    let buffers = triangles();
    let plan = by_groups(&buffers, &[Clip::by_global_norm(100.0).loss_scale(2.0); 2]);
    assert_eq!(norms(&run(&plan)), [2.5, 6.5]);
    assert_eq!(gpu.read::<f32>(&buffers[0]), [1.5, -2.0]);
    // Of what has been unscaled, without a limit in the way.
    plan.set_loss_scale(&gpu.queue, 0.5).unwrap();
    assert_eq!(norms(&run(&plan)), [5.0, 13.0]);
    assert_eq!(gpu.read::<f32>(&buffers[0]), [3.0, -4.0]);

    let inverses = gpu.buffer(&[-7.0, 0.25]);
    let ticket = gpu.submit(|encoder| {
        plan.copy_inverse_loss_scale(encoder, &inverses, 4).unwrap();
        plan.encode(encoder);
        plan.read_back_all(encoder)
    });
    let records = ticket.wait().unwrap();
    assert_eq!((norms(&records), records[1].factor), (vec![1.25, 3.25], 0.25));
    assert_eq!(gpu.read::<f32>(&buffers[1]), [1.25, 3.0]);
    // It stays.
    assert_eq!(norms(&run(&plan)), [0.3125, 0.8125]);
    plan.set_loss_scale(&gpu.queue, 0.0).unwrap_err();
    assert_eq!(norms(&run(&plan)), [0.078_125, 0.203_125]);
}

#[test]
fn a_supplied_norm_is_that_of_a_clip() {
    let gpu = gpu();
    let clip = Clip::by_supplied_norm(1.0);
    let scaled = |factor: f32| [3.0 * factor, -4.0 * factor];
    let infinity = f32::INFINITY;
    for (norm, policy, loss_scale, factor) in [
        (8.0, NonFinite::Propagate, 1.0, 0.125),
        (0.5, NonFinite::Propagate, 1.0, 1.0),
        (8.0, NonFinite::Propagate, 4.0, 0.125 / 4.0),
        (infinity, NonFinite::Propagate, 1.0, 0.0),
        (infinity, NonFinite::Skip, 2.0, 1.0),
        (f32::NAN, NonFinite::Zero, 1.0, 0.0),
        // The NaN that stands for no norm on the device.
        (f32::from_bits(u32::MAX), NonFinite::Zero, 1.0, 0.0),
    ] {
        let clip = clip.non_finite(policy).loss_scale(loss_scale);
        let buffer = gpu.buffer(&[3.0, -4.0]);
        let gradient = Gradient::new(&buffer, DType::F32);
        let plan = gpu.clipper.prepare(&[gradient], clip).unwrap();
        // Until it is supplied nothing is clipped, nor the loss scale undone, and the ticket says so.
        let (before, missing, one) = gpu.submit(|encoder| {
            let before = plan.read_back(encoder);
            plan.encode(encoder);
            (before, plan.read_back_all(encoder), plan.read_back(encoder))
        });
        assert_eq!(before.wait(), Err(Error::NothingMeasured));
        assert_eq!((missing.wait(), one.wait()), (Err(Error::NormNotSupplied), Err(Error::NormNotSupplied)));
        assert_eq!(gpu.read::<f32>(&buffer), [3.0, -4.0]);
        plan.supply_norm(&gpu.queue, norm).unwrap();
        let before: Vec<f32> = gpu.read(&buffer);
        let record = run(&plan)[0];

        let mut on_cpu = [before[0], before[1]];
        let expected = cpu::clip_with_norm(&mut [cpu::Gradient::f32(&mut on_cpu)], clip, norm).unwrap();
        assert!(record.total_norm == norm || record.total_norm.is_nan() && norm.is_nan(), "{record:?}");
        assert_near(record.factor, factor);
        assert_near(expected.factor, factor);
        assert_eq!(
            (record.skip(), record.zeroed(), record.non_finite(), record.clipped()),
            (expected.skip(), expected.zeroed(), expected.non_finite(), expected.clipped()),
        );
        if loss_scale == 1.0 && policy == NonFinite::Propagate {
            let after: Vec<f32> = gpu.read(&buffer);
            assert_eq!(bits(&[after]), bits(&[scaled(record.factor).to_vec()]));
        }
    }
}

#[test]
fn a_norm_is_copied_from_another_plan() {
    let gpu = gpu();
    let [one, other] = triangles();
    let measured = gpu.clipper.prepare(&[Gradient::new(&one, DType::F32)], NORM.coefficient_only()).unwrap();
    let supplied =
        gpu.clipper.prepare(&[Gradient::new(&other, DType::F32)], Clip::by_supplied_norm(2.5)).unwrap();
    let ticket = gpu.submit(|encoder| {
        measured.encode(encoder);
        // The first field of the record.
        supplied.copy_norm(encoder, measured.record_buffer().unwrap(), 0).unwrap();
        supplied.encode(encoder);
        supplied.read_back(encoder)
    });
    let record = ticket.wait().unwrap();
    assert_eq!(record.total_norm, 5.0);
    assert_near(record.factor, 0.5);
    assert_eq!(gpu.read::<f32>(&other), [5.0 * record.factor, 12.0 * record.factor]);
    assert_eq!(gpu.read::<f32>(&one), [3.0, -4.0]);
}

/// Each shard by a plan of its own, one of them empty.
#[test]
fn joined_shards_are_the_whole() {
    let gpu = gpu();
    let shards = [noise(1, 5000), noise(2, 77), Vec::new(), vec![-9.5; 33]];
    let buffers = shards.each_ref().map(|shard| gpu.buffer(shard));
    let powers = [3.0, 0.5, 0.0, -1.0, f32::NEG_INFINITY].map(NormType::P);
    for norm_type in [NormType::L1, NormType::L2, NormType::Inf].into_iter().chain(powers) {
        let measure = NORM.norm_type(norm_type).coefficient_only();
        let records = buffers.each_ref().map(|buffer| {
            run(&gpu.clipper.prepare(&[Gradient::new(buffer, DType::F32)], measure).unwrap())[0]
        });
        let gradients = buffers.each_ref().map(|buffer| Gradient::new(buffer, DType::F32));
        let whole = run(&gpu.clipper.prepare(&gradients, measure).unwrap())[0];
        let joined = join_norms(&records, norm_type);
        let error = joined / whole.total_norm - 1.0;
        assert!(error.abs() <= 3e-6, "{joined}, not {} for {norm_type:?}", whole.total_norm);
    }
}

/// Where one shard could not be measured, none is clipped.
#[test]
fn a_failed_shard_is_no_norm_of_any() {
    let gpu = gpu();
    let buffer = gpu.buffer(&[3.0, 4.0]);
    let gradients = [Gradient::new(&buffer, DType::F32)];
    let own = run(&gpu.clipper.prepare(&gradients, NORM.coefficient_only()).unwrap())[0];
    let clip = Clip::by_supplied_norm(1.0).non_finite(NonFinite::Skip);
    let plan = gpu.clipper.prepare(&gradients, clip).unwrap();
    for parts in [[own, ClipRecord::FAILED], [ClipRecord::FAILED, own]] {
        let total = join_norms(&parts, NormType::L2);
        plan.supply_norm(&gpu.queue, total).unwrap();
        assert!(run(&plan)[0].skip());
        assert_eq!(gpu.read::<f32>(&buffer), [3.0, 4.0]);
        let record = cpu::clip_with_norm(&mut [cpu::Gradient::f32(&mut [3.0])], clip, total).unwrap();
        assert!(record.skip());
    }
}

/// A norm that only its significand and exponent hold is joined to one that f32 holds again.
#[test]
fn shards_beyond_f32_are_joined() {
    let gpu = gpu();
    let buffers = [gpu.buffer(&[3e38; 4]), gpu.buffer(&[2.0])];
    let records = buffers.each_ref().map(|buffer| {
        let plan = gpu.clipper.prepare(&[Gradient::new(buffer, DType::F32)], NORM.coefficient_only());
        run(&plan.unwrap())[0]
    });
    assert_eq!(records[0].total_norm, f32::INFINITY);
    // The smallest is what remains of a negative infinity.
    assert_eq!(join_norms(&records, NormType::P(f32::NEG_INFINITY)), 2.0);
    assert_eq!(join_norms(&records, NormType::L2), f32::INFINITY);
    let significand = f64::from(records[0].norm_significand) * f64::from(records[0].norm_exponent).exp2();
    assert!((significand / 6e38 - 1.0).abs() < 1e-6, "{significand:e}");
}

#[test]
fn all_records_are_read_back_in_order() {
    let gpu = gpu();
    let buffers: Vec<_> = (1..=300_u16).map(|n| gpu.buffer(&[f32::from(n), 0.0])).collect();
    let gradients: Vec<_> = buffers.iter().map(|buffer| Gradient::new(buffer, DType::F32)).collect();
    let each = gpu.clipper.prepare(&gradients, Clip::by_norm(150.5).coefficient_only()).unwrap();
    assert_eq!(each.records(), 300);
    let [first, all] = {
        let (first, all) = gpu.submit(|encoder| {
            each.encode(encoder);
            (each.read_back(encoder), each.read_back_all(encoder))
        });
        [vec![first.wait().unwrap()], pollster::block_on(async { all.await }).unwrap()]
    };
    assert_eq!(norms(&all), (1..=300_u16).map(f32::from).collect::<Vec<_>>());
    assert_eq!(first, all[..1]);
    assert!(all.iter().enumerate().all(|(index, record)| record.clipped() == (index >= 150)));
}

/// It is the first one's error, and of all records none.
#[test]
fn one_gradient_is_an_error_of_all() {
    let gpu = gpu();
    let buffers = [gpu.buffer(&[1.0]), gpu.buffer(&[f32::INFINITY]), gpu.buffer(&[f32::NAN])];
    let mut gradients = buffers.each_ref().map(|buffer| Gradient::new(buffer, DType::F32));
    gradients[1] = gradients[1].clone().label("head");
    let clipper: &Clipper = &gpu.clipper;
    let plan = clipper.prepare(&gradients, Clip::by_norm(2.0).non_finite(NonFinite::Error)).unwrap();
    assert_eq!([plan.label(0), plan.label(1), plan.label(3)], [None, Some("head"), None]);
    let (one, all) = gpu.submit(|encoder| {
        plan.encode(encoder);
        (plan.read_back(encoder), plan.read_back_all(encoder))
    });
    let gradient = Some(GradientId { index: 1, label: Some("head".into()) });
    let expected = Error::NonFinite { gradient, total_norm: f32::INFINITY, record: Some(1) };
    assert_eq!((one.wait().unwrap_err(), all.wait().unwrap_err()), (expected.clone(), expected));
}
