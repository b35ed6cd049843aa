//! Serializes an f32 that may be infinite or NaN. Formats for people, such as JSON, have no such numbers: there it is one of the
//! strings `"inf"`, `"-inf"` and `"NaN"`.

use std::fmt;

use serde::{Deserializer, Serializer, de};

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature of serde's `with`")]
pub(crate) fn serialize<S: Serializer>(number: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    if number.is_finite() || !serializer.is_human_readable() {
        serializer.serialize_f32(*number)
    } else {
        serializer.collect_str(number)
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    if deserializer.is_human_readable() {
        deserializer.deserialize_any(Number)
    } else {
        deserializer.deserialize_f32(Number)
    }
}

struct Number;

impl de::Visitor<'_> for Number {
    type Value = f32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a number, "inf", "-inf" or "NaN""#)
    }

    fn visit_f32<E: de::Error>(self, number: f32) -> Result<f32, E> {
        Ok(number)
    }

    #[expect(clippy::cast_possible_truncation, reason = "serialized from an f32")]
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<f32, E> {
        Ok(number as f32)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<f32, E> {
        Ok(number as f32)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<f32, E> {
        Ok(number as f32)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<f32, E> {
        match text {
            "inf" => Ok(f32::INFINITY),
            "-inf" => Ok(f32::NEG_INFINITY),
            "NaN" => Ok(f32::NAN),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }
}

/// The same for a number that may be absent.
pub(crate) mod option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Number(#[serde(with = "super")] f32);

    #[expect(
        clippy::ref_option,
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature of serde's `with`"
    )]
    pub(crate) fn serialize<S: Serializer>(number: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
        number.map(Number).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
        let number = Option::<Number>::deserialize(deserializer)?;
        Ok(number.map(|Number(number)| number))
    }
}
