//! Strict JSON and its canonical form (OLPC, as TUF signs it).
//!
//! One document has one reading: duplicate keys and floating-point numbers are refused, so what was signed is what is used.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// A JSON value without floating-point numbers and without duplicate keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number in the range of `i64` or `u64`.
    Integer(i128),
    /// Text
    String(String),
    /// `[…]`
    Array(Vec<Json>),
    /// `{…}`, sorted by key; bytes of UTF-8 sort like code points, which is the canonical order.
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// Reads one document. Nesting is limited to 128 levels.
    ///
    /// # Errors
    /// The reason as text: not JSON, a duplicate key, a fraction, nested too deeply.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The value of a key, if this is an object that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.get(key),
            _ => None,
        }
    }

    /// The text, if this is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if this is a whole number of 0 or more.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Canonical JSON: sorted keys, no spaces, only `"` and `\` escaped. These bytes are signed and hashed.
    ///
    /// ```
    /// let json = ocelli_tuf::Json::parse(br#"{ "b": [1, true], "a": "x\n\"" }"#).unwrap();
    /// assert_eq!(json.canonical(), b"{\"a\":\"x\n\\\"\",\"b\":[1,true]}");
    /// ```
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_canonical(&mut out);
        out
    }

    fn write_canonical(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Self::String(text) => write_string(text, out),
            Self::Array(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write_canonical(out);
                }
                out.push(b']');
            }
            Self::Object(members) => {
                out.push(b'{');
                for (index, (key, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    write_string(key, out);
                    out.push(b':');
                    value.write_canonical(out);
                }
                out.push(b'}');
            }
        }
    }
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// The canonical form of anything that serialises to strict JSON: what a role or a key is signed or named by.
///
/// # Errors
/// The value holds a fraction or a map whose keys are no strings.
pub(crate) fn canonical(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    Ok(Json::parse(&serde_json::to_vec(value)?)?.canonical())
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON without fractions")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Integer(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = BTreeMap::new();
        while let Some(key) = members.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(de::Error::custom(format_args!("the key \"{key}\" is there twice")));
            }
            object.insert(key, members.next_value()?);
        }
        Ok(Json::Object(object))
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => serializer.serialize_u64(value),
                (_, Ok(value)) => serializer.serialize_i64(value),
                _ => Err(serde::ser::Error::custom("a number needs more than 64 bits")),
            },
            Self::String(value) => serializer.serialize_str(value),
            Self::Array(items) => serializer.collect_seq(items),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (key, value) in members {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form_equals_the_reference_implementation() {
        // Expected values: securesystemslib 1.4.0, `encode_canonical`.
        let cases: [(&str, &str); 6] = [
            ("{}", "{}"),
            (r#"{"z":1,"a":[true,false,null]}"#, r#"{"a":[true,false,null],"z":1}"#),
            (r#""a\"b\\c\/d""#, r#""a\"b\\c/d""#),
            ("\"tab\\tnew\\nline\"", "\"tab\tnew\nline\""),
            (r#"{"\u00e9":1,"z":2,"Z":3}"#, "{\"Z\":3,\"z\":2,\"é\":1}"),
            ("[-3, 0, 18446744073709551615]", "[-3,0,18446744073709551615]"),
        ];
        for (input, expected) in cases {
            let canonical = Json::parse(input.as_bytes()).unwrap().canonical();
            assert_eq!(String::from_utf8(canonical).unwrap(), expected, "{input}");
        }
    }

    #[test]
    fn refuses_documents_with_two_readings() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let cases = [
            (r#"{"a":1,"a":2}"#, "there twice"),
            (r#"{"a":1,"\u0061":2}"#, "there twice"),
            ("1.5", "floating point"),
            ("1e3", "floating point"),
            ("18446744073709551616", "floating point"),
            (r#"{"a":1} {"a":2}"#, "trailing"),
            (r#""\ud800""#, "hex escape"),
            (&deep, "recursion"),
            ("\u{feff}{}", "expected value"),
        ];
        for (input, reason) in cases {
            let message = Json::parse(input.as_bytes()).map_err(|error| error.to_string());
            assert!(
                message.as_ref().is_err_and(|m| m.contains(reason)),
                "{input:.20}: {message:?}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn reading_what_was_written_gives_the_same_value(text in "\\PC*", number: i64, flag: bool) {
            let value = Json::Object(BTreeMap::from([
                (text.clone(), Json::Array(vec![Json::Integer(number.into()), Json::Bool(flag)])),
                ("k".to_owned(), Json::String(text)),
            ]));
            let written = serde_json::to_vec(&value).unwrap();
            proptest::prop_assert_eq!(Json::parse(&written).unwrap(), value);
        }
    }
}
