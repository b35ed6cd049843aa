//! Clips through wgpu, compared with the CPU path in the same page.

use gradclip::{Clip, ClipRecord, DType, Error, Gradient, NonFinite, NormType, bytemuck, cpu};

use crate::page::{Page, Tensor, clip_on_cpu, noise, whole_numbers};
use crate::{Outcome, check, equal, failed};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Half a unit in the last place of f32.
const ROUNDING: f32 = 1.0 / (1 << 24) as f32;

fn bytes(records: &[ClipRecord]) -> &[u8] {
    bytemuck::cast_slice(records)
}

/// Checks that both paths have the same records and gradients, to the bit. Returns the records.
async fn same_bits(
    page: &Page,
    tensors: &[Tensor],
    clips: &[Clip],
    what: &str,
) -> Result<Result<Vec<ClipRecord>, Error>, String> {
    let (records, after) = page.clip(tensors, clips).await?;
    let (expected, expected_after) = clip_on_cpu(tensors, clips);
    if let (Ok(records), Ok(expected)) = (&records, &expected) {
        check(bytes(records) == bytes(expected), || {
            format!("{what}: the records are {records:?}, expected {expected:?}")
        })?;
    } else {
        // A NaN in the error equals itself as text only.
        equal(&format!("{records:?}"), &format!("{expected:?}"), || what.to_owned())?;
    }
    for (index, (after, expected)) in after.iter().zip(&expected_after).enumerate() {
        let differs = after.iter().zip(expected).position(|(found, expected)| found != expected);
        equal(&differs, &None, || format!("{what}: the first byte that differs in gradient {index}"))?;
    }
    Ok(records)
}

/// Where no sum is rounded, both paths must agree to the bit.
pub(crate) async fn exact_sums_have_the_bits_of_the_cpu_path() -> Outcome {
    let page = Page::open().await?;
    let by_norm = Clip::by_global_norm(1.5);
    let clips = [
        ("L2", by_norm),
        ("L2 within the limit", Clip::by_global_norm(1e6)),
        ("L1", by_norm.norm_type(NormType::L1)),
        ("infinity", by_norm.norm_type(NormType::Inf)),
        ("loss scale", by_norm.loss_scale(4.0)),
        ("coefficient only", by_norm.coefficient_only()),
        ("each", Clip::by_norm(0.75)),
        ("by value", Clip::by_value(0.5)),
        ("by value with a loss scale", Clip::by_value(0.5).loss_scale(4.0)),
    ];
    // One dispatch, and several.
    for lens in [&[3, 1, 129][..], &[9000, 0, 4097, 5]] {
        for dtype in DTYPES {
            let tensors: Vec<_> = lens
                .iter()
                .enumerate()
                .map(|(seed, &len)| Tensor::new(dtype, whole_numbers(seed, len)))
                .collect();
            for (name, clip) in clips {
                let what = format!("{name}, {dtype:?}, {lens:?}");
                let records = same_bits(&page, &tensors, &[clip], &what).await?.map_err(failed)?;
                let is_measured = records.first().is_none_or(|record| record.total_norm > 0.0);
                check(is_measured, || format!("{what}: {records:?}"))?;
            }
        }
    }
    Ok(())
}

/// Where sums are rounded, the norm is within the documented precision, and the update has the bits of its own factor.
pub(crate) async fn rounded_sums_are_within_the_precision_of_the_gpu() -> Outcome {
    let page = Page::open().await?;
    let tensors = [Tensor::new(DType::F32, noise(1, 20_000)), Tensor::new(DType::F32, noise(2, 777))];
    for (norm_type, most) in
        [(NormType::L2, 75.0 / 2.0 + 7.0), (NormType::L1, 75.0 + 7.0), (NormType::P(3.0), 3e-6 / ROUNDING)]
    {
        let clip = Clip::by_global_norm(2.0).norm_type(norm_type);
        let (records, after) = page.clip(&tensors, &[clip]).await?;
        let record = records.map_err(failed)?[0];
        let expected = clip_on_cpu(&tensors, &[clip]).0.map_err(failed)?[0];
        let error = (record.total_norm - expected.total_norm).abs() / expected.total_norm;
        check(error <= most * ROUNDING, || format!("{norm_type:?}: {record:?}, expected {expected:?}"))?;
        check(record.clip_coef < 1.0, || format!("{norm_type:?}: {record:?}"))?;
        for (tensor, after) in tensors.iter().zip(&after) {
            let before: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor.bytes());
            let scaled: Vec<f32> = before.iter().map(|g| g * record.factor).collect();
            check(after == bytemuck::cast_slice::<_, u8>(&scaled), || format!("{norm_type:?}: the update"))?;
        }
    }
    Ok(())
}

