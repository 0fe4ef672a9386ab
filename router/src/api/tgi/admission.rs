//! Admission of a request of either route that generates.

use crate::connections::intake;
use crate::error::ApiError;
use crate::generation::parameters::{FieldNames, Parameters, Prompt};
use crate::generation::validation::Valid;
use crate::http::accounting::RequestAccounting;
use crate::observability::telemetry::record_seed;
use crate::state::AppState;

/// Validates a request, and counts its prompt in `accounting`.
pub(super) async fn admit(
    state: &AppState,
    inputs: String,
    parameters: Parameters,
    accounting: &mut RequestAccounting,
) -> Result<Valid, ApiError> {
    accounting.prompt_chars = inputs.chars().count();
    let prompt = Prompt::Text {
        text: inputs,
        add_special_tokens: true,
    };
    let span = accounting.span.clone();
    let valid = state
        .validate(prompt, parameters, &FieldNames::TGI, span)
        .await?;
    intake::release_current();
    accounting.prompt_tokens = valid.prompt_ids().len();
    accounting.validation = valid.validation_time;
    if let Some(seed) = valid.seed {
        record_seed(&accounting.span, seed);
    }
    Ok(valid)
}
