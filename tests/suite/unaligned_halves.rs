//! 16-bit gradients at any offset, which share words with gradients of other groups and types, and with guards.

use gradclip::{Clip, DType};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::clip::{Outcome, clip_groups_on_cpu};
use crate::common::numbers::{bits, rounded};
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
        // Adds a guard after the last gradient.
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
