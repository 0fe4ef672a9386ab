//! Inputs of encoders, in the forms that clients send them in.

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use utoipa::ToSchema;

use crate::encoder::Input;

/// One input or several: texts, or token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    pub items: Vec<Input>,
    /// Whether there was one that stood by itself rather than in an array.
    pub is_single: bool,
}

/// The forms that [`Inputs`] come in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum InputsForm {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    Many(Vec<Vec<u32>>),
    Mixed(Vec<InputForm>),
}

/// A text or token ids.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum InputForm {
    Text(String),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = InputsForm::deserialize(deserializer).map_err(|error| {
            unless_missing(
                error,
                "expected a string, an array of token ids, or an array of strings and arrays of token ids",
            )
        })?;
        let (items, is_single) = match form {
            InputsForm::Text(text) => (vec![Input::Text(text)], true),
            // An empty array has no inputs, rather than one that is empty.
            InputsForm::Tokens(ids) if ids.is_empty() => (vec![], false),
            InputsForm::Tokens(ids) => (vec![Input::Tokens(ids)], true),
            InputsForm::Texts(texts) => (texts.into_iter().map(Input::Text).collect(), false),
            InputsForm::Many(ids) => (ids.into_iter().map(Input::Tokens).collect(), false),
            InputsForm::Mixed(items) => (
                items
                    .into_iter()
                    .map(|item| match item {
                        InputForm::Text(text) => Input::Text(text),
                        InputForm::Tokens(ids) => Input::Tokens(ids),
                    })
                    .collect(),
                false,
            ),
        };
        Ok(Inputs { items, is_single })
    }
}

/// The error of a value that has none of the forms that are allowed; that of a field which is not there stays.
pub fn unless_missing<E: Error>(error: E, forms: &str) -> E {
    if error.to_string().starts_with("missing field") {
        error
    } else {
        E::custom(forms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(json: &str) -> Result<Inputs, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn inputs_are_single_or_in_arrays() {
        let text = |text: &str| Input::Text(text.into());
        for (json, items, is_single) in [
            (r#""a""#, vec![text("a")], true),
            ("[1, 2]", vec![Input::Tokens(vec![1, 2])], true),
            (r#"["a", "b"]"#, vec![text("a"), text("b")], false),
            (
                "[[1], [2]]",
                vec![Input::Tokens(vec![1]), Input::Tokens(vec![2])],
                false,
            ),
            (
                r#"["a", [2]]"#,
                vec![text("a"), Input::Tokens(vec![2])],
                false,
            ),
            ("[]", vec![], false),
        ] {
            assert_eq!(inputs(json), Ok(Inputs { items, is_single }), "{json}");
        }
        for json in ["3", "[-1]", r#"["a", 1]"#, "{}", "[[\"a\"]]", "[1.5]"] {
            let message = inputs(json).expect_err(json);
            assert!(message.contains("expected a string"), "{message}");
        }
    }
}
