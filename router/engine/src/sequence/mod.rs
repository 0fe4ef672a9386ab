//! One request while it lives in the scheduler.

pub(crate) mod detokenizer;
pub(crate) mod lengths;
pub(crate) mod sampled;
pub(crate) mod speculation;
pub(crate) mod stop;
pub(crate) mod trace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_proto::v1::{NewSequence, PromptLogprobs};
use tokio::sync::mpsc::UnboundedSender;

use crate::backlog::Backlog;
use crate::cache::blocks::{BlockPool, Blocks, PrefixKey};
use crate::places::Place;
use crate::request::{
    CacheNamespace, Event, Finish, FinishReason, GeneratedToken, GenerationError,
    GenerationRequest, PromptLogprob, Timing, TopToken,
};
use crate::scheduler::suspects::CrashRecord;
use crate::sequence::detokenizer::{Detokenizer, Vocabulary};
use crate::sequence::lengths::LengthRule;
use crate::sequence::sampled::Sampled;
use crate::sequence::speculation::Speculation;
use crate::sequence::stop::StopMatcher;
use crate::sequence::trace::RequestSpans;

/// Identifies a request for the life of the engine; never reused.
pub(crate) type SequenceKey = u64;

/// By key. Keys count up and nobody outside chooses them, so that a quick hasher is good enough.
pub(crate) type Sequences = hashbrown::HashMap<SequenceKey, Sequence>;

/// Where a request's events go.
pub(crate) type EventSender = UnboundedSender<Result<Event, GenerationError>>;

pub(crate) struct Sequence {
    pub key: SequenceKey,
    pub request: GenerationRequest,
    pub num_prompt_tokens: usize,
    /// The prompt, then every generated token that the router has seen.
    pub tokens: Vec<u32>,
    /// Its id at the shard; `None` while it waits.
    pub row: Option<u32>,
    pub blocks: Blocks,
    /// How many of its blocks the shard knows.
    pub num_sent_blocks: usize,
    /// Of its tokens, for blocks that are shared.
    pub prefix_key: PrefixKey,
    /// Tokens whose computation has been scheduled.
    pub num_computed: usize,
    /// Tokens of the prompt that did not have to be computed before the first token.
    pub num_cached: usize,
    /// Tokens being sampled by steps whose results are outstanding.
    pub num_pending: usize,
    /// Drafts of the step on its way, as long as what it computes is not thrown away.
    pub num_drafts: usize,
    /// Counts how often what was computed had to be thrown away: results of before are not its any more.
    pub epoch: u32,
    /// How many of its first tokens count as computed together: more than the prompt once it was computed anew.
    pub num_first: usize,
    lengths: LengthRule,
    /// How often a later sequence was started before it.
    pub num_overtaken: u32,
    pub crashes: CrashRecord,
    pub submitted: Instant,
    /// Until when it must be started; `None`: it may wait for ever.
    pub start_by: Option<Instant>,
    pub spans: RequestSpans,
    first_scheduled: Option<Instant>,
    first_token: Option<Instant>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// `None`: nothing is drafted for it.
    speculation: Option<Speculation>,
    /// Log-probabilities of the prompt's tokens so far; `None` once they were sent or when not asked for.
    prompt_logprobs: Option<Vec<PromptLogprob>>,
    /// Characters decoded so far; counted only for log-probabilities.
    num_decoded_chars: u64,
    events: EventSender,
    /// What the client has not taken yet.
    backlog: Option<Backlog>,
    /// Free again before the client is told of the end, so that its next request finds a place.
    place: Option<Place>,
}

