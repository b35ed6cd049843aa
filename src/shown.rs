//! How the messages of errors show values: numbers by their shortest digits, options by their text forms.
//!
//! Messages do not use `Debug`, which shows values as Rust code. What it needs for floats and strings would also be an eighth of
//! the planner that a page downloads.

use std::fmt::{self, Write as _};

use crate::loss_scale::{LossScale, LossScaleState};
use crate::operation::{Scope, SkipAbove};
use crate::{AutoClip, DType, NonFinite, NormType, ZClip};

/// A value that a message shows.
pub(crate) trait Shown {
    fn shown(&self) -> String;
}

impl Shown for f32 {
    /// The shortest digits that identify the f32, with an exponent where zeros would fill the line.
    #[cfg(not(gradclip_planner))]
    fn shown(&self) -> String {
        if *self == 0.0 || !self.is_finite() || (1e-4..1e7).contains(&self.abs()) {
            format!("{self}")
        } else {
            format!("{self:e}")
        }
    }

    /// The bits, between two marks. `js/src/errors.ts` replaces them by the digits: the code for that would be 6 kB of the planner.
    #[cfg(gradclip_planner)]
    fn shown(&self) -> String {
        format!("\u{1}{}\u{1}", self.to_bits())
    }
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), T::shown)
    }
}

macro_rules! shown_by_display {
    ($($ty:ty)+) => {$(
        impl Shown for $ty {
            fn shown(&self) -> String {
                self.to_string()
            }
        }
    )+};
}
shown_by_display!(bool u64 usize DType NonFinite);

impl Shown for NormType {
    fn shown(&self) -> String {
        self.name().map_or_else(|| self.p().shown(), str::to_owned)
    }
}

impl Shown for Scope {
    fn shown(&self) -> String {
        match self {
            Self::Parameter { floor } => format!("{} with floor {}", self.constructor(), floor.shown()),
            _ => self.constructor().to_owned(),
        }
    }
}

impl Shown for SkipAbove {
    fn shown(&self) -> String {
        let norm = self.norm.shown();
        if self.max_consecutive == u32::MAX {
            norm
        } else {
            format!("{norm}, at most {} in a row", self.max_consecutive)
        }
    }
}

impl Shown for ZClip {
    fn shown(&self) -> String {
        let Self { alpha, z_threshold, warm_up } = self;
        format!("alpha {}, z_threshold {} and warm_up {warm_up}", alpha.shown(), z_threshold.shown())
    }
}

impl Shown for AutoClip {
    fn shown(&self) -> String {
        let Self { percentile, window } = self;
        format!("percentile {} and window {window}", percentile.shown())
    }
}

impl Shown for LossScale {
    fn shown(&self) -> String {
        let LossScaleState { scale, growth, backoff, floor, interval, good_steps } = self.state();
        let [scale, growth, backoff, floor] = [scale, growth, backoff, floor].map(|number| number.shown());
        format!(
            "scale {scale}, growth {growth}, backoff {backoff}, floor {floor}, interval {interval} and good_steps {good_steps}"
        )
    }
}

/// A text of the caller, in quotes. Characters that could control a terminal, or hide in it, are escaped.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\') || c.is_control() || is_invisible(c) {
                c.escape_default().try_for_each(|c| f.write_char(c))?;
            } else {
                f.write_char(c)?;
            }
        }
        f.write_char('"')
    }
}

/// Whether a character is invisible, and only directs how others are shown: zero-width and bidirectional marks, and tags.
const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let numbers =
            [0.0, -0.5, 0.1, 1e-4, 9.9e-5, 1e7, 123_456.7, f32::MAX, 1e-45, f32::INFINITY, f32::NAN];
        let texts = [
            "0",
            "-0.5",
            "0.1",
            "0.0001",
            "9.9e-5",
            "1e7",
            "123456.7",
            "3.4028235e38",
            "1e-45",
            "inf",
            "NaN",
        ];
        assert_eq!(numbers.map(|number| number.shown()), texts);
    }

    #[test]
    fn labels_cannot_control_a_terminal() {
        let quoted = |text| Quoted(text).to_string();
        assert_eq!(quoted("größe.权重 'a'"), "\"größe.权重 'a'\"");
        assert_eq!(quoted("a\"b\\c\n\u{1b}[2J\u{7f}\u{9b}"), r#""a\"b\\c\n\u{1b}[2J\u{7f}\u{9b}""#);
        assert_eq!(quoted("\u{202e}\u{200b}\u{feff}"), r#""\u{202e}\u{200b}\u{feff}""#);
    }
}
