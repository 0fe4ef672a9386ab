//! Fields that this server does not read although they would change the answer: refused, where others that nobody knows
//! are ignored.

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::error::ApiError;

/// A field of a body that is not read, and what to tell who sends it.
#[derive(Debug, Clone, Copy)]
pub struct UnsupportedField {
    pub name: &'static str,
    pub remedy: Remedy,
}

/// What the client can do instead.
#[derive(Debug, Clone, Copy)]
pub enum Remedy {
    /// Nothing: this version cannot do it.
    LeaveOut,
    /// Put it into this object.
    MoveInto(&'static str),
    /// Call it this.
    Rename(&'static str),
}

impl UnsupportedField {
    /// A field that another server reads and this one cannot.
    pub const fn unsupported(name: &'static str) -> Self {
        UnsupportedField {
            name,
            remedy: Remedy::LeaveOut,
        }
    }

    /// A field that has another name here.
    pub const fn renamed(name: &'static str, here: &'static str) -> Self {
        UnsupportedField {
            name,
            remedy: Remedy::Rename(here),
        }
    }

    /// A field that stands in `object` here.
    pub const fn misplaced(name: &'static str, object: &'static str) -> Self {
        UnsupportedField {
            name,
            remedy: Remedy::MoveInto(object),
        }
    }

    fn error(&self) -> ApiError {
        let name = self.name;
        let message = match self.remedy {
            Remedy::LeaveOut => format!("`{name}` is not supported by this version; leave it out"),
            Remedy::MoveInto(object) => format!("`{name}` must stand in `{object}`"),
            Remedy::Rename(here) => format!("`{name}` is called `{here}` here"),
        };
        ApiError::validation(name, message)
    }
}

/// Refuses `body`, a JSON object that has been parsed before, when it has one of `fields` with a value that asks for
/// something.
pub fn check(body: &[u8], fields: &[UnsupportedField]) -> Result<(), ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    match deserializer.deserialize_map(Finder(fields)) {
        Ok(Some(field)) => Err(field.error()),
        Ok(None) | Err(_) => Ok(()),
    }
}

struct Finder<'a>(&'a [UnsupportedField]);

impl<'de, 'a> Visitor<'de> for Finder<'a> {
    type Value = Option<&'a UnsupportedField>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            match self.0.iter().find(|field| field.name == key) {
                Some(field) if asks_for_something(&map.next_value()?) => found = Some(field),
                Some(_) => {}
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// `null`, `false`, 0 and what is empty say what leaving the field out would.
fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[UnsupportedField] = &[
        UnsupportedField::unsupported("guided_json"),
        UnsupportedField::renamed("max_new_tokens", "max_tokens"),
        UnsupportedField::misplaced("top_p", "parameters"),
    ];

    fn refused(body: &str) -> Option<String> {
        check(body.as_bytes(), FIELDS)
            .err()
            .map(|error| error.message)
    }

    #[test]
    fn an_unsupported_field_is_refused_with_advice() {
        for (body, words) in [
            (r#"{"a": [1], "guided_json": {}}"#, "leave it out"),
            (r#"{"max_new_tokens": 5, "b": 1}"#, "called `max_tokens`"),
            (r#"{"top_p": 0.5}"#, "must stand in `parameters`"),
        ] {
            let message = refused(body).unwrap_or_default();
            assert!(message.contains(words), "{body}: {message}");
        }
    }

    #[test]
    fn neutral_values_and_inner_fields_are_accepted() {
        for body in [
            "{}",
            r#"{"guided_json": null}"#,
            r#"{"guided_json": false, "max_new_tokens": 0, "top_p": []}"#,
            r#"{"parameters": {"top_p": 0.5}, "nobody_knows": 1}"#,
        ] {
            assert_eq!(refused(body), None, "{body}");
        }
    }
}
