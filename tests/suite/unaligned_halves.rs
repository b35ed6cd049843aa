//! Gradients of 16 bits at any offset: words that two gradients share, of other groups and types, or that are shared with a
//! guard; and long tiles.

use gradclip::{Clip, DType, Gradient, cpu};
use half::{bf16, f16};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::clip::{Outcome, clip_groups_on_cpu};
use crate::common::numbers::{bits, noise, rounded};
use crate::common::placement::Placement;
use crate::common::role::Role;
use crate::gpu;

/// Gradients side by side in two buffers. Many of them share a word.
#[derive(Clone, Debug)]
pub(crate) struct Neighbours {
    pub(crate) gradients: Vec<Vec<f32>>,
    pub(crate) roles: Vec<Role>,
    placement: Placement,
}

pub(crate) fn neighbours() -> impl Strategy<Value = Neighbours> {
    let dtype = prop::sample::select(vec![DType::F16, DType::BF16, DType::F16, DType::BF16, DType::F32]);
    let elements = vec(prop_oneof![8 => -8.0_f32..8.0, 1 => Just(6e-8), 1 => Just(-0.0)], 0..20);
    let one = (dtype, elements, 0..3_usize, 0..2_usize, 0..2_usize, any::<(bool, bool)>());
    vec(one, 0..14).prop_map(|some| {
        let mut placement = Placement::empty(2);
        let (mut gradients, mut roles) = (Vec::new(), Vec::new());
        for (dtype, elements, gap, group, buffer, (measured, scaled)) in some {
            let start = placement.buffers[buffer] + gap;
            let span = placement.extend(buffer, start, (dtype, elements.len()));
            placement.spans.push(span);
            gradients.push(elements.iter().map(|&g| rounded(dtype, g)).collect());
            let role = Role::of(dtype).group(group);
            let role = if measured { role } else { role.unmeasured() };
            roles.push(if scaled { role } else { role.unscaled() });
        }
        // With a guard behind the last gradient.
        Neighbours { gradients, roles, placement: placement.padded(1) }
    })
}

