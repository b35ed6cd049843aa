//! AVX2, FMA and F16C, available on Intel processors since 2013 and on AMD processors since 2015.

use std::arch::x86_64::{
    _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_cvtps_ph, _mm256_loadu_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_storeu_si256,
};

use half::{bf16, f16};

use super::isa::{Isa, Kernel, LANES};

/// Returns whether the processor has the target features of [`run`].
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Runs a kernel compiled for AVX2, FMA and F16C.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

/// The instruction set of [`run`], the only function that names this type.
struct Avx2;

impl Isa for Avx2 {
    #[inline(always)]
    fn run<K: Kernel>(kernel: K) -> K::Output {
        #[expect(unsafe_code, reason = "only `run` names this type")]
        // SAFETY: callers of `run` have checked its target features.
        unsafe {
            run(kernel)
        }
    }

    #[inline(always)]
    fn add_square(sum: f64, x: f32) -> f64 {
        // Compiles to one FMA instruction when inlined into `run`.
        f64::from(x).mul_add(x.into(), sum)
    }

    #[inline(always)]
    fn widen_f16(block: &[f16; LANES]) -> [f32; LANES] {
        #[expect(unsafe_code, reason = "only `run` names this type")]
        // SAFETY: callers of `run` have checked its target features.
        unsafe {
            widen_f16(block)
        }
    }

    #[inline(always)]
    fn widen_bf16(block: &[bf16; LANES]) -> [f32; LANES] {
        #[expect(unsafe_code, reason = "only `run` names this type")]
        // SAFETY: callers of `run` have checked its target features.
        unsafe {
            widen_bf16(block)
        }
    }

    #[inline(always)]
    fn narrow_to_f16(wide: [f32; LANES]) -> [f16; LANES] {
        #[expect(unsafe_code, reason = "only `run` names this type")]
        // SAFETY: callers of `run` have checked its target features.
        unsafe {
            narrow_to_f16(&wide)
        }
    }
}

/// Widens exactly: the instruction ignores the modes that flush subnormals to zero.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen_f16(block: &[f16; LANES]) -> [f32; LANES] {
    let mut wide = [0.0; LANES];
    for (narrow, wide) in block.chunks_exact(8).zip(wide.chunks_exact_mut(8)) {
        #[expect(unsafe_code, reason = "loads and stores through pointers")]
        // SAFETY: reads and writes eight elements each; neither access needs alignment.
        unsafe {
            _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(narrow.as_ptr().cast())));
        }
    }
    wide
}

/// Widens eight elements at a time. Compilers would fuse a plain loop with the f64 loop that follows and widen four
/// elements at a time, which takes more shuffles.
#[inline]
#[target_feature(enable = "avx2")]
fn widen_bf16(block: &[bf16; LANES]) -> [f32; LANES] {
    let mut wide = [0.0; LANES];
    for (narrow, wide) in block.chunks_exact(8).zip(wide.chunks_exact_mut(8)) {
        #[expect(unsafe_code, reason = "loads and stores through pointers")]
        // SAFETY: reads and writes eight elements each; neither access needs alignment.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(narrow.as_ptr().cast()));
            _mm256_storeu_si256(wide.as_mut_ptr().cast(), _mm256_slli_epi32::<16>(bits));
        }
    }
    wide
}

/// Rounds to nearest even, regardless of the rounding mode.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn narrow_to_f16(wide: &[f32; LANES]) -> [f16; LANES] {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
    let mut block = [f16::ZERO; LANES];
    for (wide, half) in wide.chunks_exact(8).zip(block.chunks_exact_mut(8)) {
        #[expect(unsafe_code, reason = "loads and stores through pointers")]
        // SAFETY: reads and writes eight elements each; neither access needs alignment.
        unsafe {
            let narrow = _mm256_cvtps_ph::<NEAREST>(_mm256_loadu_ps(wide.as_ptr()));
            _mm_storeu_si128(half.as_mut_ptr().cast(), narrow);
        }
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kernels::isa::Baseline;

    /// Returns the bits, with one pattern for all NaNs.
    fn bits(x: f32) -> u32 {
        if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
    }

    #[test]
    fn widens_every_f16_like_the_baseline() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for block in all.as_chunks::<LANES>().0.iter().filter(|_| is_supported()) {
            let [avx2, baseline] = [Avx2::widen_f16(block), Baseline::widen_f16(block)];
            assert_eq!(avx2.map(bits), baseline.map(bits), "{block:?}");
        }
    }

    #[test]
    fn widens_every_bf16_like_the_baseline() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        for block in all.as_chunks::<LANES>().0.iter().filter(|_| is_supported()) {
            let [avx2, baseline] = [Avx2::widen_bf16(block), Baseline::widen_bf16(block)];
            assert_eq!(avx2.map(f32::to_bits), baseline.map(f32::to_bits), "{block:?}");
        }
    }

    /// Covers every exponent and sign, and significands on both sides of every tie.
    #[test]
    fn narrows_f32_like_the_baseline() {
        let significands =
            (0..1 << 11).flat_map(|step: u32| [0, 1, 0x7ff, 0x800, 0xfff].map(|low| step << 12 | low));
        let all: Vec<f32> = (0..=0x1ff_u32)
            .flat_map(|top| significands.clone().map(move |low| f32::from_bits(top << 23 | low)))
            .collect();
        for block in all.as_chunks::<LANES>().0.iter().filter(|_| is_supported()) {
            let [avx2, baseline] = [Avx2::narrow_to_f16(*block), Baseline::narrow_to_f16(*block)];
            let halves = |block: [f16; LANES]| block.map(|half| bits(half.to_f32()));
            assert_eq!(halves(avx2), halves(baseline), "{block:?}");
        }
    }
}
