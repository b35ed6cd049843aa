//! `AutoClip`: a limit that is a percentile of the norms of past steps.

use crate::Error;
use crate::extended::nearest_f32;
use crate::float_modes::in_default_modes;

/// The options of a limit that is a percentile of the last norms.
///
/// ```text
/// norms    = the last `window` norms, including the current one, in increasing order
/// position = (n - 1) · percentile / 100        where n is the number of norms
/// i, t     = the integer part of position, and its fraction
/// limit    = norms[i] + t · (norms[i + 1] - norms[i])
/// ```
///
/// Gradients whose norm exceeds the limit are scaled to it; the limit does not affect others. So the first step is never clipped,
/// and with percentile 10 about nine of ten steps are clipped. The norms are those before clipping.
///
/// It is AutoClip (Seetharaman, Wichern, Pardo and Le Roux, "AutoClip: Adaptive Gradient Clipping for Source Separation
/// Networks", 2020, arXiv:2007.14469). The percentile matches `numpy.percentile` with linear interpolation. gradclip differs from
/// the paper in three ways. The paper keeps all norms; here, `window` bounds the memory on the device. A non-finite norm and a
/// norm of 0 do not enter the window: if more than `percentile` percent of the norms were 0, the limit would be 0 and training
/// would stop. A finite norm above `f32::MAX` enters as `f32::MAX`.
///
/// The device computes the limit in f32, and the CPU computes it in f64 and rounds it. For the same norms the two agree to a
/// relative error of 1e-6.
///
/// Set it with [`Clip::auto_clip`](crate::Clip::auto_clip). A GPU plan computes the limit on the device, without a host stall.
/// The host can read the [`NormWindow`], save it and restore it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct AutoClip {
    /// The percentile, in `[0, 100]`: 0 is the smallest norm, 50 the median, and 100 the largest norm, which clips nothing.
    pub percentile: f32,
    /// The number of norms to keep, from 1 to [`MAX_WINDOW`](Self::MAX_WINDOW). On the device, each record takes 4 bytes per
    /// norm.
    pub window: u32,
}

impl Default for AutoClip {
    /// Percentile 10, as in the paper, of 1024 norms.
    ///
    /// The largest window is the closest to the paper, which keeps all norms. Its 10th percentile has a standard error of
    /// one percentage point, `sqrt(0.1 · 0.9 / 1024)`. A smaller window follows a change of the norms faster.
    fn default() -> Self {
        Self { percentile: 10.0, window: Self::MAX_WINDOW }
    }
}

/// The complete state of an [`AutoClip`]: the norms of the last steps.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NormWindow {
    /// The norms before clipping, oldest first. There are at most [`window`](AutoClip::window) of them, and each is positive and
    /// finite.
    pub norms: Vec<f32>,
}

impl AutoClip {
    /// The largest window: a workgroup on the device sorts this many norms.
    pub const MAX_WINDOW: u32 = 1024;

    pub(crate) fn checked(self) -> Result<Self, Error> {
        let is_valid =
            (0.0..=100.0).contains(&self.percentile) && (1..=Self::MAX_WINDOW).contains(&self.window);
        if is_valid { Ok(self) } else { Err(Error::AutoClip { given: self }) }
    }

    /// Adds `norm` to `window`, and returns the limit if the norm exceeds it. [`cpu::ClipPlan`](crate::cpu::ClipPlan) and the device
    /// do the same at every step.
    ///
    /// ```
    /// use gradclip::{AutoClip, stats::NormWindow};
    ///
    /// let auto_clip = AutoClip { percentile: 25.0, window: 4 };
    /// let mut window = NormWindow::default();
    /// let limits = [3.0, 1.0, 5.0, 2.0, 4.0].map(|norm| auto_clip.limit(&mut window, norm));
    /// // The 25th percentile of 1, 3 and 5 is 2. Of 1, 2, 3 and 5 it is 1.75; of 1, 2, 4 and 5 it is 1.75, too.
    /// assert_eq!(limits, [None, None, Some(2.0), Some(1.75), Some(1.75)]);
    /// assert_eq!(window.norms, [1.0, 5.0, 2.0, 4.0]);
    /// ```
    pub fn limit(&self, window: &mut NormWindow, norm: f32) -> Option<f32> {
        in_default_modes(|| self.limit_of(window, norm.into()))
    }

    /// [`limit`](Self::limit) for a norm that may exceed f32.
    pub(crate) fn limit_of(self, window: &mut NormWindow, norm: f64) -> Option<f32> {
        let rounded = nearest_f32(norm).min(f32::MAX);
        if !norm.is_finite() || rounded <= 0.0 {
            return None;
        }
        window.norms.push(rounded);
        let surplus = window.norms.len().saturating_sub(self.window.max(1) as usize);
        window.norms.drain(..surplus);
        let limit = self.percentile_of(&window.norms);
        (rounded > limit).then_some(limit)
    }

