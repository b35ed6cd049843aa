//! Statistics of each tensor.

use gradclip::stats::TensorStats;
use gradclip::{Clip, ClipRecord, DType, Error, Gradient, NormType, Parameter, cpu, reference};
use half::f16;

use crate::common::numbers::noise;
use crate::gpu;

const LENS: [usize; 6] = [5000, 0, 1, 33, 70_000, 4096];

fn gradients() -> Vec<Vec<f32>> {
    LENS.iter().zip(0..).map(|(&len, seed)| noise(seed, len)).collect()
}

/// Returns the statistics of each gradient, and the record, on the GPU.
fn measured(gradients: &[Vec<f32>], clip: Clip) -> (Vec<TensorStats>, ClipRecord) {
    let gpu = gpu();
    let placed = gpu.place_packed(gradients);
    let plan = gpu.clipper.prepare(&placed.gradients(), clip.tensor_stats()).unwrap();
    assert!(plan.tensor_stats_buffer().is_some());
    let tickets = gpu.submit(|encoder| {
        plan.encode(encoder);
        (plan.read_back_tensor_stats(encoder), plan.read_back(encoder))
    });
    (tickets.0.wait().unwrap(), tickets.1.wait().unwrap())
}

/// Returns the statistics of each gradient, and the record, on the CPU.
fn measured_on_cpu(gradients: &[Vec<f32>], clip: Clip) -> (Vec<TensorStats>, ClipRecord) {
    let mut gradients = gradients.to_vec();
    let mut gradients: Vec<_> = gradients.iter_mut().map(|g| cpu::Gradient::f32(g)).collect();
    let apart = cpu::tensor_stats(&gradients, clip).unwrap();
    let mut plan = cpu::ClipPlan::new(&[clip.tensor_stats()]).unwrap();
    let records = plan.clip(&mut gradients).unwrap();
    assert_eq!(
        as_bits(plan.tensor_stats()),
        as_bits(&apart),
        "the statistics of a plan differ from those of cpu::tensor_stats"
    );
    (apart, records[0])
}

/// Returns the bits, because NaN is not equal to itself.
fn as_bits(stats: &[TensorStats]) -> &[[u32; 4]] {
    bytemuck::cast_slice(stats)
}

fn number_of<T>(gradient: &[T], is: fn(&&T) -> bool) -> u32 {
    u32::try_from(gradient.iter().filter(is).count()).unwrap()
}

/// Returns gradients with zeros of both signs and non-finite elements, at their edges and inside.
fn special_gradients() -> Vec<Vec<f32>> {
    let mut gradients = gradients();
    for (gradient, at, number) in [
        (0, 0, 0.0),
        (0, 4096, -0.0),
        (0, 4999, 0.0),
        (3, 7, f32::INFINITY),
        (4, 69_999, f32::NAN),
        (4, 0, f32::NEG_INFINITY),
        (4, 16_384, -0.0),
    ] {
        gradients[gradient][at] = number;
    }
    gradients.push(vec![0.0; 4097]);
    gradients
}

