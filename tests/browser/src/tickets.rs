//! Tickets: a record arrives once, or an error says why there is none.

use gradclip::{Clip, ClipPlan, Error, Gradient, ReadBackQueue, bytemuck, wgpu};

use crate::page::Page;
use crate::{Outcome, check, equal, failed};

async fn plan(page: &Page) -> Result<(wgpu::Buffer, ClipPlan), String> {
    let buffer = page.buffer(bytemuck::cast_slice(&[3.0_f32, 4.0]));
    let clip = Clip::by_global_norm(1.0).coefficient_only();
    let plan = page.clipper.prepare_async(&[Gradient::f32(&buffer)], clip).await.map_err(failed)?;
    Ok((buffer, plan))
}

pub(crate) async fn a_ticket_of_a_dropped_encoder_is_an_error() -> Outcome {
    let page = Page::open().await?;
    let (_buffer, plan) = plan(&page).await?;
    let mut encoder = page.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    plan.encode(&mut encoder);
    let ticket = plan.read_back(&mut encoder);
    drop(encoder);
    equal(&ticket.await, &Err(Error::NotSubmitted), || "a dropped encoder".to_owned())
}

/// The staging buffer of a refused submission is mapped nevertheless. Neither its zeroes nor the record of an earlier step count.
pub(crate) async fn a_refused_submission_never_returns_an_earlier_record() -> Outcome {
    let page = Page::open().await?;
    let (buffer, plan) = plan(&page).await?;
    let step = || {
        page.submit(|encoder| {
            plan.encode(encoder);
            plan.read_back(encoder)
        })
    };
    // The second and third step use the staging buffer of the first.
    for _ in 0..3 {
        equal(&step().await.map_err(failed)?.total_norm, &5.0, || "the norm".to_owned())?;
    }
    buffer.destroy();
    for _ in 0..3 {
        equal(&step().await, &Err(Error::SubmissionRejected), || "a destroyed gradient".to_owned())?;
    }
    Ok(())
}

pub(crate) async fn a_ticket_of_a_destroyed_device_is_an_error() -> Outcome {
    let page = Page::open().await?;
    let (_buffer, plan) = plan(&page).await?;
    page.device.destroy();
    let ticket = page.submit(|encoder| {
        plan.encode(encoder);
        plan.read_back(encoder)
    });
    equal(&ticket.await, &Err(Error::DeviceLost), || "a destroyed device".to_owned())
}

pub(crate) async fn a_queue_returns_each_record_once_and_in_order() -> Outcome {
    let page = Page::open().await?;
    let (buffer, plan) = plan(&page).await?;
    let mut log = ReadBackQueue::new();
    let mut logged = Vec::new();
    for step in 0..20 {
        page.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&[(step + 1) as f32, 0.0]));
        let ticket = page.submit(|encoder| {
            plan.encode(encoder);
            plan.read_back(encoder)
        });
        log.push(step, ticket);
        logged.extend(log.arrived().map_err(failed)?);
        if step == 10 {
            logged.extend(log.wait_async().await.map_err(failed)?);
            equal(&logged.len(), &11, || "the steps that were waited for".to_owned())?;
            check(log.is_empty(), || "steps are left".to_owned())?;
        }
    }
    logged.extend(log.wait_async().await.map_err(failed)?);
    let logged: Vec<_> = logged.into_iter().map(|(step, record)| (step, record.total_norm)).collect();
    let expected: Vec<_> = (0..20).map(|step| (step, (step + 1) as f32)).collect();
    equal(&logged, &expected, || "the log".to_owned())?;

    // An error keeps its place.
    let mut encoder = page.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    log.push(20, plan.read_back(&mut encoder));
    drop(encoder);
    let error = log.wait_async().await;
    let expected = Error::InStep { step: 20, error: Box::new(Error::NotSubmitted) };
    equal(&error, &Err(expected), || "a dropped encoder".to_owned())
}
