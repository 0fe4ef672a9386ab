//! A field that is a text or a list. Errors inside of the list keep the path of their field, which serde's untagged enums
//! lose.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A text, or a list of parts.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum TextOrList<T> {
    /// A text alone.
    Text(String),
    /// Parts, in order.
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOrList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrListVisitor(PhantomData))
    }
}

struct TextOrListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrListVisitor<T> {
    type Value = TextOrList<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string or an array")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(TextOrList::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(TextOrList::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(TextOrList::List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Holder {
        #[allow(dead_code)]
        field: Option<TextOrList<u32>>,
    }

    fn path_of_error(body: &str) -> String {
        let reader = &mut serde_json::Deserializer::from_str(body);
        let error = serde_path_to_error::deserialize::<_, Holder>(reader).expect_err("a bad body");
        error.path().to_string()
    }

    #[test]
    fn texts_and_lists_are_read_and_nothing_else() {
        let read = |text: &str| serde_json::from_str::<TextOrList<u32>>(text);
        assert_eq!(read("\"a\"").ok(), Some(TextOrList::Text("a".into())));
        assert_eq!(read("[1, 2]").ok(), Some(TextOrList::List(vec![1, 2])));
        for wrong in ["1", "{}", "null", "true"] {
            let error = read(wrong).expect_err("a refusal").to_string();
            assert!(error.contains("a string or an array"), "{error}");
        }
    }

    #[test]
    fn an_error_in_the_list_has_its_path() {
        assert_eq!(path_of_error(r#"{"field": [1, "x"]}"#), "field[1]");
        assert_eq!(path_of_error(r#"{"field": {}}"#), "field");
    }
}