impl Sequence {
    pub fn new(
        key: SequenceKey,
        mut request: GenerationRequest,
        vocabulary: &Vocabulary,
        events: EventSender,
        now: Instant,
    ) -> Self {
        let tokens = std::mem::take(&mut request.token_ids);
        let stop = std::mem::take(&mut request.stop.strings);
        let namespace = std::mem::take(&mut request.namespace);
        let namespace = (namespace != CacheNamespace::default()).then(|| Arc::new(namespace));
        Sequence {
            key,
            num_prompt_tokens: tokens.len(),
            row: None,
            blocks: Blocks::default(),
            num_sent_blocks: 0,
            prefix_key: PrefixKey::new(namespace),
            num_computed: 0,
            num_cached: 0,
            num_pending: 0,
            num_drafts: 0,
            epoch: 0,
            num_first: tokens.len(),
            lengths: LengthRule::default(),
            num_overtaken: 0,
            crashes: CrashRecord::default(),
            submitted: now,
            start_by: None,
            spans: RequestSpans::queued(&request.span),
            first_scheduled: None,
            first_token: None,
            detokenizer: Detokenizer::new(vocabulary, &tokens, request.skip_special_tokens),
            stop: StopMatcher::new(stop, request.stop.include_in_output),
            speculation: None,
            prompt_logprobs: request
                .logprobs
                .prompt
                .then(|| vec![PromptLogprob::default()]),
            num_decoded_chars: 0,
            events,
            backlog: None,
            place: None,
            tokens,
            request,
        }
    }

    /// Holding `place` until it ends, with what its client has not taken counted in `backlog`.
    pub fn admitted(mut self, place: Place, backlog: Backlog) -> Self {
        self.place = Some(place);
        self.backlog = Some(backlog);
        self
    }

    /// With at most so many drafts in a step.
    pub fn speculating(mut self, most_drafts: usize) -> Self {
        let sampling = &self.request.sampling;
        // Penalties at a position depend on the tokens before it, drafts included: the shard does not follow that.
        let penalized = sampling.repetition_penalty != 1.0
            || sampling.frequency_penalty != 0.0
            || sampling.presence_penalty != 0.0;
        // Two tokens until its guesses are trusted, a draft, and the token behind it.
        let is_short = self.request.max_new_tokens < 4;
        if most_drafts > 0 && !penalized && !is_short {
            self.speculation = Some(Speculation::new(most_drafts, &self.tokens));
        }
        self
    }

    /// For a model of which this is true.
    pub fn follow(&mut self, lengths: LengthRule) {
        self.lengths = lengths;
        self.settle();
    }

    /// Decides how many of its tokens are computed together. Nothing of it may be computed.
    fn settle(&mut self) {
        self.num_first = self
            .lengths
            .num_first(self.num_prompt_tokens, self.tokens.len());
        self.prefix_key
            .set_length_class(self.lengths.class(self.num_first));
    }

    /// Whether it has become so long that nothing of what was computed can be used any more, and no token of it is
    /// being sampled.
    pub fn must_be_recomputed(&self) -> bool {
        let most = self.lengths.most_computed(self.num_first);
        most.is_some_and(|most| self.tokens.len() > most) && self.num_pending == 0
    }

    pub fn num_generated(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens
    }

    /// Tokens that can be computed next: those known or being sampled, less those scheduled before. Zero when the
    /// last allowed token is being sampled already.
    pub fn num_ready(&self) -> usize {
        if self.num_generated() + self.num_pending >= self.request.max_new_tokens as usize {
            return 0;
        }
        let most = self.lengths.most_computed(self.num_first);
        let known = self.tokens.len() + self.num_pending;
        known
            .min(most.unwrap_or(known))
            .saturating_sub(self.num_computed)
    }

    /// Whether its next step computes the one token that was sampled last.
    pub fn is_decoding(&self) -> bool {
        self.num_computed >= self.num_prompt_tokens
            && self.num_computed + 1 == self.tokens.len() + self.num_pending
    }

    /// Whether drafts are worth it for now.
    pub fn may_draft(&self) -> bool {
        self.speculation
            .as_ref()
            .is_some_and(Speculation::is_trusted)
    }

