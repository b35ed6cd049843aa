//! Parses byte sizes such as `64KiB`.

use crate::text::quoted;

/// Parses a byte size such as `65536`, `64K`, `64KiB` or `1GiB`. Units are powers of 1024.
pub fn parse(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: usize =
        digits.trim().parse().map_err(|error| format!("{} is not a number: {error}", quoted(digits)))?;
    let unit = match text[digits.len()..].to_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        unit => return Err(format!("{} is not a unit; the units are K, M, G and T", quoted(unit))),
    };
    number.checked_mul(1 << unit).ok_or_else(|| format!("{} is too large", quoted(text)))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("65536", 65536),
            ("64K", 65536),
            ("64KiB", 65536),
            ("2 MiB", 2 << 20),
            ("1g", 1 << 30),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "1.5G", "1X", "-1", "99999999999T"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
