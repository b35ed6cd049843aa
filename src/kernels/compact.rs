//! Removes comments and indentation from WGSL at compile time, for modules that a page downloads: a third of the text is
//! comments.

/// Evaluates to the text of a file without its comments.
macro_rules! compact_str {
    ($path:expr) => {{
        const TEXT: &[u8] = include_bytes!($path);
        const PADDED: ([u8; TEXT.len()], usize) = $crate::kernels::compact::without_comments(TEXT);
        const COMPACT: [u8; PADDED.1] = $crate::kernels::compact::first(&PADDED.0);
        match std::str::from_utf8(&COMPACT) {
            Ok(text) => text,
            Err(_) => unreachable!(),
        }
    }};
}
#[cfg(target_family = "wasm")]
pub(super) use compact_str;

/// Copies a text without comments and indentation, but keeps the entries of the header that put kernels together. Returns the copy
/// and its length.
pub(super) const fn without_comments<const N: usize>(text: &[u8]) -> ([u8; N], usize) {
    let mut copy = [0; N];
    let (mut at, mut len) = (0, 0);
    while at < text.len() {
        while at < text.len() && text[at] == b' ' {
            at += 1;
        }
        let is_comment = starts_with(text, at, b"//");
        let is_entry = is_entry(text, at);
        let start = len;
        while at < text.len() && text[at] != b'\n' && (is_entry || !starts_with(text, at, b"//")) {
            copy[len] = text[at];
            len += 1;
            at += 1;
        }
        while at < text.len() && text[at] != b'\n' {
            at += 1;
        }
        while len > start && copy[len - 1] == b' ' {
            len -= 1;
        }
        if at < text.len() && (is_entry || !is_comment) {
            copy[len] = b'\n';
            len += 1;
        }
        at += 1;
    }
    (copy, len)
}

/// Returns the first elements of an array.
pub(super) const fn first<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut to = [0; N];
    let mut at = 0;
    while at < N {
        to[at] = from[at];
        at += 1;
    }
    to
}

/// Returns whether a line is an entry of the header that puts kernels together. `provides:` is for readers.
const fn is_entry(text: &[u8], at: usize) -> bool {
    starts_with(text, at, b"// requires:")
        || starts_with(text, at, b"// binds:")
        || starts_with(text, at, b"// constants:")
}

const fn starts_with(text: &[u8], at: usize, start: &[u8]) -> bool {
    if at + start.len() > text.len() {
        return false;
    }
    let mut index = 0;
    while index < start.len() {
        if text[at + index] != start[index] {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use crate::kernels::snippet::{PRODUCER, SNIPPETS, Snippet};

    #[test]
    fn the_macro_removes_comments() {
        const COMPACT: &str = compact_str!("../../shaders/norms/power.wgsl");
        let full = include_str!("../../shaders/norms/power.wgsl");
        assert!(COMPACT.len() < full.len() && !COMPACT.contains("Powers easily leave"));
    }

    #[test]
    fn every_snippet_keeps_its_code_and_its_header() {
        let code = |text: &str| {
            // WGSL has no strings, in which this would be no comment.
            let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
            let lines = lines.filter(|line| !line.is_empty());
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        for full in SNIPPETS.iter().chain([&PRODUCER]) {
            const MOST: usize = 1 << 14;
            let (copy, len) = super::without_comments::<MOST>(full.text.as_bytes());
            let compact: &'static str = String::from_utf8(copy[..len].to_vec()).unwrap().leak();
            assert_eq!(code(compact), code(full.text), "{}", full.path);
            let compact = Snippet { path: full.path, text: compact };
            assert!(compact.requires().eq(full.requires()), "{}", full.path);
            assert!(compact.binds().eq(full.binds()), "{}", full.path);
            assert!(compact.constants().eq(full.constants()), "{}", full.path);
        }
    }
}