    /// Guesses at what follows its last token, `most` at most: none that could not be used.
    pub fn drafts(&self, most: usize, eos_token_ids: &[u32]) -> Vec<u32> {
        let Some(speculation) = &self.speculation else {
            return Vec::new();
        };
        // A token more is sampled than there are drafts.
        let left = self.request.max_new_tokens as usize - self.num_generated();
        let most = most.min(left.saturating_sub(1));
        let most = match self.lengths.most_computed(self.num_first) {
            Some(limit) => most.min(limit.saturating_sub(self.num_computed + 1)),
            None => most,
        };
        let mut drafts = speculation.drafts(&self.tokens, most);
        let ends = |id: &u32| self.end_of(*id, eos_token_ids).is_some();
        drafts.truncate(drafts.iter().position(ends).unwrap_or(drafts.len()));
        drafts
    }

    /// The shard has answered a step of it with so many tokens, which have been accepted as far as they are needed.
    pub fn answered(&mut self, num_tokens: usize) {
        self.num_pending -= 1;
        // Its token counts as computed since the step was made; drafts do now, but for the token behind them.
        if std::mem::take(&mut self.num_drafts) > 0 {
            self.num_computed = self.num_computed + num_tokens - 1;
        }
        if num_tokens == 0
            && let Some(speculation) = &mut self.speculation
        {
            speculation.distrust();
        }
    }

    /// Whether what was computed before may be used: not when every position's log-probabilities are wanted.
    pub fn may_use_cache(&self) -> bool {
        self.prompt_logprobs.is_none()
    }

    /// About how many of its blocks are in the cache, and how many of these nobody holds.
    pub fn estimate_cached(
        &mut self,
        pool: &BlockPool,
        block_size_tokens: usize,
    ) -> (usize, usize) {
        let limit = self.max_cached_blocks(block_size_tokens);
        pool.estimate(&mut self.prefix_key, &self.tokens, limit)
    }

    /// Takes what is in the cache of its tokens; returns how many they are.
    pub fn adopt_cached(&mut self, pool: &mut BlockPool, block_size_tokens: usize) -> usize {
        let limit = self.max_cached_blocks(block_size_tokens);
        let key = &mut self.prefix_key;
        let num_blocks = pool.adopt(&mut self.blocks, key, &self.tokens, limit);
        self.num_computed = num_blocks * block_size_tokens;
        if self.first_token.is_none() {
            self.num_cached = self.num_computed;
        }
        self.num_computed
    }

    /// Lets others use its full blocks: those whose tokens are known and whose computation has been scheduled.
    pub fn share_blocks(&mut self, pool: &mut BlockPool, block_size_tokens: usize) {
        let num_full = self.num_computed.min(self.tokens.len()) / block_size_tokens;
        pool.share(
            &mut self.blocks,
            &mut self.prefix_key,
            &self.tokens,
            num_full,
        );
    }

    /// The first so many blocks that it could take from the cache: at least one token is computed.
    fn max_cached_blocks(&self, block_size_tokens: usize) -> usize {
        if self.may_use_cache() {
            (self.tokens.len() - 1) / block_size_tokens
        } else {
            0
        }
    }

    /// Until when it must be started, if it has not been.
    pub fn deadline(&self) -> Option<Instant> {
        self.start_by.filter(|_| !self.has_started())
    }

    /// Forgets what the shard holds of it. Tokens that are being sampled may still arrive.
    pub fn rewind(&mut self) {
        self.row = None;
        self.num_sent_blocks = 0;
        self.num_computed = 0;
        self.num_drafts = 0;
        if let Some(logprobs) = &mut self.prompt_logprobs {
            logprobs.truncate(1);
        }
        self.settle();
    }

    pub fn has_started(&self) -> bool {
        self.first_scheduled.is_some()
    }

    /// The first step that computes any of it has been scheduled; returns how long it waited, once.
    pub fn started(&mut self, now: Instant) -> Option<Duration> {
        if self.first_scheduled.is_some() {
            return None;
        }
        self.first_scheduled = Some(now);
        self.spans.prefill();
        Some(now.duration_since(self.submitted))
    }

