//! Matches names against patterns with the wildcards `*` and `?`.

/// Whether `pattern` matches the whole `name`. `*` matches any characters, `?` matches one character.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let [pattern, name] = [pattern, name].map(|text| text.chars().collect::<Vec<_>>());
    let (mut at, mut matched) = (0, 0);
    // The position after the last star, and the start of the match of the rest in the name. Backtracking to earlier
    // stars is never necessary.
    let mut star = None;
    while matched < name.len() {
        match pattern.get(at) {
            Some('*') => {
                at += 1;
                star = Some((at, matched));
            }
            Some(&wanted) if wanted == '?' || wanted == name[matched] => {
                (at, matched) = (at + 1, matched + 1);
            }
            _ => {
                let Some((after, tried)) = &mut star else { return false };
                *tried += 1;
                (at, matched) = (*after, *tried);
            }
        }
    }
    pattern[at..].iter().all(|&rest| rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name) in [
            ("", ""),
            ("*", ""),
            ("**", "head"),
            ("head", "head"),
            ("h*d", "hd"),
            ("*.w*", "a.b.weight"),
            ("?.b", "ä.b"),
            ("*ab", "aab"),
            ("*a*ab*", "aaab"),
            ("a*b?d*", "abbbdbcd"),
            ("?*?", "ab"),
        ] {
            assert!(matches(pattern, name), "{pattern:?} matches {name:?}");
        }
        for (pattern, name) in [
            ("", "a"),
            ("?", ""),
            ("head", "heads"),
            ("ead", "head"),
            ("h*d", "head2"),
            ("a?", "a"),
            ("A", "a"),
            ("*a*ab", "aaba"),
            ("?*?", "a"),
            ("a*", "ba"),
        ] {
            assert!(!matches(pattern, name), "{pattern:?} does not match {name:?}");
        }
    }
}