pub(crate) async fn groups_and_policies_have_the_bits_of_the_cpu_path() -> Outcome {
    let page = Page::open().await?;
    let clips = [Clip::by_global_norm(1.5), Clip::by_global_norm(0.25)];
    let tensors = [
        Tensor::new(DType::BF16, whole_numbers(1, 500)),
        Tensor::new(DType::F32, whole_numbers(2, 5000)).group(1),
        Tensor::new(DType::F16, whole_numbers(3, 77)).group(1).unmeasured(),
    ];
    let records = same_bits(&page, &tensors, &clips, "groups").await?.map_err(failed)?;
    equal(&records.len(), &2, || "the number of groups".to_owned())?;
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let with_special = whole_numbers(4, 5000).enumerate();
        let with_special = with_special.map(|(index, x)| if index == 4321 { special } else { x });
        let tensors = [Tensor::new(DType::F32, whole_numbers(5, 10)), Tensor::new(DType::F32, with_special)];
        for policy in [NonFinite::Skip, NonFinite::Zero, NonFinite::Error] {
            let clip = Clip::by_global_norm(1.0).non_finite(policy);
            let what = format!("{special} under {policy:?}");
            match same_bits(&page, &tensors, &[clip], &what).await? {
                Ok(records) => equal(&records[0].first_non_finite(), &Some(1), || what)?,
                Err(error) => check(matches!(error, Error::NonFinite { .. }), || format!("{error:?}"))?,
            }
        }
    }
    Ok(())
}

/// Statistics, counts and the loss scale after several steps.
pub(crate) async fn state_follows_the_cpu_path() -> Outcome {
    let page = Page::open().await?;
    let clip = Clip::by_global_norm(1.5).tensor_stats().count_steps();
    let steps = [whole_numbers(1, 300).collect(), vec![f32::NAN; 300], vec![0.0; 300], vec![0.001; 300]];
    let buffer = page.buffer(&[0; 1200]);
    let gradients = [Gradient::f32(&buffer).elements(0..100), Gradient::f32(&buffer).elements(100..300)];
    let plan = page.clipper.prepare_async(&gradients, clip).await.map_err(failed)?;
    let mut twin = cpu::ClipPlan::new(&[clip]).map_err(failed)?;
    for (step, mut elements) in steps.into_iter().enumerate() {
        page.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&elements));
        let (record, stats, counts) = page.submit(|encoder| {
            plan.encode(encoder);
            let record = plan.read_back(encoder);
            (record, plan.read_back_tensor_stats(encoder), plan.read_back_step_counts(encoder))
        });
        let (first, second) = elements.split_at_mut(100);
        let expected = twin.clip(&mut [cpu::Gradient::f32(first), cpu::Gradient::f32(second)]);
        let expected = expected.map_err(failed)?[0];
        let (record, stats, counts) =
            (record.await.map_err(failed)?, stats.await.map_err(failed)?, counts.await.map_err(failed)?);
        let near = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a - b).abs() <= 1e-6 * b.abs();
        check(near(record.total_norm, expected.total_norm), || {
            format!("step {step}: {record:?}, expected {expected:?}")
        })?;
        check(counts == twin.step_counts(), || {
            format!("step {step}: {counts:?}, expected {:?}", twin.step_counts())
        })?;
        let zeros = |stats: &[gradclip::stats::TensorStats]| -> Vec<_> {
            stats.iter().map(|stats| (stats.zeros, stats.non_finite)).collect()
        };
        equal(&zeros(&stats), &zeros(twin.tensor_stats()), || format!("the statistics of step {step}"))?;
    }
    Ok(())
}

pub(crate) async fn a_rebound_plan_keeps_its_state() -> Outcome {
    let page = Page::open().await?;
    let first = page.buffer(bytemuck::cast_slice(&[3.0_f32, 4.0]));
    let second = page.buffer(bytemuck::cast_slice(&[6.0_f32, 8.0]));
    let clip = Clip::by_global_norm(1.0).count_steps();
    let mut plan = page.clipper.prepare_async(&[Gradient::f32(&first)], clip).await.map_err(failed)?;
    equal(&page.records(&plan).await.map_err(failed)?[0].total_norm, &5.0, || "the norm".to_owned())?;
    plan.rebind_async(&[Gradient::f32(&second)]).await.map_err(failed)?;
    equal(&page.records(&plan).await.map_err(failed)?[0].total_norm, &10.0, || "the other norm".to_owned())?;
    let counts = page.submit(|encoder| plan.read_back_step_counts(encoder)).await.map_err(failed)?;
    equal(&counts[0].steps, &2, || "the number of steps".to_owned())
}