    /// What the shard is told when the sequence is admitted, or admitted again.
    pub fn introduction(&self, row: u32) -> NewSequence {
        NewSequence {
            id: row,
            token_ids: self.tokens.clone(),
            num_prompt_tokens: self.num_prompt_tokens as u32,
            num_computed_tokens: self.num_computed as u32,
            sampling: Some(self.request.sampling.clone()),
            logprobs: self.request.logprobs.sampled,
            top_n_logprobs: self.request.logprobs.top_n,
            prompt_logprobs: self.prompt_logprobs.is_some(),
            top_n_prompt_logprobs: match &self.prompt_logprobs {
                Some(_) => self.request.logprobs.prompt_top_n,
                None => 0,
            },
            traceparent: self.spans.traceparent(),
            num_first_tokens: self.num_first as u32,
        }
    }

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

    /// Takes the token that `sampled` stands for, tells the client, and says whether it was the last one.
    pub fn accept(
        &mut self,
        sampled: Sampled,
        eos_token_ids: &[u32],
        vocabulary: &Vocabulary,
        now: Instant,
    ) -> Option<Finish> {
        let id = sampled.token_id;
        self.tokens.push(id);
        if self.row.is_none() {
            self.settle();
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

        let mut offset_chars = self.num_decoded_chars;
        let mut text = String::new();
        let mut reason = None;
        if ended_by_token.is_none() {
            let decoded = self.detokenizer.push(vocabulary, id);
            if self.request.logprobs.sampled {
                self.num_decoded_chars += decoded.chars().count() as u64;
                offset_chars += self.detokenizer.num_earlier_chars() as u64;
            }
            // Without a text of its own, a stop string is looked for in the one that it would have.
            let unseen = self.request.skip_special_tokens;
            let shown = match self.unseen_text(vocabulary, id).filter(|_| unseen) {
                Some(unseen) => self.stop.push_unseen(&unseen),
                None => self.stop.push(decoded),
            };
            text = shown.text;
            reason = shown.stopped.map(FinishReason::StopString);
        }
        if reason.is_none() && (ended_by_token.is_some() || is_last) {
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
                reason = ended_by_token.or(Some(FinishReason::Length));
            }
        }

        let finish = reason.map(|reason| Finish {
            reason,
            num_generated_tokens: self.num_generated() as u32,
            num_cached_tokens: self.num_cached as u32,
            timing: self.timing(now),
        });
        if finish.is_some() {
            self.place = None;
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

    /// What a special token is called, where a stop string may name it.
    fn unseen_text(&self, vocabulary: &Vocabulary, id: u32) -> Option<String> {
        (self.stop.is_looking() && vocabulary.is_special(id))
            .then(|| vocabulary.special_text(id))
            .flatten()
    }

    /// Why this token is the last one, if it is by itself.
    fn end_of(&self, id: u32, eos_token_ids: &[u32]) -> Option<FinishReason> {
        if !self.request.stop.ignore_eos && eos_token_ids.contains(&id) {
            Some(FinishReason::EndOfSequence)
        } else if self.request.stop.token_ids.contains(&id) {
            Some(FinishReason::StopToken(id))
        } else {
            None
        }
    }

    fn send(&self, event: Event) {
        if let Some(backlog) = &self.backlog {
            backlog.add(&event);
        }
        let _ = self.events.send(Ok(event));
    }

    /// Why its client is not served any longer, if it has left too much unread.
    pub fn unread_too_long(&self) -> Option<GenerationError> {
        let backlog = self.backlog.as_ref()?;
        backlog.is_too_long().then(|| GenerationError::Unread {
            bytes: backlog.bytes(),
        })
    }

    /// Ends the client's stream with an error.
    pub fn fail(mut self, error: GenerationError) {
        self.place = None;
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
