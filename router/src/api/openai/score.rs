//! `POST /v1/score`: how well texts answer or resemble others, in vLLM's form.

use std::sync::Arc;

use axum::response::Response;
use gridwork_engine::Output;
use gridwork_proto::v1::Task;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::embeddings::PromptUsage;
use super::prompt_cut::{Cut, preparation};
use super::submit::unix_time_s;
use crate::encoder::{EncodedInputs, Input, cosine, label_scores};
use crate::error::{ApiError, ErrorKind};
use crate::http::extract::Body;
use crate::http::route::{LISTED, Received};
use crate::http::unsupported::UnsupportedField;

/// Body of `/v1/score`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ScoreRequest {
    /// Any name, or none: one model is served.
    #[expect(dead_code, reason = "documented and accepted, but there is one model")]
    pub model: Option<String>,
    /// A text or several: queries of a reranker.
    #[serde(alias = "queries")]
    pub text_1: Texts,
    /// Texts to score: as many as `text_1`, or any number for a single `text_1`.
    #[serde(alias = "documents", alias = "items")]
    pub text_2: Texts,
    /// Cut inputs that are too long instead of refusing them; left out: as `--auto-truncate` says.
    pub truncate: Option<bool>,
    /// Number of tokens that inputs are cut to; -1 for the model's maximum.
    #[schema(minimum = -1)]
    pub truncate_prompt_tokens: Option<i64>,
}

impl Body for ScoreRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

/// A text or several.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Scores in the order of the texts.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScoreList {
    pub id: String,
    #[schema(example = "list")]
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub data: Vec<Score>,
    pub usage: PromptUsage,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Score {
    pub index: usize,
    #[schema(example = "score")]
    pub object: String,
    /// Score of a reranker, as `/v1/rerank` gives it; cosine of the vectors' angle, of other models.
    pub score: f32,
}

/// Score texts
///
/// A reranker tells how well each `text_2` answers its `text_1`. A model of vectors tells how much they resemble each
/// other.
#[utoipa::path(
    post,
    path = LISTED,
    request_body = ScoreRequest,
    responses(
        (status = 200, description = "A score for each pair", body = ScoreList),
        (status = 400, description = "Not valid; `param` names the field"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn score(call: Received<ScoreRequest>) -> Result<Response, ApiError> {
    let (state, arrival, request, accounting) = call.begin_encoding();
    let encoder = state.encoder();
    let info = arrival.encoder(&state)?;
    let (queries, texts) = (request.text_1.into_vec(), request.text_2.into_vec());
    let by = Cut {
        truncate: request.truncate,
        truncate_prompt_tokens: request.truncate_prompt_tokens,
    };
    let num_texts = texts.len();
    let mut preparation = preparation(&state, &info, "text_2", num_texts, by)?;
    check_numbers(queries.len(), num_texts)?;
    let is_reranker = info.task() == Task::Rerank;
    let (inputs, output) = match is_reranker {
        true => (pairs(queries, texts), Output::Labels),
        false => {
            // The vectors of both sides are computed together.
            preparation.max_inputs = preparation.max_inputs.saturating_mul(2);
            let all = queries.into_iter().chain(texts);
            (all.map(Input::Text).collect(), Output::Vector)
        }
    };
    let encoded = encoder
        .encode(inputs, preparation, output.into(), |_| Ok(()))
        .await?;
    let scores = match is_reranker {
        true => label_scores_of(&encoded, |logits| label_scores(&info, logits)),
        false => cosines(&encoded, num_texts),
    }?;
    let data = scores.into_iter().enumerate().map(|(index, score)| Score {
        index,
        object: "score".into(),
        score,
    });
    let response = ScoreList {
        id: format!("score-{}", uuid::Uuid::new_v4().simple()),
        object: "list".into(),
        created: unix_time_s(),
        model: state.served_name().to_owned(),
        data: data.collect(),
        usage: PromptUsage::new(encoded.usage.tokens),
    };
    Ok(accounting.respond_encoded(&response, &encoded.usage))
}

/// Refuses numbers of texts that make no pairs.
fn check_numbers(queries: usize, texts: usize) -> Result<(), ApiError> {
    if queries == 1 || queries == texts {
        return Ok(());
    }
    Err(ApiError::validation(
        "text_1",
        format!(
            "`text_1` must have one text, or as many as `text_2`, which has {texts}. Given: {queries}"
        ),
    ))
}

fn pairs(queries: Vec<String>, texts: Vec<String>) -> Vec<Input> {
    let queries: Vec<Arc<str>> = queries.into_iter().map(Arc::from).collect();
    let pair = |(text, query): (String, &Arc<str>)| Input::Pair(query.clone(), text);
    texts
        .into_iter()
        .zip(queries.iter().cycle())
        .map(pair)
        .collect()
}

fn label_scores_of(
    encoded: &EncodedInputs,
    scores: impl Fn(&[f32]) -> Vec<f32>,
) -> Result<Vec<f32>, ApiError> {
    let score = |values: &[f32]| scores(values).first().copied();
    let scores = encoded.results.iter().map(|result| score(&result.values));
    scores
        .collect::<Option<_>>()
        .ok_or_else(|| ApiError::new(ErrorKind::Generation, "the shard gave no score for a text"))
}

/// Cosines of the last `num_texts` vectors with those before them, which are one or as many.
fn cosines(encoded: &EncodedInputs, num_texts: usize) -> Result<Vec<f32>, ApiError> {
    let split = encoded.results.len().checked_sub(num_texts);
    let halves = split.and_then(|split| encoded.results.split_at_checked(split));
    let (queries, texts) = halves
        .ok_or_else(|| ApiError::new(ErrorKind::Generation, "the shard gave too few vectors"))?;
    let pairs = texts.iter().zip(queries.iter().cycle());
    Ok(pairs
        .map(|(text, query)| cosine(&query.values, &text.values))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_query_is_for_all_texts_and_several_are_for_one_each() {
        let texts = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        let shown = |queries: &[&str]| -> Vec<String> {
            let pairs = pairs(texts(queries), texts(&["x", "y"]));
            pairs
                .iter()
                .map(|input| match input {
                    Input::Pair(query, text) => format!("{query}{text}"),
                    other => panic!("{other:?}"),
                })
                .collect()
        };
        assert_eq!(shown(&["a"]), ["ax", "ay"]);
        assert_eq!(shown(&["a", "b"]), ["ax", "by"]);
        assert!(check_numbers(1, 5).is_ok() && check_numbers(3, 3).is_ok());
        for wrong in [(0, 1), (2, 1), (2, 3)] {
            let error = check_numbers(wrong.0, wrong.1).expect_err("a refusal");
            assert_eq!(error.field.as_deref(), Some("text_1"));
        }
    }

    #[test]
    fn fields_have_the_names_of_both_versions() {
        for body in [
            r#"{"text_1": "a", "text_2": ["b"]}"#,
            r#"{"queries": "a", "documents": ["b"]}"#,
            r#"{"queries": "a", "items": ["b"]}"#,
        ] {
            let request: ScoreRequest = serde_json::from_str(body).expect("a request");
            assert_eq!(request.text_1, Texts::One("a".into()));
            assert_eq!(request.text_2, Texts::Many(vec!["b".into()]));
        }
    }
}
