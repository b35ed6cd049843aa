//! Escapes and shortens untrusted text (names in files, paths, arguments, driver messages) for terminals, logs and
//! plots.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// The maximum width of a name, shape or pattern in tables and messages, in terminal columns.
pub const WIDTH: usize = 96;
const ELLIPSIS: char = '…';
/// Characters that Rust's `escape_debug` escapes and [`escaped`] keeps.
const KEPT: [char; 3] = ['\\', '"', '\''];

/// Escapes control characters, bidirectional controls and other invisible characters as Rust does: `\n`, `\u{1b}`.
///
/// Keeps quotes and backslashes, so that a message can quote escaped text: escaping twice changes nothing.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for piece in text.split_inclusive(KEPT) {
        let plain = piece.trim_end_matches(KEPT);
        escaped.extend(plain.escape_debug());
        escaped.push_str(&piece[plain.len()..]);
    }
    escaped
}

/// Escapes each line of `text` as [`escaped`] does and keeps the line breaks.
pub fn lines(text: &str) -> String {
    text.split_inclusive('\n').map(|line| escaped(line.trim_end_matches('\n')) + "\n").collect()
}

/// Escapes `text` and shortens it to `width` columns. An ellipsis replaces the middle of longer text.
pub fn shortened(text: &str, width: usize) -> String {
    // A zero-width character counts as one column, so that stacked accents are bounded too.
    let cost = |c: char| c.width().unwrap_or(0).max(1);
    let ends = (text.char_indices().nth(width), text.char_indices().rev().nth(width));
    let (head, tail) = if let (Some((end, _)), Some((start, _))) = ends {
        // Only the ends are escaped: a name may have a hundred million characters.
        (escaped(&text[..end]), escaped(&text[start..]))
    } else {
        let whole = escaped(text);
        if whole.chars().map(cost).sum::<usize>() <= width {
            return whole;
        }
        (whole.clone(), whole)
    };
    let room = width.saturating_sub(1);
    let fitting = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        let fits = |c: &char| {
            used += cost(*c);
            used <= room
        };
        chars.take_while(fits).collect::<Vec<_>>()
    };
    let head = fitting(&mut head.chars(), room.div_ceil(2));
    let tail = fitting(&mut tail.chars().rev(), room / 2);
    head.into_iter().chain([ELLIPSIS]).chain(tail.into_iter().rev()).collect()
}

/// Formats a name for messages: quoted, escaped and at most [`WIDTH`] columns wide.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", shortened(name, WIDTH))
}

/// Formats a path for messages: escaped and not shortened.
pub fn path(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

/// Writes `value` as one line of JSON.
///
/// Characters that [`escaped`] escapes become JSON escapes, so that a reader gets the same text back.
pub fn write_json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(&mut *out, EscapeInvisible))?;
    writeln!(out)
}

struct EscapeInvisible;

impl Formatter for EscapeInvisible {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        // serde_json escapes the other ASCII characters itself, including quotes and backslashes.
        let hidden = |c: char| c == '\x7f' || !c.is_ascii() && format!("a{c}").escape_debug().count() > 2;
        let mut shown = 0;
        for (at, c) in fragment.char_indices().filter(|(_, c)| hidden(*c)) {
            out.write_all(&fragment.as_bytes()[shown..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            shown = at + c.len_utf8();
        }
        out.write_all(&fragment.as_bytes()[shown..])
    }
}

/// Returns the width of `text` in terminal columns.
pub fn width(text: &str) -> usize {
    text.width()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_control_characters_are_escaped() {
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
    fn json_escapes_terminal_control_characters_and_keeps_the_text() {
        let text = "größe 重み e\u{301} \"q\" \\ a\0\t\u{1b}[31m\u{7f}\u{9b}2J\u{202e}x\u{200b}\u{e0001}";
        let mut json = Vec::new();
        write_json(&mut json, &[text]).unwrap();
        let shown = str::from_utf8(&json).unwrap();
        let expected = "[\"größe 重み e\u{301} \\\"q\\\" \\\\ a\\u0000\\t\\u001b[31m\\u007f\\u009b2J\\u202ex\\u200b\\udb40\\udc01\"]\n";
        assert_eq!(shown, expected);
        assert_eq!(serde_json::from_slice::<[String; 1]>(&json).unwrap(), [text]);
    }

    #[test]
    fn long_text_loses_its_middle() {
        assert_eq!(shortened("abcdef", 6), "abcdef");
        assert_eq!(shortened("abcdefg", 6), "abc…fg");
        assert_eq!(shortened("abcdefg", 1), "…");
        assert_eq!(shortened("重重重重", 7), "重…重", "each is two columns wide");
        assert_eq!(shortened("", 0), "");
        assert_eq!(shortened("\u{1b}bc", 8), r"\u{1b}bc", "as wide as is allowed");
        assert_eq!(shortened("\u{1b}bc", 7), r"\u{…}bc");
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        for hostile in ["x".repeat(60_000), "\u{301}".repeat(60_000), "\u{1b}".repeat(60_000)] {
            let shown = shortened(&hostile, WIDTH);
            assert!(shown.contains(ELLIPSIS) && width(&shown) <= WIDTH && shown.len() < 8 * WIDTH, "{shown}");
        }
    }
}
