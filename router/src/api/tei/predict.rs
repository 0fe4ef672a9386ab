//! `/predict`: labels of texts, or tokens for masks.

use axum::response::Response;
use gridwork_engine::{EncodeSequence, Encoded, Output, Wanted};
use gridwork_proto::v1::{InfoResponse, Task};
use serde::Serialize;
use utoipa::ToSchema;

use super::types::{PredictRequest, Prediction};
use crate::encoder::{EncodingUsage, Input, Preparation, label_scores};
use crate::error::{ApiError, ErrorResponse};
use crate::http::route::{LISTED, Received};
use crate::state::AppState;

/// Default number of tokens for each mask.
const DEFAULT_TOP_K: u32 = 5;
/// Maximum number of tokens for each mask.
const MAX_TOP_K: u32 = 100;

/// Predictions of one input: a list of labels or tokens, or a list for each of several masks.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum InputPredictions {
    One(Vec<Prediction>),
    Many(Vec<Vec<Prediction>>),
}

/// Predictions of a single input, or of several.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PredictResponse {
    One(InputPredictions),
    Many(Vec<InputPredictions>),
}

/// Classify texts or pairs of texts; with a masked language model, fill in masks.
#[utoipa::path(
    post, path = LISTED, request_body = PredictRequest,
    responses(
        (status = 200, description = "For each input its labels, or the likeliest tokens, best first", body = PredictResponse),
        (status = 400, description = "Nothing to predict for, or the model does not predict", body = ErrorResponse),
        (status = 413, description = "Too long, too many, or no mask", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn predict(call: Received<PredictRequest>) -> Result<Response, ApiError> {
    let (state, arrival, mut request, accounting) = call.begin_encoding();
    request.adopt_parameters()?;
    let encoder = state.encoder();
    let info = arrival.encoder(&state)?;
    let raw = request.raw_scores.unwrap_or(false);
    let top_k = top_k(request.top_k, &info)?;
    let preparation = Preparation {
        truncation: encoder.truncation(request.truncate, request.truncation_direction),
        ..encoder.preparation(&info, "inputs")
    };
    let items = request.inputs.items;
    let (answers, usage) = if info.task() == Task::FillMask {
        fill_masks(&state, items, preparation, top_k, raw).await?
    } else {
        let encoded = encoder
            .encode(items, preparation, Output::Labels.into(), |_| Ok(()))
            .await?;
        let most = if top_k == 0 {
            usize::MAX
        } else {
            top_k as usize
        };
        let results = encoded.results.into_iter();
        let answers = results.map(|result| {
            let mut labels = labels(result.values, raw, &info);
            labels.truncate(most);
            InputPredictions::One(labels)
        });
        (answers.collect(), encoded.usage)
    };
    let response = if request.inputs.is_single {
        let first = answers.into_iter().next();
        PredictResponse::One(first.unwrap_or(InputPredictions::One(vec![])))
    } else {
        PredictResponse::Many(answers)
    };
    Ok(accounting.respond_encoded(&response, &usage))
}

/// The likeliest tokens for the masks of each input.
async fn fill_masks(
    state: &AppState,
    inputs: Vec<Input>,
    preparation: Preparation,
    top_k: u32,
    raw: bool,
) -> Result<(Vec<InputPredictions>, EncodingUsage), ApiError> {
    let mask = state.encoder().mask().ok_or_else(|| {
        let message = "the model's tokenizer_config.json names no mask_token to fill in";
        ApiError::validation("inputs", message)
    })?;
    let wanted = Wanted {
        output: Output::Tokens,
        top_n: top_k,
    };
    // Kept where a single mask is filled in, to show the text with the token in its place.
    let with_one_mask: Vec<Option<String>> = inputs
        .iter()
        .map(|input| match input {
            Input::Text(text) if text.matches(mask.1).count() == 1 => Some(text.clone()),
            _ => None,
        })
        .collect();
    let encoded = state
        .encoder()
        .encode(inputs, preparation, wanted, |sequence| {
            find_masks(sequence, mask)
        })
        .await?;
    let text_of = |id: u32| {
        let text = state.tokenizer().decode(&[id], false);
        text.unwrap_or_default().trim().to_owned()
    };
    let results = encoded.results.iter().zip(with_one_mask);
    let answers = results.map(|(result, sentence)| {
        let mut answer = masks(result, top_k, raw, text_of);
        if let (InputPredictions::One(tokens), Some(sentence)) = (&mut answer, sentence) {
            for token in tokens {
                token.sequence = Some(sentence.replacen(mask.1, &token.label, 1));
            }
        }
        answer
    });
    Ok((answers.collect(), encoded.usage))
}

/// Number of labels or tokens to answer; 0 for all.
fn top_k(wish: Option<u32>, info: &InfoResponse) -> Result<u32, ApiError> {
    if info.task() != Task::FillMask {
        return match wish {
            Some(0) => Err(ApiError::validation(
                "top_k",
                "`top_k` must be strictly positive",
            )),
            wish => Ok(wish.unwrap_or(0)),
        };
    }
    let limit = MAX_TOP_K.min(info.vocab_size);
    let top_k = wish.unwrap_or(DEFAULT_TOP_K.min(limit));
    if top_k == 0 || top_k > limit {
        return Err(ApiError::validation(
            "top_k",
            format!("`top_k` must be 1 to {limit}. Given: {top_k}"),
        ));
    }
    Ok(top_k)
}

/// Notes the positions of the masks in `sequence`, and refuses a sequence without any.
fn find_masks(sequence: &mut EncodeSequence, mask: (u32, &str)) -> Result<(), ApiError> {
    let (id, text) = mask;
    sequence.positions = (0..)
        .zip(&sequence.token_ids)
        .filter_map(|(position, &token)| (token == id).then_some(position))
        .collect();
    if sequence.positions.is_empty() {
        return Err(ApiError::validation(
            "inputs",
            format!("`inputs` must have `{text}` where a word is to be filled in"),
        ));
    }
    Ok(())
}

/// Predictions for the masks of one input.
fn masks(
    result: &Encoded,
    top_k: u32,
    raw: bool,
    text: impl Fn(u32) -> String,
) -> InputPredictions {
    let top_k = top_k as usize;
    let mut masks: Vec<Vec<Prediction>> = result
        .values
        .chunks(top_k)
        .zip(result.token_ids.chunks(top_k))
        .zip(&result.log_normalizers)
        .map(|((logits, ids), &log_normalizer)| {
            logits
                .iter()
                .zip(ids)
                .map(|(&logit, &id)| Prediction {
                    score: if raw {
                        logit
                    } else {
                        (logit - log_normalizer).exp()
                    },
                    label: text(id),
                    token: Some(id),
                    token_str: Some(text(id)),
                    sequence: None,
                })
                .collect()
        })
        .collect();
    if masks.len() == 1 {
        InputPredictions::One(masks.remove(0))
    } else {
        InputPredictions::Many(masks)
    }
}

/// Predicted labels of one input, best first.
fn labels(logits: Vec<f32>, raw: bool, info: &InfoResponse) -> Vec<Prediction> {
    let scores = if raw {
        logits
    } else {
        label_scores(info, &logits)
    };
    let mut predictions: Vec<Prediction> = scores
        .into_iter()
        .enumerate()
        .map(|(index, score)| Prediction {
            score,
            label: info
                .labels
                .get(index)
                .cloned()
                .unwrap_or_else(|| format!("LABEL_{index}")),
            token: None,
            token_str: None,
            sequence: None,
        })
        .collect();
    predictions.sort_by(|a, b| b.score.total_cmp(&a.score));
    predictions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> InfoResponse {
        InfoResponse {
            labels: vec!["bad".into(), "good".into()],
            ..Default::default()
        }
    }

    #[test]
    fn labels_come_best_first_as_probabilities_or_logits() {
        let predictions = labels(vec![0.0, 1.0], false, &names());
        assert_eq!(predictions[0].label, "good");
        let e = std::f32::consts::E;
        assert!((predictions[0].score - e / (1.0 + e)).abs() < 1e-6);
        assert!((predictions[0].score + predictions[1].score - 1.0).abs() < 1e-6);
        assert_eq!(labels(vec![0.0, 1.0], true, &names())[0].score, 1.0);
        assert_eq!(labels(vec![0.0], false, &names())[0].score, 0.5);
    }

    #[test]
    fn several_masks_have_a_list_each() {
        let mut result = Encoded {
            values: vec![2.0, 1.0, 5.0, 4.0],
            token_ids: vec![7, 8, 9, 6],
            log_normalizers: vec![2.0, 5.0],
            queue: Default::default(),
            inference: Default::default(),
        };
        let InputPredictions::Many(lists) = masks(&result, 2, false, |id| id.to_string()) else {
            panic!("two masks");
        };
        assert_eq!(lists[1][0].score, 1.0);
        assert_eq!(lists[1][1].label, "6");
        result.values.truncate(2);
        assert!(matches!(
            masks(&result, 2, false, |id| id.to_string()),
            InputPredictions::One(list) if list.len() == 2
        ));
    }

    #[test]
    fn a_text_without_a_mask_is_refused() {
        let mut sequence = EncodeSequence {
            token_ids: vec![1, 4, 2, 4],
            ..Default::default()
        };
        find_masks(&mut sequence, (4, "[MASK]")).expect("masks");
        assert_eq!(sequence.positions, [1, 3]);
        let error = find_masks(&mut sequence, (5, "[MASK]")).expect_err("no mask");
        assert!(error.message.contains("[MASK]"), "{error}");
    }
}
