//! Gradients of 16 bits that share words with others: of another group, of another type, or with nobody's memory.

use gradclip::{Clip, DType, reference};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::typed::{Attempt, Halves, Role, attempt_on_cpu, rounded, size};
use crate::common::{bits, noise};
use crate::gpu;

/// Gradients side by side in one or two buffers, and often within one word.
#[derive(Clone, Debug)]
struct Neighbours {
    gradients: Vec<Vec<f32>>,
    roles: Vec<Role>,
    layout: Halves,
}

fn neighbours() -> impl Strategy<Value = Neighbours> {
    let dtype = prop::sample::select(vec![DType::F16, DType::BF16, DType::F16, DType::BF16, DType::F32]);
    let elements = vec(prop_oneof![8 => -8.0_f32..8.0, 1 => Just(6e-8), 1 => Just(-0.0)], 0..20);
    let one = (dtype, elements, 0..3_usize, 0..2_usize, 0..2_usize, any::<(bool, bool)>());
    vec(one, 0..14).prop_map(|some| {
        let mut layout = Halves { spans: Vec::new(), buffers: vec![0; 2] };
        let (mut gradients, mut roles) = (Vec::new(), Vec::new());
        for (dtype, elements, gap, group, buffer, (measured, scaled)) in some {
            let start = (layout.buffers[buffer] + gap).next_multiple_of(size(dtype));
            layout.buffers[buffer] = start + elements.len() * size(dtype);
            layout.spans.push((buffer, start..layout.buffers[buffer]));
            gradients.push(elements.iter().map(|&g| rounded(dtype, g)).collect());
            let role = Role::of(dtype).group(group);
            let role = if measured { role } else { role.unmeasured() };
            roles.push(if scaled { role } else { role.unscaled() });
        }
        // A guard behind the last one, and a whole word.
        layout.buffers.iter_mut().for_each(|len| *len = (*len + 1).next_multiple_of(2));
        Neighbours { gradients, roles, layout }
    })
}

fn on_both_paths(neighbours: &Neighbours, clips: &[Clip]) -> [Attempt; 2] {
    let Neighbours { gradients, roles, layout } = neighbours;
    [attempt_on_cpu(gradients, roles, clips), gpu().attempt(layout, gradients, roles, clips)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn are_scaled_each_by_the_factor_of_its_group(neighbours in neighbours(), limits in any::<[u8; 2]>()) {
        let clips = limits.map(|limit| Clip::by_global_norm(f32::from(limit) / 8.0));
        let [on_cpu, on_gpu] = on_both_paths(&neighbours, &clips).map(|attempt| {
            let records = attempt.records.unwrap();
            for (index, role) in neighbours.roles.iter().enumerate() {
                let factor = if role.scaled { records[role.group].factor } else { 1.0 };
                for (&g, &after) in neighbours.gradients[index].iter().zip(&attempt.gradients[index]) {
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
    fn are_clamped_each_to_the_bounds_of_its_group(neighbours in neighbours(), bounds in any::<[u8; 2]>()) {
        let clips = bounds.map(|bound| Clip::by_value(f32::from(bound) / 30.0));
        let [on_cpu, on_gpu] = on_both_paths(&neighbours, &clips);
        prop_assert_eq!(bits(&on_cpu.gradients), bits(&on_gpu.gradients));
        prop_assert_eq!(on_cpu.records, on_gpu.records);
    }

    #[test]
    fn are_scaled_each_by_itself(neighbours in neighbours(), limits in any::<[u8; 2]>()) {
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

    #[test]
    fn are_clipped_row_by_row_against_their_parameters(
        neighbours in neighbours(),
        rows in vec(1..5_usize, 14),
        clipping in 0.001_f32..0.5,
    ) {
        let mut neighbours = neighbours;
        for ((role, gradient), rows) in neighbours.roles.iter_mut().zip(&neighbours.gradients).zip(rows) {
            let rows = if gradient.len().is_multiple_of(rows) { rows } else { 1 };
            *role = Role { measured: true, ..*role }.rows(rows).parameter(&noise(9, gradient.len()));
        }
        let clips = [Clip::by_parameter_norm(clipping, 0.25); 2];
        for attempt in on_both_paths(&neighbours, &clips) {
            let mut records = attempt.records.unwrap().into_iter();
            let both = neighbours.gradients.iter().zip(&attempt.gradients);
            for (role, (before, after)) in neighbours.roles.iter().zip(both) {
                let len = before.len() / role.rows;
                for row in 0..role.rows {
                    let record = records.next().unwrap();
                    let own = row * len..(row + 1) * len;
                    let parameter = &role.parameter.unwrap()[own.clone()];
                    let limit = f64::from(clipping) * reference::total_norm(&[parameter]).max(0.25);
                    // Each element may be rounded up, one that becomes subnormal by more than its share.
                    let spacing = if role.dtype == DType::F16 { 1e-6 } else { 0.0 };
                    let norm = reference::total_norm(&[&after[own.clone()]]);
                    let is_within = norm <= limit * 1.01 + spacing;
                    prop_assert!(!role.scaled || is_within, "{} against {} in {:?}", norm, limit, role);
                    let factor = if role.scaled { record.factor } else { 1.0 };
                    for (&g, &after) in before[own.clone()].iter().zip(&after[own]) {
                        prop_assert_eq!(after.to_bits(), rounded(role.dtype, g * factor).to_bits());
                    }
                }
            }
            prop_assert!(records.next().is_none());
        }
    }
}