/// Clips on the CPU and on the GPU.
pub(crate) fn on_both_paths(neighbours: &Neighbours, clips: &[Clip]) -> [Outcome; 2] {
    let Neighbours { gradients, roles, placement } = neighbours;
    [clip_groups_on_cpu(gradients, roles, clips), gpu().clip_groups(placement, gradients, roles, clips)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn each_is_scaled_by_the_factor_of_its_group(neighbours in neighbours(), limits in any::<[u8; 2]>()) {
        let clips = limits.map(|limit| Clip::by_global_norm(f32::from(limit) / 8.0));
        let [on_cpu, on_gpu] = on_both_paths(&neighbours, &clips).map(|outcome| {
            let records = outcome.records.unwrap();
            for (index, role) in neighbours.roles.iter().enumerate() {
                let factor = if role.scaled { records[role.group].factor } else { 1.0 };
                for (&g, &after) in neighbours.gradients[index].iter().zip(&outcome.gradients[index]) {
                    prop_assert_eq!(after.to_bits(), rounded(role.dtype, g * factor).to_bits());
                }
            }
            Ok(records)
        });
        for (one, other) in on_cpu?.iter().zip(&on_gpu?) {
            let (one, other) = (one.total_norm, other.total_norm);
            prop_assert!((one - other).abs() <= 1e-6 * one, "{one} on the CPU, {other} on the GPU");
        }
    }

    #[test]
    fn each_is_clamped_to_the_bounds_of_its_group(neighbours in neighbours(), bounds in any::<[u8; 2]>()) {
        let clips = bounds.map(|bound| Clip::by_value(f32::from(bound) / 30.0));
        let [on_cpu, on_gpu] = on_both_paths(&neighbours, &clips);
        prop_assert_eq!(bits(&on_cpu.gradients), bits(&on_gpu.gradients));
        prop_assert_eq!(on_cpu.records, on_gpu.records);
    }

    #[test]
    fn each_is_scaled_by_its_own_norm(neighbours in neighbours(), limits in any::<[u8; 2]>()) {
        let clips = limits.map(|limit| Clip::by_norm(f32::from(limit) / 16.0));
        let [on_cpu, on_gpu] = on_both_paths(&neighbours, &clips);
        let records = on_cpu.records.unwrap().into_iter().zip(on_gpu.records.unwrap());
        for (index, (one, other)) in records.enumerate() {
            prop_assert!((one.total_norm - other.total_norm).abs() <= 1e-6 * one.total_norm);
            let role = &neighbours.roles[index];
            let factor = if role.scaled { other.factor } else { 1.0 };
            for (&g, &after) in neighbours.gradients[index].iter().zip(&on_gpu.gradients[index]) {
                prop_assert_eq!(after.to_bits(), rounded(role.dtype, g * factor).to_bits());
            }
        }
    }
}

/// Only in sets of more than 2^23 elements are tiles long enough for four vectors of 16-bit elements in flight. Non-finite
/// elements must stay non-finite there too, even if no norm pass has seen them.
#[test]
fn long_tiles_are_clipped_as_on_the_cpu() {
    const LEN: usize = (1 << 23) + (1 << 14) + 24;
    let noise = noise(3, LEN);
    let f16s = noise.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
    let bf16s = noise.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    for (dtype, finite, odd) in [
        (DType::F16, f16s, [0x7c00, 0xfc00, 0x7e01, 0xfd55, 0x0001, 0x83ff, 0x8000, 0x7bff]),
        (DType::BF16, bf16s, [0x7f80, 0xff80, 0x7fc1, 0xff95, 0x0001, 0x807f, 0x8000, 0x7f7f]),
    ] {
        let finite: Vec<u16> = finite;
        let mut strange = finite.clone();
        strange[8192..8200].copy_from_slice(&odd);
        strange[LEN - 8..].copy_from_slice(&odd);
        let alone = Clip::by_global_norm(1.0).coefficient_only();
        let [gpu, cpu] = clip_on_both(dtype, &finite, alone, None).map(|(_, norm)| f64::from(norm.unwrap()));
        assert!((gpu - cpu).abs() <= 3e-7 * cpu, "{dtype:?}: {gpu}, not {cpu}");
        let supplied = clip_on_both(dtype, &strange, Clip::by_supplied_norm(1.0), Some(10.0));
        let clamped = clip_on_both(dtype, &strange, Clip::by_value(0.25), None);
        for [gpu, cpu] in [supplied, clamped].map(|both| both.map(|(bits, _)| bits)) {
            let is_nan = |bits: u16| bits & 0x7fff > odd[0];
            let differs = |(gpu, cpu): &(&u16, &u16)| gpu != cpu && !(is_nan(**gpu) && is_nan(**cpu));
            assert_eq!(gpu.iter().zip(&cpu).find(differs), None, "{dtype:?}");
        }
    }
}

/// Clips elements that are given by their bits, on the GPU and on the CPU. Returns their bits, and the norm if there is one.
fn clip_on_both(
    dtype: DType,
    bits: &[u16],
    clip: Clip,
    supplied: Option<f32>,
) -> [(Vec<u16>, Option<f32>); 2] {
    let gpu = gpu();
    let buffer = gpu.buffer_of(bits);
    let plan = gpu.clipper.prepare(&[Gradient::new(&buffer, dtype)], clip).unwrap();
    if let Some(norm) = supplied {
        plan.supply_norm(&gpu.queue, norm).unwrap();
    }
    let on_gpu = gpu.step(&plan).wait().ok().map(|record| record.total_norm);
    let mut on_cpu = bits.to_vec();
    let gradient = match dtype {
        DType::F16 => cpu::Gradient::f16(bytemuck::cast_slice_mut(&mut on_cpu)),
        _ => cpu::Gradient::bf16(bytemuck::cast_slice_mut(&mut on_cpu)),
    };
    let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
    let records = match supplied {
        Some(norm) => plan.clip_with_norm(&mut [gradient], norm).unwrap(),
        None => plan.clip(&mut [gradient]).unwrap(),
    };
    [(gpu.read(&buffer), on_gpu), (on_cpu, records.first().map(|record| record.total_norm))]
}