#[test]
fn both_paths_agree_with_the_reference() {
    for gradients in [gradients(), special_gradients()] {
        let powers = [3.0, 0.5, 0.0, -1.0, f32::NEG_INFINITY].map(NormType::P);
        for norm_type in [NormType::L2, NormType::L1, NormType::Inf].into_iter().chain(powers) {
            let clip = Clip::by_global_norm(1.0).norm_type(norm_type).loss_scale(4.0);
            let inverse = if norm_type == NormType::P(0.0) { 1.0 } else { 0.25 };
            let (on_gpu, all) = measured(&gradients, clip);
            let (on_cpu, _) = measured_on_cpu(&gradients, clip);
            assert_eq!(on_gpu.len(), gradients.len());
            for (index, (gpu, cpu)) in on_gpu.iter().zip(&on_cpu).enumerate() {
                let close = (gpu.norm - cpu.norm).abs() <= 3e-6 * cpu.norm || gpu.norm == cpu.norm;
                let both_nan = gpu.norm.is_nan() && cpu.norm.is_nan();
                assert!(close || both_nan, "{norm_type:?}, gradient {index}: {gpu:?} but {cpu:?}");
                let exact = reference::norm(&[&gradients[index]], norm_type) * inverse;
                let close =
                    (f64::from(cpu.norm) - exact).abs() <= 1e-7 * exact || f64::from(cpu.norm) == exact;
                assert!(
                    close || exact.is_nan() && both_nan,
                    "{norm_type:?}, gradient {index}: {cpu:?}, {exact}"
                );
                let same = gpu.max_magnitude == cpu.max_magnitude
                    || gpu.max_magnitude.is_nan() && cpu.max_magnitude.is_nan();
                assert!(same, "{norm_type:?}, gradient {index}: {gpu:?} but {cpu:?}");
                let gradient = &gradients[index];
                let count = |is: fn(&&f32) -> bool| number_of(gradient, is);
                let counts = (count(|g| !g.is_finite()), count(|g| **g == 0.0));
                assert_eq!((gpu.non_finite, gpu.zeros), counts, "{norm_type:?}, gradient {index}");
                assert_eq!((cpu.non_finite, cpu.zeros), counts, "{norm_type:?}, gradient {index}");
            }
            // Statistics do not change the bits of the record.
            let placed = gpu().place_packed(&gradients);
            let plan = gpu().clipper.prepare(&placed.gradients(), clip).unwrap();
            let without = gpu().submit(|encoder| {
                plan.encode_norm(encoder);
                plan.read_back(encoder)
            });
            let without = without.wait().unwrap();
            assert_eq!(bytemuck::bytes_of(&all), bytemuck::bytes_of(&without), "{norm_type:?}");
        }
    }
}

#[test]
fn statistics_of_narrow_gradients_at_odd_offsets() {
    let gpu = gpu();
    let halves: Vec<f16> =
        (0..9000).map(|i| f16::from_f32([0.0, 1.5, -0.0, f32::INFINITY, 6e-8][i % 5])).collect();
    let buffer = gpu.buffer_of(&halves);
    let ranges = [1..4, 5..6, 7..5008, 5009..8999];
    let gradients: Vec<_> =
        ranges.iter().map(|range| Gradient::new(&buffer, DType::F16).elements(range.clone())).collect();
    let plan = gpu.clipper.prepare(&gradients, Clip::by_norm(1.0).tensor_stats()).unwrap();
    let stats = gpu.submit(|encoder| {
        plan.encode_norm(encoder);
        plan.read_back_tensor_stats(encoder)
    });
    for (stats, range) in stats.wait().unwrap().iter().zip(ranges) {
        let own = halves.iter().zip(0_u64..).filter(|(_, at)| range.contains(at));
        let own: Vec<f16> = own.map(|(half, _)| *half).collect();
        let zeros = number_of(&own, |half| half.to_f32() == 0.0);
        let non_finite = number_of(&own, |half| !half.is_finite());
        assert_eq!((stats.zeros, stats.non_finite), (zeros, non_finite), "{range:?}");
    }
}