    /// Returns the percentile of at least one norm.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the position is that of a norm in the window"
    )]
    fn percentile_of(self, norms: &[f32]) -> f32 {
        let mut norms = norms.to_vec();
        let last = norms.len() - 1;
        // The product is exact, so the position of a norm is an integer if it should be one.
        let position = (last as f64 * f64::from(self.percentile) / 100.0).clamp(0.0, last as f64);
        let (_, low, above) = norms.select_nth_unstable_by(position as usize, f32::total_cmp);
        let high = above.iter().copied().min_by(f32::total_cmp).unwrap_or(*low);
        let [low, high] = [*low, high].map(f64::from);
        nearest_f32(low + position.fract() * (high - low))
    }

    /// Returns the number of words of the state of a record on the device.
    const fn state_words(self) -> usize {
        HEADER_WORDS + self.window as usize
    }

    /// Returns the size of the state of a record on the device, in bytes.
    pub(crate) const fn state_bytes(self) -> usize {
        self.state_words() * size_of::<u32>()
    }

    /// Converts windows to their form on the device. Each record has the length of the window, the number of norms, the index
    /// where the next norm goes, and the norms as a ring.
    pub(crate) fn device_words(self, windows: &[NormWindow]) -> Vec<u32> {
        let mut words = Vec::new();
        for NormWindow { norms } in windows {
            let end = words.len() + self.state_words();
            #[expect(clippy::cast_possible_truncation, reason = "a checked window has at most 1024 norms")]
            let count = norms.len() as u32;
            words.extend([self.window, count, count % self.window]);
            words.extend(norms.iter().map(|norm| norm.to_bits()));
            words.resize(end, 0);
        }
        words
    }
}

/// The words of a record's state before its norms. `HEADER` of `auto_clip.wgsl`.
pub(crate) const HEADER_WORDS: usize = 3;

impl NormWindow {
    /// Validates a restored window.
    pub(crate) fn checked(&self, record: usize, auto_clip: AutoClip) -> Result<(), Error> {
        let (len, window) = (self.norms.len(), auto_clip.window);
        // As bits, since the caller's floating-point mode may flush subnormals.
        let valid = 1..f32::INFINITY.to_bits();
        let invalid = self.norms.iter().copied().find(|norm| !valid.contains(&norm.to_bits()));
        if len <= window as usize && invalid.is_none() {
            return Ok(());
        }
        Err(Error::NormWindow { record, len, invalid, window })
    }

    /// Converts windows back from their [form on the device](AutoClip::device_words).
    pub(crate) fn from_device_words(words: &[u32]) -> Vec<Self> {
        let Some(&window) = words.first() else { return Vec::new() };
        let window = window as usize;
        let of_record = |state: &[u32]| {
            let (header, ring) = state.split_at(HEADER_WORDS);
            let [count, next] = [header[1], header[2]].map(|word| word as usize);
            let indices = (0..count).map(|index| (next + window - count + index) % window);
            Self { norms: indices.map(|index| f32::from_bits(ring[index])).collect() }
        };
        words.chunks_exact(HEADER_WORDS + window).map(of_record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_survive_a_round_trip_through_the_device_form() {
        let auto_clip = AutoClip { percentile: 10.0, window: 3 };
        let windows = [vec![], vec![1.0], vec![3.0, 1.0, 2.0]].map(|norms| NormWindow { norms });
        let words = auto_clip.device_words(&windows);
        let [one, two, three] = [1.0_f32, 2.0, 3.0].map(f32::to_bits);
        assert_eq!(words, [3, 0, 0, 0, 0, 0, 3, 1, 1, one, 0, 0, 3, 3, 0, three, one, two]);
        assert_eq!(NormWindow::from_device_words(&words), windows);
        assert_eq!(words.len() * 4, 3 * auto_clip.state_bytes());
        // A ring whose oldest norm is not the first.
        let rotated = NormWindow::from_device_words(&[3, 3, 1, two, three, one]);
        assert_eq!(rotated, [NormWindow { norms: vec![3.0, 1.0, 2.0] }]);
        assert_eq!(NormWindow::from_device_words(&[]), []);
    }

    /// Options and states that were never checked cause no panic.
    #[test]
    fn unchecked_values_are_harmless() {
        for percentile in [f32::NAN, -1.0, 1e9, f32::INFINITY] {
            let mut window = NormWindow { norms: vec![f32::NAN, -1.0, 0.0] };
            AutoClip { percentile, window: 2 }.limit(&mut window, 3.0);
            assert_eq!(window.norms, [0.0, 3.0]);
            assert_eq!(AutoClip { percentile, window: 0 }.limit(&mut window, 4.0), None);
            assert_eq!(window.norms, [4.0]);
        }
    }
}
