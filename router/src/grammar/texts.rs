//! Judges if texts follow a JSON schema as it is enforced: for tests that compare the grammar with the specification.

use std::str::FromStr;
use std::sync::Arc;

use gridwork_engine::TokenTable;
use llguidance::Matcher;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::Grammar;
use super::check::{Checker, Refusal};

/// A schema and the texts to judge.
#[derive(Debug, Deserialize)]
pub struct Question {
    pub schema: Value,
    pub texts: Vec<String>,
}

/// The fate of the schema, and of each text.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The schema cannot be enforced.
    Refused { field: String, reason: String },
    /// For each text, whether the grammar allows it as a whole answer.
    Accepted(Vec<bool>),
}

/// Judges texts, with a token for each byte.
pub struct Judge {
    checker: Checker,
    tokens: Arc<TokenTable>,
}

impl Judge {
    /// Errors are the library's.
    pub fn new() -> Result<Self, String> {
        let vocab: Map<String, Value> = (0..=u8::MAX)
            .map(|byte| (format!("<0x{byte:02X}>"), json!(byte)))
            .collect();
        let tokenizer = json!({"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"},
                               "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        let tokenizer =
            Tokenizer::from_str(&tokenizer.to_string()).map_err(|error| error.to_string())?;
        let tokens = Arc::new(TokenTable::of(&tokenizer));
        let checker = Checker::new(tokens.clone(), tokens.len() as u32, &[])?;
        Ok(Judge { checker, tokens })
    }

    /// Judges by the grammar that a request with this schema gets. Errors are the library's.
    pub fn judge(&self, question: &Question) -> Result<Verdict, String> {
        let grammar = Grammar::from_json_schema("schema", question.schema.clone());
        let serialized = grammar.serialized(&self.tokens);
        if let Err(Refusal { field, reason }) = self.checker.check(&grammar, &serialized) {
            return Ok(Verdict::Refused { field, reason });
        }
        let matcher = self.checker.matcher(&serialized)?;
        let texts = question.texts.iter();
        let verdicts: Result<Vec<bool>, String> = texts
            .map(|text| follows(matcher.deep_clone(), text))
            .collect();
        Ok(Verdict::Accepted(verdicts?))
    }
}

fn follows(mut matcher: Matcher, text: &str) -> Result<bool, String> {
    let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
    let taken = matcher.try_consume_tokens(&bytes);
    let taken = taken.map_err(|error| error.to_string())?;
    let ends = matcher.is_accepting().map_err(|error| error.to_string())?;
    Ok(taken == bytes.len() && ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_judged_as_a_whole() {
        let judge = Judge::new().unwrap();
        let texts = ["\"é\"", "\"éé\"", "\"", "1"].map(str::to_owned).to_vec();
        let schema = json!({"type": "string", "maxLength": 1});
        let verdict = judge.judge(&Question { schema, texts }).unwrap();
        assert_eq!(verdict, Verdict::Accepted(vec![true, false, false, false]));
        let question = Question {
            schema: json!({"items": {"not": {}}}),
            texts: Vec::new(),
        };
        let verdict = judge.judge(&question).unwrap();
        assert!(
            matches!(&verdict, Verdict::Refused { field, .. } if field == "schema.items"),
            "{verdict:?}"
        );
    }
}
