//! What every plan must hold, for random gradients, clips and devices, so that a host can realise it without checks of its own.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::kernels::{Binding, BindingType, Buffer as Bound};
use crate::{DType, NormType, ZClip};

/// A buffer by its number. All have the same size.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Buffer(usize);

const BUFFER_BYTES: u64 = 1 << 21;

impl DeviceBuffer for Buffer {
    fn size(&self) -> u64 {
        BUFFER_BYTES
    }

    fn check_usage(&self) -> Result<(), String> {
        Ok(())
    }

    fn is_mapped(&self) -> bool {
        false
    }
}

/// A gradient of a random plan: its place in its buffer, in steps of 2 bytes, its length, and its attributes.
type Given = (u64, u64, DType, bool, bool);

fn gradients() -> impl Strategy<Value = Vec<Vec<Given>>> {
    let dtype = prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)];
    let len = prop_oneof![0..9_u64, 1..5000_u64, Just(40_000_u64)];
    let gradient = (0..9_u64, len, dtype, any::<bool>(), prop::bool::weighted(0.9));
    prop::collection::vec(prop::collection::vec(gradient, 0..5), 1..12)
}

fn clips() -> impl Strategy<Value = Clip> {
    let norm =
        prop_oneof![Just(NormType::L1), Just(NormType::L2), Just(NormType::Inf), Just(NormType::P(3.0))];
    let by_norm = (norm, any::<[bool; 6]>()).prop_map(|(norm, [each, stats, counts, z, auto, only])| {
        let clip = if each { Clip::by_norm(1.0) } else { Clip::by_global_norm(1.0) };
        let clip = clip.norm_type(norm);
        let clip = if stats { clip.tensor_stats() } else { clip };
        let clip = if counts { clip.count_steps() } else { clip };
        let clip = if z && !each { clip.z_clip(ZClip::default()) } else { clip };
        let clip = if auto && !z && !each { clip.auto_clip(AutoClip::default()) } else { clip };
        if only { clip.coefficient_only() } else { clip }
    });
    prop_oneof![4 => by_norm, 1 => Just(Clip::by_value(0.5)), 1 => Just(Clip::by_value(0.5).loss_scale(8.0))]
}

fn devices() -> impl Strategy<Value = Device> {
    let storage = prop_oneof![Just(4_u32), Just(8), Just(40)];
    let (alignment, arrays) =
        (prop_oneof![Just(16_u32), Just(256)], prop_oneof![Just(0_u32), Just(5), Just(1000)]);
    (storage, alignment, any::<bool>(), arrays).prop_map(|(storage, alignment, wide, arrays)| {
        let invocations = if wide { 1024 } else { 256 };
        Device {
            max_storage_buffers_per_shader_stage: storage,
            max_binding_array_elements_per_shader_stage: arrays,
            min_storage_buffer_offset_alignment: alignment,
            max_compute_workgroup_size_x: invocations,
            max_compute_invocations_per_workgroup: invocations,
            max_storage_buffer_binding_size: 300_000,
            ..Device::WEBGPU_DEFAULT
        }
    })
}

/// Places the gradients of each buffer one after the other.
fn placed<'a>(buffers: &'a [Buffer], given: &[Vec<Given>]) -> Vec<Gradient<'a, Buffer>> {
    let mut gradients = Vec::new();
    for (buffer, given) in buffers.iter().zip(given) {
        let mut end = 0;
        for &(gap, len, dtype, measured, scaled) in given {
            let start = (end + 2 * gap).div_ceil(dtype.size());
            end = (start + len) * dtype.size();
            let gradient = Gradient::new(buffer, dtype).elements(start..start + len);
            let gradient = if measured { gradient } else { gradient.unmeasured() };
            gradients.push(if scaled { gradient } else { gradient.unscaled() });
        }
    }
    gradients
}

