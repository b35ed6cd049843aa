//! Long tiles of 16-bit elements.

use gradclip::{Clip, DType, Gradient, cpu};
use half::{bf16, f16};

use crate::common::numbers::noise;
use crate::gpu;

/// Tiles are long enough for four vectors of 16-bit elements in flight only in sets of more than 2^23 elements.
/// Non-finite elements must stay non-finite there too, even if they are not measured.
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

/// Clips elements, given as bits, on the GPU and on the CPU. Returns their bits, and the norm if there is one.
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
