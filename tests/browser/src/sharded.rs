//! One norm for gradients on several devices of a page.

use gradclip::distributed::{JoinError, Shard, ShardedClip, SingleProcess};
use gradclip::{Clip, DType, Error};

use crate::page::{Page, Tensor, clip_on_cpu, noise, whole_numbers};
use crate::{Outcome, equal, failed};

/// The norms of the shards are exact, and so is the joint one.
pub(crate) async fn two_devices_join_one_norm() -> Outcome {
    let tensors =
        [Tensor::new(DType::F32, [3.0; 400].into_iter()), Tensor::new(DType::F16, [4.0; 400].into_iter())];
    let pages = [Page::open().await?, Page::open().await?];
    let mut clip = ShardedClip::new(&[Clip::by_global_norm(2.5)]).map_err(failed)?;
    let (mut buffers, mut plans) = (Vec::new(), Vec::new());
    for (page, tensor) in pages.iter().zip(&tensors) {
        let buffer = page.buffer(&tensor.bytes());
        plans.push(clip.prepare_async(&page.clipper, &[tensor.on_gpu(&buffer)]).await.map_err(failed)?);
        buffers.push(buffer);
    }
    let (expected, clipped) = clip_on_cpu(&tensors, &[Clip::by_global_norm(2.5)]);

    let tickets: Vec<_> = plans.iter().zip(&pages).map(|(plan, page)| plan.measure(&page.queue)).collect();
    let mut shares = Vec::new();
    for ticket in tickets {
        shares.push(ticket.await);
    }
    let records = clip.join(shares, &mut SingleProcess).map_err(failed)?;
    let norms = |records: &[gradclip::ClipRecord]| -> Vec<_> {
        records.iter().map(|record| (record.total_norm, record.clip_coef)).collect()
    };
    equal(&norms(&records), &norms(&expected.map_err(failed)?), || "the joint record".to_owned())?;
    for (index, (plan, page)) in plans.iter().zip(&pages).enumerate() {
        plan.scale(&page.queue, &records).map_err(failed)?;
        let found = page.read(&buffers[index], clipped[index].len()).await?;
        equal(&found, &clipped[index], || format!("the gradient of device {index}"))?;
    }
    Ok(())
}

pub(crate) async fn a_reproducible_norm_has_the_bits_of_a_plain_plan() -> Outcome {
    let page = Page::open().await?;
    let whole = Tensor::new(DType::F32, noise(5, 20_000));
    let buffer = page.buffer(&whole.bytes());
    let clip = Clip::by_global_norm(f32::INFINITY);
    let plain = page.clipper.prepare_async(&[whole.on_gpu(&buffer)], clip).await.map_err(failed)?;
    let expected = page.records(&plain).await.map_err(failed)?[0].total_norm;

    let mut clip = ShardedClip::new(&[clip]).and_then(|clip| clip.reproducible(&[20_000])).map_err(failed)?;
    let cut = clip.tile_elements().ok_or("a reproducible clip has tiles")?;
    let shards = [(0, cut), (cut, 20_000)];
    let mut shares = Vec::new();
    for (start, end) in shards {
        let shard = Shard::new(gradclip::Gradient::f32(&buffer).elements(start..end), 0, start);
        let plan = clip.prepare_shards_async(&page.clipper, &[shard]).await.map_err(failed)?;
        shares.push(plan.measure(&page.queue).await);
    }
    let records = clip.join(shares, &mut SingleProcess).map_err(failed)?;
    equal(&records[0].total_norm.to_bits(), &expected.to_bits(), || format!("the bits of {expected}"))
}

/// A rebound plan measures the new buffer. If that is destroyed, its rank has an error, and there is no norm.
pub(crate) async fn a_shard_that_cannot_be_measured_is_an_error() -> Outcome {
    let page = Page::open().await?;
    let tensor = Tensor::new(DType::F32, whole_numbers(1, 300));
    let [old, new] = [(); 2].map(|()| page.buffer(&tensor.bytes()));
    let clip = Clip::by_global_norm(1.0).tensor_stats();
    let mut clip = ShardedClip::new(&[clip]).map_err(failed)?;
    let mut plan = clip.prepare_async(&page.clipper, &[tensor.on_gpu(&old)]).await.map_err(failed)?;
    let first = clip.clip_async(&plan, &page.queue, &mut SingleProcess).await.map_err(failed)?;
    plan.rebind_async(&[tensor.on_gpu(&new)]).await.map_err(failed)?;
    let second = clip.clip_async(&plan, &page.queue, &mut SingleProcess).await.map_err(failed)?;
    equal(&second[0].total_norm, &first[0].total_norm, || "the norm of the new buffer".to_owned())?;
    equal(&clip.tensor_stats()[0].norm, &first[0].total_norm, || "the statistics".to_owned())?;

    new.destroy();
    let refused = clip.clip_async(&plan, &page.queue, &mut SingleProcess).await;
    let Err(JoinError::Clip(Error::RankFailed { rank: 0, cause: Some(cause) })) = refused else {
        return Err(format!("a destroyed gradient: {refused:?}"));
    };
    equal(&*cause, &Error::SubmissionRejected, || "the cause".to_owned())
}
