//! Updates of a plan: their values, their sources and their queue.

use gradclip::stats::StepCounts;
use gradclip::wgpu::{self, BufferUsages};
use gradclip::{Clip, Error};

use super::{NORM, Noop, f32s};

#[test]
fn invalid_updates_are_errors() {
    let noop = Noop::new(wgpu::Limits::default());
    let clipper = noop.clipper();
    let (buffer, numbers) = (noop.storage(16), noop.buffer(16, BufferUsages::COPY_SRC));
    let plan = |clips: &[Clip]| {
        let gradients = [f32s(&buffer).elements(0..1), f32s(&buffer).elements(1..2).group(clips.len() - 1)];
        clipper.prepare_groups(&gradients, clips).unwrap()
    };
    let (norms, each, clamp) = (plan(&[NORM; 2]), plan(&[Clip::by_norm(1.0)]), plan(&[Clip::by_value(1.0)]));
    let supplied = plan(&[Clip::by_supplied_norm(1.0)]);
    let unscale = plan(&[Clip::by_value(1.0).loss_scale(1.0)]);
    let (queue, mut encoder) = (&noop.queue, noop.encoder());

    let limits = |given| Err(Error::LimitCount { given, groups: 2 });
    assert_eq!(norms.set_max_norms(queue, &[]), limits(0));
    assert_eq!(norms.set_max_norms(queue, &[1.0; 3]), limits(3));
    assert_eq!(
        norms.copy_max_norm(&mut encoder, 2, &numbers, 0),
        Err(Error::NoSuchGroup { given: 2, groups: 2 })
    );
    assert_eq!(each.set_max_norms(queue, &[1.0; 2]), Err(Error::LimitCount { given: 2, groups: 1 }));
    for given in [-1.0, -1e-45] {
        let error = Error::InGroup { group: 1, error: Box::new(Error::MaxNorm { given }) };
        assert_eq!(norms.set_max_norms(queue, &[1.0, given]), Err(error));
        assert_eq!(each.set_max_norms(queue, &[given]), Err(Error::MaxNorm { given }));
    }
    assert!(matches!(norms.set_max_norms(queue, &[f32::NAN, 1.0]), Err(Error::InGroup { group: 0, .. })));
    for given in [0.0, -1.0, f32::INFINITY, 1e-45] {
        assert_eq!(norms.set_loss_scale(queue, given), Err(Error::LossScale { given }));
        assert_eq!(unscale.set_loss_scale(queue, given), Err(Error::LossScale { given }));
    }

    let needs_norm = |what| Err(Error::NeedsNorm { what, clip: "a clip by value" });
    assert_eq!(clamp.set_max_norms(queue, &[1.0]), needs_norm("set_max_norms"));
    let not_enabled = Err(Error::NotEnabled { what: "loss scale", with: "loss_scale" });
    assert_eq!(clamp.set_loss_scale(queue, 2.0), not_enabled);
    assert_eq!(clamp.copy_max_norm(&mut encoder, 0, &numbers, 0), needs_norm("copy_max_norm"));
    assert_eq!(clamp.copy_inverse_loss_scale(&mut encoder, &numbers, 0), not_enabled);
    let not_by_group = Error::NoGroupLimit { what: "copy_max_norm" };
    assert_eq!(each.copy_max_norm(&mut encoder, 0, &numbers, 0), Err(not_by_group));
    for measures in [&norms, &each, &clamp] {
        assert_eq!(measures.supply_norm(queue, 1.0), Err(Error::UnexpectedNorm));
        assert_eq!(measures.copy_norm(&mut encoder, &numbers, 0), Err(Error::UnexpectedNorm));
    }

    let storage = noop.storage(16);
    for (source, usage, offset) in [
        (&numbers, "BufferUsages(COPY_SRC)", 2),
        (&numbers, "BufferUsages(COPY_SRC)", 16),
        (&numbers, "BufferUsages(COPY_SRC)", u64::MAX - 3),
        (&storage, "BufferUsages(STORAGE)", 0),
    ] {
        let expected = Err(Error::CopySource { offset, len: 16, usage: usage.into() });
        assert_eq!(norms.copy_max_norm(&mut encoder, 1, source, offset), expected);
        assert_eq!(norms.copy_inverse_loss_scale(&mut encoder, source, offset), expected);
        assert_eq!(unscale.copy_inverse_loss_scale(&mut encoder, source, offset), expected);
        assert_eq!(supplied.copy_norm(&mut encoder, source, offset), expected);
    }
    // The last offset and the last group are valid.
    norms.copy_max_norm(&mut encoder, 1, &numbers, 12).unwrap();
    norms.copy_inverse_loss_scale(&mut encoder, &numbers, 12).unwrap();
    unscale.copy_inverse_loss_scale(&mut encoder, &numbers, 12).unwrap();
    supplied.copy_norm(&mut encoder, &numbers, 12).unwrap();
    noop.queue.submit([encoder.finish()]);
}

/// wgpu would report this when the encoder is finished, and reject all its commands.
#[test]
fn the_source_of_a_copy_must_be_alive_and_of_the_same_device() {
    let noop = Noop::new(wgpu::Limits::default());
    let buffer = noop.storage(16);
    let plan = |clip| noop.clipper().prepare(&[f32s(&buffer)], clip).unwrap();
    let (supplied, measures) = (plan(Clip::by_supplied_norm(1.0)), plan(NORM));
    let unscale = plan(Clip::by_value(1.0).loss_scale(2.0));
    let foreign = noop.sibling().buffer(16, BufferUsages::COPY_SRC);
    let dead = noop.buffer(16, BufferUsages::COPY_SRC);
    dead.destroy();
    let mut encoder = noop.encoder();
    for bad in [&foreign, &dead] {
        for outcome in [
            supplied.copy_norm(&mut encoder, bad, 0),
            measures.copy_max_norm(&mut encoder, 0, bad, 0),
            measures.copy_inverse_loss_scale(&mut encoder, bad, 0),
            unscale.copy_inverse_loss_scale(&mut encoder, bad, 0),
        ] {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::BufferRejected { gradient: None, .. }), "{error:?}");
        }
    }
    noop.queue.submit([encoder.finish()]);
}

/// wgpu would panic on the other device, which has no handler for uncaptured errors.
#[test]
fn a_queue_of_another_device_is_rejected() {
    let noop = Noop::new(wgpu::Limits::default());
    let buffer = noop.storage(16);
    let plan = |clip| noop.clipper().prepare(&[f32s(&buffer)], clip).unwrap();
    let (supplied, measures) = (plan(Clip::by_supplied_norm(1.0)), plan(NORM.count_steps()));
    let unscale = plan(Clip::by_value(1.0).loss_scale(2.0));
    let (_device, queue) =
        pollster::block_on(noop.adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    for outcome in [
        measures.set_max_norms(&queue, &[1.0]),
        measures.set_loss_scale(&queue, 2.0),
        unscale.set_loss_scale(&queue, 2.0),
        measures.set_step_counts(&queue, &[StepCounts::default()]),
        supplied.supply_norm(&queue, 1.0),
    ] {
        assert_eq!(outcome, Err(Error::ForeignQueue));
    }
    measures.set_max_norms(&noop.queue, &[1.0]).unwrap();
}
