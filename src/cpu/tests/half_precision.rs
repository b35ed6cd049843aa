//! Gradients of f16 and bf16.

use half::{bf16, f16};

use super::*;
use crate::NormType;

fn f16s<const N: usize>(numbers: [f32; N]) -> [f16; N] {
    numbers.map(f16::from_f32)
}

fn bf16s<const N: usize>(numbers: [f32; N]) -> [bf16; N] {
    numbers.map(bf16::from_f32)
}

#[test]
fn mixed_types_give_the_values_of_pytorch() {
    let (mut a, mut b) = ([3.0, 4.0], f16s([3.0, 4.0]));
    let mut gradients = [Gradient::f32(&mut a), Gradient::f16(&mut b)];
    let record = clip(&mut gradients, Clip::by_global_norm(1.0)).unwrap()[0];
    assert_eq!(record.total_norm, 7.071_068);
    assert_eq!((a, b.map(f16::to_f32)), ([0.424_264, 0.565_685_33], [0.424_316_4, 0.565_917_97]));

    let (mut a, mut b) = (bf16s([3.0, 4.0]), f16s([3.0, 4.0]));
    let mut gradients = [Gradient::bf16(&mut a), Gradient::f16(&mut b)];
    clip(&mut gradients, Clip::by_global_norm(1.0)).unwrap();
    assert_eq!(a.map(bf16::to_f32), [0.423_828_13, 0.566_406_25]);
    assert_eq!(b.map(f16::to_f32), [0.424_316_4, 0.565_917_97]);
}

#[test]
fn half_precision_is_measured_exactly_in_f32() {
    let numbers: Vec<f32> = (0..300_007_u32).map(|i| (i * 7919 % 2003) as f32 - 1001.0).collect();
    let narrow: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x * 3e-7)).collect();
    let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
    for len in [0, 1, 17, 255, 300_007] {
        for norm_type in [NormType::L2, NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(-1.0)] {
            let clip = Clip::by_global_norm(1e-3).norm_type(norm_type);
            let (mut narrow, mut wide) = (narrow[..len].to_vec(), wide[..len].to_vec());
            let records = cpu::clip(&mut [Gradient::f16(&mut narrow)], clip).unwrap();
            assert_eq!(clip_slices(&mut [&mut wide], clip), Ok(records), "{len} {norm_type:?}");
            let rounded = wide.iter().map(|&x| f16::from_f32(x).to_bits());
            assert!(narrow.iter().map(|x| x.to_bits()).eq(rounded), "{len} {norm_type:?}");
        }
    }
}

#[test]
fn the_norm_may_exceed_the_range_of_f16() {
    let mut gradient = vec![f16::from_f32(60000.0); 1000];
    let record = clip(&mut [Gradient::f16(&mut gradient)], Clip::by_global_norm(1.0)).unwrap()[0];
    assert_eq!(record.total_norm, reference::scale(60000.0, 1000.0_f64.sqrt()));
    assert!(gradient.iter().all(|&x| x == f16::from_f32(1000.0_f32.sqrt().recip())));
}

#[test]
fn subnormals_are_measured_and_scaled() {
    let (mut a, mut b) = ([f16::from_bits(1); 4], [bf16::from_bits(0x8001); 4]);
    let mut measure = |max_norm| {
        let mut gradients = [Gradient::f16(&mut a), Gradient::bf16(&mut b).group(1)];
        let records = clip_groups(&mut gradients, &[Clip::by_global_norm(max_norm); 2]).unwrap();
        [records[0].total_norm, records[1].total_norm]
    };
    assert_eq!(measure(1.0), [2.0 * f16::from_bits(1).to_f32(), 2.0 * bf16::from_bits(1).to_f32()]);
    // Half of the smallest subnormal is a tie, which rounds to 0.
    let clip = Clip::by_global_norm(1.0).loss_scale(2.0);
    let mut halved = [f16::from_bits(1), f16::from_bits(0x8003), f16::from_bits(4)];
    cpu::clip(&mut [Gradient::f16(&mut halved)], clip).unwrap();
    assert_eq!(halved.map(f16::to_bits), [0, 0x8002, 2]);
}

#[test]
fn overflow_becomes_infinite() {
    let (mut a, mut b) = (f16s([60000.0, 1.0]), bf16s([-3e38, 1.0]));
    let mut gradients = [Gradient::f16(&mut a).unmeasured(), Gradient::bf16(&mut b).unmeasured()];
    clip(&mut gradients, Clip::by_global_norm(1.0).loss_scale(0.25)).unwrap();
    assert_eq!((a, b), (f16s([f32::INFINITY, 4.0]), bf16s([f32::NEG_INFINITY, 4.0])));
}

#[test]
fn bounds_are_rounded_to_the_element_type() {
    let before = [-3.0, -0.0, f32::INFINITY, f32::NAN, 0.1];
    let clamped = |clip_value| {
        let (mut a, mut b) = (f16s(before), bf16s(before));
        let mut gradients = [Gradient::f16(&mut a), Gradient::bf16(&mut b)];
        clip(&mut gradients, Clip::by_value(clip_value)).unwrap();
        assert_eq!((a[1].to_bits(), b[1].to_bits()), (0x8000, 0x8000));
        assert_eq!((a[3].to_bits(), b[3].to_bits()), (f16s(before)[3].to_bits(), bf16s(before)[3].to_bits()));
        [[a[0], a[2]].map(f16::to_f32), [b[0], b[2]].map(bf16::to_f32)]
    };
    assert_eq!(clamped(1.0 / 3.0), [[-0.333_251_95, 0.333_251_95], [-0.333_984_38, 0.333_984_38]]);
    assert_eq!(clamped(70000.0), [[-3.0, 65504.0], [-3.0, 70144.0]]);
    assert_eq!(clamped(f32::MAX)[1], [-3.0, bf16::MAX.to_f32()]);
    assert_eq!(clamped(f32::INFINITY), [[-3.0, f32::INFINITY]; 2]);
}
