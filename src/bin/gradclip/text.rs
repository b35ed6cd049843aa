//! Makes foreign text (names in files, paths, arguments, messages of drivers) safe to show on a terminal, in a log and
//! in a picture.

use std::path::Path;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// The widest name, shape or pattern that tables and messages show, in columns of a terminal.
pub(crate) const WIDTH: usize = 96;
const ELLIPSIS: char = '…';
/// What [`escaped`] leaves alone, although Rust's own escapes do not.
const KEPT: [char; 3] = ['\\', '"', '\''];

/// Escapes control characters, bidirectional controls and whatever else cannot be seen, as Rust does: `\n`, `\u{1b}`.
///
/// Quotes and backslashes stay, so that a message may quote text that is escaped already: escaping twice changes nothing.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for piece in text.split_inclusive(KEPT) {
        let plain = piece.trim_end_matches(KEPT);
        escaped.extend(plain.escape_debug());
        escaped.push_str(&piece[plain.len()..]);
    }
    escaped
}

/// Text of several lines, each [`escaped`].
pub(crate) fn lines(text: &str) -> String {
    text.split_inclusive('\n').map(|line| escaped(line.trim_end_matches('\n')) + "\n").collect()
}

/// [`escaped`] text of at most `width` columns. Longer text loses its middle to an ellipsis.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    let escaped = escaped(text);
    // A character without a width counts too, or nothing would bound a pile of accents.
    let cost = |c: char| c.width().unwrap_or(0).max(1);
    if escaped.chars().map(cost).sum::<usize>() <= width {
        return escaped;
    }
    let room = width.saturating_sub(1);
    let fitting = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        let fits = |c: &char| {
            used += cost(*c);
            used <= room
        };
        chars.take_while(fits).collect::<Vec<_>>()
    };
    let head = fitting(&mut escaped.chars(), room.div_ceil(2));
    let tail = fitting(&mut escaped.chars().rev(), room / 2);
    head.into_iter().chain([ELLIPSIS]).chain(tail.into_iter().rev()).collect()
}

/// A name as messages show it: in quotes, escaped, at most [`WIDTH`] columns.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", shortened(name, WIDTH))
}

/// A path as messages show it: escaped, and whole.
pub(crate) fn path(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

/// How many columns of a terminal the text takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_that_it_would_obey() {
        let cases = [
            ("layer.0.weight", "layer.0.weight"),
            ("größe 重み e\u{301}", "größe 重み e\u{301}"),
            (r#"a "b" c\d's"#, r#"a "b" c\d's"#),
            ("a\0b\tc\r\n", r"a\0b\tc\r\n"),
            ("\u{1b}[31mred\u{7}\u{8}\u{7f}", r"\u{1b}[31mred\u{7}\u{8}\u{7f}"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("\u{202e}drow\u{2066}\u{200b}\u{feff}", r"\u{202e}drow\u{2066}\u{200b}\u{feff}"),
            ("\u{2028}\u{a0}\u{ffff}\u{e0001}", r"\u{2028}\u{a0}\u{ffff}\u{e0001}"),
        ];
        for (text, expected) in cases {
            assert_eq!(escaped(text), expected);
            assert_eq!(escaped(&escaped(text)), expected, "escaped twice");
        }
        for c in (0..=char::MAX as u32).filter_map(char::from_u32).filter(|c| c.is_control()) {
            assert!(!escaped(&format!("a{c}b")).contains(c), "{:x}", c as u32);
        }
    }

    #[test]
    fn long_text_loses_its_middle() {
        assert_eq!(shortened("abcdef", 6), "abcdef");
        assert_eq!(shortened("abcdefg", 6), "abc…fg");
        assert_eq!(shortened("abcdefg", 1), "…");
        assert_eq!(shortened("重重重重", 7), "重…重", "each is two columns wide");
        assert_eq!(shortened("", 0), "");
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        for hostile in ["x".repeat(60_000), "\u{301}".repeat(60_000), "\u{1b}".repeat(60_000)] {
            let shown = shortened(&hostile, WIDTH);
            assert!(shown.contains(ELLIPSIS) && width(&shown) <= WIDTH && shown.len() < 8 * WIDTH, "{shown}");
        }
    }
}
