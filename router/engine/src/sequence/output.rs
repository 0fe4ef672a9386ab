//! The output of a sequence: turns sampled tokens into the events of its client.

use std::time::Instant;

use gridwork_proto::v1::PromptLogprobs;

use super::Sequence;
use crate::error::GenerationError;
use crate::request::{
    Event, Finish, FinishReason, GeneratedToken, PromptLogprob, Timing, TopToken,
};
use crate::sequence::detokenizer::Vocabulary;
use crate::sequence::sampled::Sampled;

impl Sequence {
    pub fn add_prompt_logprobs(&mut self, reported: &PromptLogprobs) {
        let num_prompt_tokens = self.num_prompt_tokens;
        let first_position = reported.first_position as usize;
        if let Some(known) = &mut self.prompt_logprobs
            && first_position <= known.len()
        {
            known.truncate(first_position);
            let tops = reported.top_token_ids.iter().zip(&reported.top_logprobs);
            let mut tops = tops.map(|(&id, &logprob)| TopToken { id, logprob });
            let top_n = reported.top_n as usize;
            known.extend(reported.logprobs.iter().map(|&logprob| PromptLogprob {
                logprob: Some(logprob),
                top: tops.by_ref().take(top_n).collect(),
            }));
            known.truncate(num_prompt_tokens);
        }
    }

    /// Takes a sampled token and sends it to the client. Returns `Some` when it was the last one.
    pub fn accept(
        &mut self,
        sampled: Sampled,
        eos_token_ids: &[u32],
        vocabulary: &Vocabulary,
        now: Instant,
    ) -> Option<Finish> {
        let id = sampled.token_id;
        self.tokens.push(id);
        if self.sequence_id.is_none() {
            self.update_length_class();
        }
        if let Some(speculation) = &mut self.speculation {
            speculation.push(&self.tokens);
        }
        self.crashes.reached(self.tokens.len());
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.spans.decode();
        }
        if let Some(logprobs) = self.prompt_logprobs.take() {
            self.send(Event::PromptLogprobs(logprobs));
        }

        let ended_by_token = self.end_of(id, eos_token_ids);
        let is_last = self.num_generated() >= self.request.max_new_tokens as usize;
        let ended_by_grammar = sampled.ends_grammar.then_some(FinishReason::EndOfSequence);

        let mut offset_chars = self.num_decoded_chars;
        let mut text = String::new();
        let mut reason = None;
        if ended_by_token.is_none() {
            let decoded = self.detokenizer.push(vocabulary, id);
            if self.request.logprobs.sampled {
                self.num_decoded_chars += decoded.chars().count() as u64;
                offset_chars += self.detokenizer.num_earlier_chars() as u64;
            }
            // A token left out of the text is matched by its name, in case a stop string names it.
            let unseen = self.request.hides(id);
            let shown = match self.unseen_text(vocabulary, id).filter(|_| unseen) {
                Some(unseen) => self.stop.push_unseen(&unseen),
                None => self.stop.push(decoded),
            };
            text = shown.text;
            reason = shown.stopped.map(FinishReason::StopString);
        }
        if reason.is_none() && (ended_by_token.is_some() || ended_by_grammar.is_some() || is_last) {
            let shown = self.stop.push(self.detokenizer.flush(vocabulary));
            text.push_str(&shown.text);
            reason = shown.stopped.map(FinishReason::StopString);
            if reason.is_none()
                && ended_by_token.is_some()
                && let Some(unseen) = self.unseen_text(vocabulary, id)
            {
                let shown = self.stop.push_unseen(&unseen);
                text.push_str(&shown.text);
                reason = shown.stopped.map(FinishReason::StopString);
            }
            if reason.is_none() {
                text.push_str(&self.stop.flush());
                let ended = ended_by_token.or(ended_by_grammar);
                reason = ended.or(Some(FinishReason::Length));
            }
        }

        if let Some(content) = &mut self.content {
            content.push(&text);
            if let Some(reason) = &reason {
                let word = match reason {
                    FinishReason::Length => "length",
                    _ => "stop",
                };
                self.spans.answered(&content.answer(word));
            }
        }
        let finish = reason.map(|reason| Finish {
            reason,
            num_generated_tokens: self.num_generated() as u32,
            num_cached_tokens: self.num_cached as u32,
            timing: self.timing(now),
        });
        if finish.is_some() {
            self.spans.finished(self.num_generated());
            self.permit = None;
        }
        self.send(Event::Token(GeneratedToken {
            id,
            text,
            offset_chars,
            holds_text: self.stop.holds_text(),
            logprob: sampled.logprob.filter(|_| self.request.logprobs.sampled),
            special: vocabulary.is_special(id),
            top: sampled.top,
            finish: finish.clone(),
        }));
        finish
    }

    /// Name of a special token, when there are stop strings that may contain it.
    fn unseen_text(&self, vocabulary: &Vocabulary, id: u32) -> Option<String> {
        (self.stop.is_looking() && vocabulary.is_special(id))
            .then(|| vocabulary.special_text(id))
            .flatten()
    }

    fn send(&self, event: Event) {
        if let Some(backlog) = &self.backlog {
            backlog.add(&event);
        }
        let _ = self.events.send(Ok(event));
    }

    /// The failure of a client that left too much unread.
    pub fn unread_error(&self) -> Option<GenerationError> {
        let backlog = self.backlog.as_ref()?;
        backlog.is_too_long().then(|| GenerationError::Unread {
            bytes: backlog.bytes(),
        })
    }

    /// Ends the client's stream with an error.
    pub fn fail(mut self, error: GenerationError) {
        self.permit = None;
        let _ = self.events.send(Err(error));
    }

    fn timing(&self, now: Instant) -> Timing {
        let since_submitted = |then: Option<Instant>| {
            then.map_or_else(Default::default, |then| then - self.submitted)
        };
        Timing {
            queue: since_submitted(self.first_scheduled),
            first_token: since_submitted(self.first_token),
            inference: self
                .first_scheduled
                .map_or_else(Default::default, |then| now - then),
        }
    }
}
