//! Numbers in JSON. JSON has no infinities, no NaN, and JavaScript writes no -0: these are `{"number": "Infinity"}`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// An f32, rounded from JavaScript's f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Number(pub(crate) f32);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl<'de> Visitor<'de> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_f64<E>(self, number: f64) -> Result<Number, E> {
        Ok(Number(number as f32))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
        Ok(Number(number as f32))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
        Ok(Number(number as f32))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Number, A::Error> {
        let special = match map.next_entry::<String, String>()? {
            Some((key, text)) if key == "number" => text.parse().ok(),
            _ => None,
        };
        special.map(Number).ok_or_else(|| A::Error::custom("invalid type: an object, expected a number"))
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(number) = *self;
        if number.is_finite() {
            // The shortest digits of an f32 are another f64.
            return serializer.serialize_f64(number.into());
        }
        let mut map = serializer.serialize_map(Some(1))?;
        let text = if number.is_nan() { "NaN" } else if number > 0.0 { "Infinity" } else { "-Infinity" };
        map.serialize_entry("number", text)?;
        map.end()
    }
}
