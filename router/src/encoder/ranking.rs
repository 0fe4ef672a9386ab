//! Ranking of texts by how well they answer a query.

use std::sync::Arc;

use gridwork_engine::{GenerationError, Output};

use super::{EncoderService, EncodingUsage, Input, Preparation};
use crate::error::{ApiError, ErrorKind};

/// A text's place in a ranking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankedText {
    /// Index among the texts of the request.
    pub index: usize,
    pub logit: f32,
}

/// Refuses an empty query.
pub fn check_query(query: &str) -> Result<(), ApiError> {
    if !query.is_empty() {
        return Ok(());
    }
    Err(ApiError {
        field: Some("query".into()),
        ..ApiError::new(ErrorKind::Empty, "`query` cannot be empty")
    })
}

impl EncoderService {
    /// Ranks `texts` by how well they answer `query`, best first.
    pub async fn rank(
        &self,
        query: &str,
        texts: &[String],
        preparation: Preparation,
    ) -> Result<(Vec<RankedText>, EncodingUsage), ApiError> {
        let query: Arc<str> = query.into();
        let pairs = texts
            .iter()
            .map(|text| Input::Pair(query.clone(), text.clone()));
        let encoded = self
            .encode(pairs.collect(), preparation, Output::Labels.into(), |_| {
                Ok(())
            })
            .await?;
        let mut logits = Vec::with_capacity(encoded.results.len());
        for result in &encoded.results {
            let &[logit] = &result.values[..] else {
                let number = result.values.len();
                let message = format!("the shard gave {number} scores for a text");
                return Err(GenerationError::Shard(message).into());
            };
            logits.push(logit);
        }
        Ok((ranked(&logits), encoded.usage))
    }
}

/// Sorts by the logits, since the sigmoids of large ones are equal.
fn ranked(logits: &[f32]) -> Vec<RankedText> {
    let mut ranked: Vec<RankedText> = logits
        .iter()
        .enumerate()
        .map(|(index, &logit)| RankedText { index, logit })
        .collect();
    ranked.sort_by(|a, b| b.logit.total_cmp(&a.logit));
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_texts_come_first_and_equal_ones_in_their_order() {
        let order: Vec<usize> = ranked(&[40.0, 50.0, 40.0])
            .iter()
            .map(|text| text.index)
            .collect();
        assert_eq!(order, [1, 0, 2]);
    }
}