#[test]
fn rows_and_parameters_do_not_change_the_statistics() {
    let gpu = gpu();
    let gradients = [noise(1, 3 * 5000), vec![0.0; 12], [vec![0.0; 6], noise(2, 6)].concat()];
    let weights = gradients.each_ref().map(|gradient| vec![7.0; gradient.len()]);
    let [buffers, parameters] = [&gradients, &weights].map(|all| all.each_ref().map(|one| gpu.buffer(one)));
    for norm_type in [NormType::L2, NormType::P(0.0), NormType::P(3.0)] {
        let clip = Clip::by_parameter_norm(0.01, 1e-3).norm_type(norm_type).tensor_stats();
        let both = buffers.iter().zip(&parameters);
        let on_gpu = both.map(|(buffer, parameter)| {
            let parameter = Parameter::new(parameter, DType::F32);
            Gradient::new(buffer, DType::F32).rows(3).parameter(parameter)
        });
        let plan = gpu.clipper.prepare(&on_gpu.collect::<Vec<_>>(), clip).unwrap();
        let stats = gpu.submit(|encoder| {
            plan.encode_norm(encoder);
            plan.read_back_tensor_stats(encoder)
        });
        let on_gpu = stats.wait().unwrap();

        let mut copies = gradients.clone();
        let both = copies.iter_mut().zip(&weights);
        let rows = both
            .map(|(copy, weight)| cpu::Gradient::f32(copy).rows(3).parameter(cpu::Parameter::f32(weight)));
        let mut on_cpu = cpu::ClipPlan::new(&[clip]).unwrap();
        on_cpu.clip(&mut rows.collect::<Vec<_>>()).unwrap();
        for (index, gradient) in gradients.iter().enumerate() {
            let norm = reference::norm(&[gradient], norm_type);
            for stats in [on_gpu[index], on_cpu.tensor_stats()[index]] {
                let error = (f64::from(stats.norm) - norm).abs();
                assert!(error <= 3e-6 * norm, "{norm_type:?}: {stats:?}, not {norm}");
                assert_eq!(stats.zeros, number_of(gradient, |g| **g == 0.0), "{norm_type:?}");
            }
        }
    }
}

#[test]
fn unmeasured_gradients_have_no_statistics() {
    let gpu = gpu();
    let gradients = special_gradients();
    let placed = gpu.place_packed(&gradients);
    let on_gpu = placed.gradients().into_iter().enumerate();
    let on_gpu: Vec<_> = on_gpu.map(|(i, g)| if i == 4 { g.unmeasured() } else { g }).collect();
    for clip in [Clip::by_global_norm(1.0), Clip::by_norm(1.0)] {
        let plan = gpu.clipper.prepare(&on_gpu, clip.tensor_stats()).unwrap();
        let stats = gpu.submit(|encoder| {
            plan.encode_norm(encoder);
            plan.read_back_tensor_stats(encoder)
        });
        let stats = stats.wait().unwrap();
        assert_eq!(stats[4], TensorStats::default());
        assert_eq!((stats[3].non_finite, stats[6].zeros), (1, 4097));
    }
    let mut copies = gradients.clone();
    let copies = copies.iter_mut().enumerate().map(|(i, copy)| {
        let gradient = cpu::Gradient::f32(copy);
        if i == 4 { gradient.unmeasured() } else { gradient }
    });
    let stats = cpu::tensor_stats(&copies.collect::<Vec<_>>(), Clip::by_norm(1.0)).unwrap();
    assert_eq!((stats[4], stats[6].zeros), (TensorStats::default(), 4097));
}

#[test]
fn a_plan_has_statistics_only_on_request() {
    let gpu = gpu();
    let placed = gpu.place_packed(&gradients());
    for clip in [Clip::by_norm(1.0), Clip::by_global_norm(1.0), Clip::by_value(1.0)] {
        let plan = gpu.clipper.prepare(&placed.gradients(), clip).unwrap();
        assert!(plan.tensor_stats_buffer().is_none());
        let ticket = gpu.submit(|encoder| plan.read_back_tensor_stats(encoder));
        assert!(matches!(ticket.wait(), Err(Error::NotEnabled { with: "tensor_stats", .. })));
    }
    for (clip, name) in
        [(Clip::by_value(1.0), "Clip::by_value"), (Clip::by_supplied_norm(1.0), "Clip::by_supplied_norm")]
    {
        let error = gpu.clipper.prepare(&placed.gradients(), clip.tensor_stats()).unwrap_err();
        assert_eq!(error, Error::NeedsNorm { what: "tensor_stats", clip: name });
    }
}

#[test]
fn statistics_take_one_dispatch() {
    let gpu = gpu();
    let placed = gpu.place_packed(&gradients());
    let dispatches = |clip| gpu.clipper.prepare(&placed.gradients(), clip).unwrap().dispatches();
    // Without a scale pass, gradients of any size have separate dispatches.
    let clip = Clip::by_global_norm(1.0).coefficient_only();
    assert_eq!(dispatches(clip.tensor_stats()), dispatches(clip) + 1);
}