/// Checks a dispatch against the rules of WebGPU.
fn check(dispatch: &Dispatch, plan: &Plan, limits: Limits) {
    let mut uses = HashMap::new();
    let elements =
        |&binding: &Binding| binding.buffer.elements().map(move |buffer| Binding { buffer, ..binding });
    let bindings: Vec<_> = dispatch.kernel.bindings().iter().flat_map(elements).collect();
    assert_eq!(bindings.len(), dispatch.bindings.len());
    for (binding, &BoundRange { source, offset, size }) in bindings.iter().zip(&dispatch.bindings) {
        let (bytes, usage) = match source {
            Source::Own(index) => (plan.buffers()[index].bytes, plan.buffers()[index].usage),
            Source::Given(_) => (BUFFER_BYTES, usage::STORAGE),
            Source::Filler => (limits.filler_bytes(), usage::STORAGE),
        };
        assert!(offset.is_multiple_of(limits.alignment()), "{binding:?} at {offset}");
        assert!(
            size > 0 && size.is_multiple_of(4) && offset + size <= bytes,
            "{binding:?}: {size} of {bytes}"
        );
        let needed = if binding.ty == BindingType::Uniform { usage::UNIFORM } else { usage::STORAGE };
        assert!(usage & needed != 0, "{binding:?} has the usage {usage}");
        assert!(size <= limits.binding_bytes || binding.ty == BindingType::Uniform);
        // Within a dispatch a buffer is either read or written. Fillers are never written.
        let writes = binding.ty == BindingType::ReadWrite;
        let is_filler = source == Source::Filler;
        let key = if is_filler { format!("{binding:?}") } else { format!("{source:?}") };
        assert!(
            *uses.entry(key).or_insert(writes) == writes,
            "{:?} both reads and writes {source:?}",
            dispatch.kernel
        );
        assert!(!is_filler || matches!(binding.buffer, Bound::Slot(_)));
    }
    // Without gradients there is nothing to dispatch.
    assert!(dispatch.grid.iter().all(|&side| side <= limits.workgroups_per_dimension));
}

proptest! {
    #[test]
    fn every_dispatch_obeys_the_rules_of_webgpu(given in gradients(), clip in clips(), device in devices()) {
        let buffers: Vec<_> = (0..given.len()).map(Buffer).collect();
        let limits = Limits::new(&device).unwrap();
        let (plan, _) = Plan::new(&placed(&buffers, &given), &[clip], limits).unwrap();
        for dispatch in plan.passes().all().chain(plan.passes().norm()).chain(plan.passes().scale()) {
            check(dispatch, &plan, limits);
        }
        for buffer in plan.buffers() {
            prop_assert!(buffer.bytes > 0);
            prop_assert!(buffer.words.is_empty() || size_of_val(&buffer.words[..]) as u64 == buffer.bytes);
            if let Some(readable) = buffer.readable {
                prop_assert!(buffer.words.ends_with(&MARK) && readable + size_of_val(&MARK) <= size_of_val(&buffer.words[..]));
                prop_assert!(buffer.usage & usage::COPY_SRC != 0);
            }
        }
    }

    #[test]
    fn a_rebound_plan_keeps_the_same_buffers_in_the_same_order(given in gradients(), clip in clips(), device in devices()) {
        let buffers: Vec<_> = (0..given.len()).map(Buffer).collect();
        let moved: Vec<Vec<_>> = given.iter().map(|buffer| buffer.iter().map(|&(gap, len, dtype, measured, scaled)| (gap + 3, len, dtype, measured, scaled)).collect()).collect();
        let limits = Limits::new(&device).unwrap();
        let (plan, _) = Plan::new(&placed(&buffers, &given), &[clip], limits).unwrap();
        let (rebound, _) = plan.rebound(&placed(&buffers, &moved)).unwrap();
        let kept = |plan: &Plan| -> Vec<_> {
            plan.buffers().iter().filter(|buffer| buffer.is_kept).map(|buffer| (buffer.label, buffer.bytes, buffer.words.clone())).collect()
        };
        prop_assert_eq!(kept(&plan), kept(&rebound));
    }
}
