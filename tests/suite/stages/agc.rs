//! Stage `agc`: adaptive gradient clipping, by the norms of the rows of parameters.

use gradclip::cpu::Gradient;
use gradclip::slices::{DeviceChoice, SliceClipper};
use gradclip::{Clip, DType, Error, cpu, reference};
use half::bf16;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::assert_near;
use crate::common::numbers::{noise, rounded};
use crate::common::role::Role;
use crate::unaligned_halves::{neighbours, on_both_paths};

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_row_is_within_its_limit(
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
        for outcome in on_both_paths(&neighbours, &clips) {
            let mut records = outcome.records.unwrap().into_iter();
            let both = neighbours.gradients.iter().zip(&outcome.gradients);
            for (role, (before, after)) in neighbours.roles.iter().zip(both) {
                let len = before.len() / role.rows;
                for row in 0..role.rows {
                    let record = records.next().unwrap();
                    let own = row * len..(row + 1) * len;
                    let parameter = &role.parameter.unwrap()[own.clone()];
                    let limit = f64::from(clipping) * reference::total_norm(&[parameter]).max(0.25);
                    // Every element may be rounded up, and the relative error of a subnormal f16 is large.
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

#[test]
fn host_slices_have_rows_and_parameters() {
    let weight: Vec<f32> = noise(1, 6 * 50);
    let bias: Vec<bf16> = noise(2, 9).into_iter().map(bf16::from_f32).collect();
    let clips = [Clip::by_parameter_norm(0.01, 1e-3), Clip::by_parameter_norm(1e3, 1e-3)];
    let outcomes = [DeviceChoice::Cpu, DeviceChoice::Gpu].map(|choice| {
        let (mut a, mut b, mut c) = (noise(3, 6 * 50), noise(4, 9), noise(5, 3));
        let mut gradients = [
            Gradient::f32(&mut a).rows(6).parameter(cpu::Parameter::f32(&weight)),
            Gradient::f32(&mut b).group(1).parameter(cpu::Parameter::bf16(&bias)),
            Gradient::f32(&mut c).unmeasured(),
        ];
        let clipper = SliceClipper::new(&choice).unwrap();
        let records = clipper.clip_groups(&mut gradients, &clips).unwrap().record;
        let error = clipper.clip_groups(&mut [Gradient::f32(&mut []).rows(0)], &clips);
        assert_eq!(error.unwrap_err(), Error::Rows { gradient: 0.into(), rows: 0, elements: 0 });
        (records, [a, b, c])
    });
    let [(cpu_records, on_cpu), (gpu_records, on_gpu)] = outcomes;
    assert_eq!((cpu_records.len(), gpu_records.len()), (8, 8));
    assert_eq!([&on_cpu[1], &on_cpu[2]], [&on_gpu[1], &on_gpu[2]]);
    assert_eq!(
        (&on_cpu[1], &on_cpu[2]),
        (&noise(4, 9), &noise(5, 3)),
        "gradients within the limit, and unmeasured gradients, stay as they are"
    );
    for (cpu, gpu) in on_cpu[0].iter().zip(&on_gpu[0]) {
        assert!((cpu - gpu).abs() <= 1e-6 * cpu.abs(), "{cpu} and {gpu}");
    }
    for row in 0..6 {
        let own = row * 50..(row + 1) * 50;
        let limit = 0.01 * reference::total_norm(&[&weight[own.clone()]]);
        assert_near(cpu::total_norm(&[&on_gpu[0][own]]), limit);
    }
}
