//! Answers, for the OpenAPI document, of paths where several routes answer: which one does, follows from the model's task
//! or from the body.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::tei::{EncoderToken, PredictResponse, Rank};
use crate::api::tgi::types::{GenerateResponse, SimpleToken};

/// Answer of `/`: texts of a generator; vectors, labels or ranks of an encoder.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it describes what other types are written as")]
pub enum AnswerByTask {
    Texts(Vec<GenerateResponse>),
    Vectors(Vec<Vec<f32>>),
    Labels(PredictResponse),
    Ranks(Vec<Rank>),
}

/// Answer of `/tokenize`: of a generator, of an encoder, in vLLM's form.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it describes what other types are written as")]
pub enum TokensByTask {
    OfText(Vec<SimpleToken>),
    OfTexts(Vec<Vec<EncoderToken>>),
    Counted(Map<String, Value>),
}
