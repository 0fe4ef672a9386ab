//! A chat of one answer, from its submission to the response in any API's form.

use std::sync::Arc;

use axum::Json;
use axum::response::Response;
use serde::Serialize;

use super::answer::{Answer, AnswerReader};
use super::events::{AnswerEvents, EventWriter};
use crate::api::openai::answer::record_end;
use crate::api::openai::chat::{Chat, Submitted};
use crate::api::openai::choice::RunningChoice;
use crate::error::{ApiError, ErrorKind};
use crate::http::accounting::RequestAccounting;
use crate::http::sse;
use crate::state::AppState;
use crate::tool_calls::Plan;

/// An answer while it is generated.
pub struct RunningAnswer {
    choice: RunningChoice,
    reader: AnswerReader,
    accounting: RequestAccounting,
}

impl RunningAnswer {
    /// Renders the conversation and submits it.
    pub async fn submit(
        chat: Chat,
        state: &AppState,
        mut accounting: RequestAccounting,
    ) -> Result<Self, ApiError> {
        let with_logprobs = chat.logprobs.is_some();
        let Submitted { choices, plan } = chat.submit(state, &mut accounting).await?;
        let parser = plan.as_ref().map(Plan::parser);
        let logprobs = with_logprobs.then(|| Arc::clone(state.tokenizer()));
        let reader = AnswerReader::new(parser, logprobs, accounting.prompt_tokens as u64);
        let choice = choices
            .into_iter()
            .next()
            .ok_or_else(|| ApiError::new(ErrorKind::Internal, "no choice was generated"))?;
        Ok(Self {
            choice,
            reader,
            accounting,
        })
    }

    /// Its events, which record how it ended.
    pub fn events<W: EventWriter>(self, writer: W) -> AnswerEvents<W> {
        AnswerEvents::new(
            writer,
            self.choice,
            self.reader,
            record_end(self.accounting),
        )
    }

    /// A response that streams its events. `keep_alive`: event that breaks a silence.
    pub fn stream<W: EventWriter>(self, writer: W, keep_alive: &'static [u8]) -> Response {
        let head = self.accounting.clone();
        let mut response = sse::kept_alive_by(keep_alive, self.events(writer));
        head.write_for_stream(response.headers_mut());
        response
    }

    /// A response with the whole answer in the form of `body`.
    pub async fn whole<B: Serialize>(
        mut self,
        body: impl FnOnce(Answer) -> B,
    ) -> Result<Response, ApiError> {
        let (answer, finish) = self.reader.read(&mut self.choice).await?;
        self.accounting.add(&finish);
        Ok(self.accounting.respond(Json(body(answer))))
    }
}
