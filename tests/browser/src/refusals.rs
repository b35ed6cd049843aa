//! What the browser refuses is an error, although the browser says so later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gradclip::{Clip, DType, Error, Gradient, GradientId, Parameter, bytemuck};

use crate::page::Page;
use crate::{Outcome, check, equal, failed};

const CLIP: Clip = Clip::by_global_norm(1.0);

fn names(error: &Error, index: usize, label: &str) -> bool {
    let expected = GradientId { index, label: Some(label.into()) };
    matches!(error, Error::BufferRejected { gradient: Some(gradient), message }
        if *gradient == expected && !message.is_empty())
}

pub(crate) async fn a_buffer_of_another_device_is_an_error_that_names_the_gradient() -> Outcome {
    let (page, other) = (Page::open().await?, Page::open().await?);
    let elements = [3.0_f32, 4.0];
    let (own, foreign) =
        (page.buffer(bytemuck::cast_slice(&elements)), other.buffer(bytemuck::cast_slice(&elements)));
    let gradients = [Gradient::f32(&own), Gradient::f32(&foreign).label("head")];
    // A small clip, several dispatches, and a clip by value.
    for clip in [CLIP, CLIP.tensor_stats(), Clip::by_value(1.0)] {
        let error = page.clipper.prepare_async(&gradients, clip).await.err();
        check(error.as_ref().is_some_and(|error| names(error, 1, "head")), || format!("{error:?}"))?;
    }
    let groups = gradients.clone().map(|gradient| gradient.group(1));
    let error = page.clipper.prepare_groups_async(&groups, &[CLIP; 2]).await.err();
    check(error.as_ref().is_some_and(|error| names(error, 1, "head")), || format!("groups: {error:?}"))?;

    let mut plan = page.clipper.prepare_async(&[Gradient::f32(&own)], CLIP).await.map_err(failed)?;
    let error = plan.rebind_async(&[Gradient::f32(&foreign).label("moved")]).await.err();
    check(error.as_ref().is_some_and(|error| names(error, 0, "moved")), || format!("rebind: {error:?}"))?;
    // The plan is unchanged.
    let record = page.records(&plan).await.map_err(failed)?[0];
    equal(&record.total_norm, &5.0, || "the norm after a refused rebind".to_owned())
}

pub(crate) async fn a_parameter_of_another_device_is_an_error_that_names_the_gradient() -> Outcome {
    let (page, other) = (Page::open().await?, Page::open().await?);
    let elements = [3.0_f32, 4.0];
    let (own, foreign) =
        (page.buffer(bytemuck::cast_slice(&elements)), other.buffer(bytemuck::cast_slice(&elements)));
    let gradient = Gradient::f32(&own).label("w").parameter(Parameter::new(&foreign, DType::F32));
    let error = page.clipper.prepare_async(&[gradient], Clip::by_parameter_norm(0.01, 1e-3)).await.err();
    let Some(Error::InParameter { error: inner }) = &error else { return Err(format!("{error:?}")) };
    check(names(inner, 0, "w"), || format!("{error:?}"))
}

pub(crate) async fn a_plan_works_after_a_refused_one() -> Outcome {
    let (page, other) = (Page::open().await?, Page::open().await?);
    let (own, foreign) =
        (page.buffer(bytemuck::cast_slice(&[3.0_f32, 4.0])), other.buffer(bytemuck::cast_slice(&[1.0_f32])));
    // The kernels are first compiled for the plan that is refused.
    let error = page.clipper.prepare_async(&[Gradient::f32(&foreign)], CLIP).await.err();
    check(matches!(error, Some(Error::BufferRejected { .. })), || format!("{error:?}"))?;
    let plan = page.clipper.prepare_async(&[Gradient::f32(&own)], CLIP).await.map_err(failed)?;
    let record = page.records(&plan).await.map_err(failed)?[0];
    equal(&record.total_norm, &5.0, || "the norm".to_owned())
}

/// A setter cannot wait. What the browser refuses reaches the handler for uncaptured errors, and the plan keeps its value.
pub(crate) async fn a_setter_leaves_errors_to_the_handler_of_the_device() -> Outcome {
    let (page, other) = (Page::open().await?, Page::open().await?);
    let buffer = page.buffer(bytemuck::cast_slice(&[3.0_f32, 4.0]));
    let clip = CLIP.coefficient_only();
    let plan = page.clipper.prepare_async(&[Gradient::f32(&buffer)], clip).await.map_err(failed)?;
    let reported = Arc::new(AtomicBool::new(false));
    for device in [&page.device, &other.device] {
        let reported = reported.clone();
        device.on_uncaptured_error(Arc::new(move |_| reported.store(true, Ordering::Relaxed)));
    }
    plan.set_max_norms(&other.queue, &[2.0]).map_err(failed)?;
    // The answers of both devices arrive after the error.
    other.read(&other.buffer(&[0; 4]), 4).await?;
    let record = page.records(&plan).await.map_err(failed)?[0];
    check(record.clip_coef < 0.25, || format!("the limit is no longer 1: {record:?}"))?;
    check(reported.load(Ordering::Relaxed), || "the handler was not called".to_owned())?;
    plan.set_max_norms(&page.queue, &[2.0]).map_err(failed)?;
    let record = page.records(&plan).await.map_err(failed)?[0];
    check((record.clip_coef - 0.4).abs() < 1e-6, || format!("the limit is not 2: {record:?}"))
}

pub(crate) async fn a_lost_device_is_an_error() -> Outcome {
    let page = Page::open().await?;
    let buffer = page.buffer(bytemuck::cast_slice(&[3.0_f32, 4.0]));
    page.device.destroy();
    let error = page.clipper.prepare_async(&[Gradient::f32(&buffer)], CLIP).await.err();
    equal(&error, &Some(Error::DeviceLost), || "prepare_async".to_owned())
}
