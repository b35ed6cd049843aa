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

/// Copies a text except for comments on lines of their own, and indentation. The entries of a header stay, and so do blank lines,
/// which end it. Returns the copy and its length.
pub(super) const fn without_comments<const N: usize>(text: &[u8]) -> ([u8; N], usize) {
    let mut copy = [0; N];
    let (mut at, mut len) = (0, 0);
    while at < text.len() {
        while at < text.len() && text[at] == b' ' {
            at += 1;
        }
        let keeps = !starts_with(text, at, b"//") || is_entry(text, at);
        let mut is_end = false;
        while at < text.len() && !is_end {
            is_end = text[at] == b'\n';
            if keeps {
                copy[len] = text[at];
                len += 1;
            }
            at += 1;
        }
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

/// Returns whether a comment is an entry of a header, or the continuation of one.
const fn is_entry(text: &[u8], at: usize) -> bool {
    starts_with(text, at, b"// provides:")
        || starts_with(text, at, b"// requires:")
        || starts_with(text, at, b"// binds:")
        || starts_with(text, at, b"// constants:")
        || starts_with(text, at, b"//   ")
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
    use crate::kernels::snippet::{SNIPPETS, Snippet};

    #[test]
    fn code_and_header_stay() {
        const COMPACT: &str = compact_str!("../../shaders/norms/power.wgsl");
        let full = Snippet::parse("norms/power", include_str!("../../shaders/norms/power.wgsl"));
        let compact = Snippet::parse("norms/power", COMPACT);
        assert_eq!(
            (&full.provides, &full.requires, &full.binds, &full.constants),
            (&compact.provides, &compact.requires, &compact.binds, &compact.constants)
        );
        assert!(COMPACT.len() < full.text.len() && !COMPACT.contains("Powers easily leave"));
    }

    #[test]
    fn every_snippet_keeps_its_code_and_its_header() {
        let code = |text: &str| {
            let lines =
                text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        for full in SNIPPETS.iter() {
            const MOST: usize = 1 << 14;
            let (copy, len) = super::without_comments::<MOST>(full.text.as_bytes());
            let compact: &'static str = String::from_utf8(copy[..len].to_vec()).unwrap().leak();
            assert_eq!(code(compact), code(full.text), "{}", full.path);
            let compact = Snippet::parse(full.path, compact);
            assert_eq!(compact.provides, full.provides, "{}", full.path);
            assert_eq!(compact.requires, full.requires, "{}", full.path);
            assert_eq!(compact.binds, full.binds, "{}", full.path);
            assert_eq!(compact.constants, full.constants, "{}", full.path);
        }
    }
}
