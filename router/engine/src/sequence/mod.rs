//! A request during its life in the scheduler.

pub(crate) mod crashes;
pub(crate) mod detokenizer;
pub(crate) mod lengths;
mod output;
pub(crate) mod sampled;
pub(crate) mod speculation;
pub(crate) mod stop;
pub(crate) mod trace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_proto::v1::NewSequence;
use tokio::sync::mpsc::UnboundedSender;

use crate::backlog::Backlog;
use crate::cache::blocks::{BlockPool, Blocks, PrefixKey};
use crate::content::Content;
use crate::error::GenerationError;
use crate::permits::Permit;
use crate::request::{CacheNamespace, Event, FinishReason, GenerationRequest, PromptLogprob};
use crate::sequence::crashes::CrashRecord;
use crate::sequence::detokenizer::{Detokenizer, Skips, Vocabulary};
use crate::sequence::lengths::LengthRule;
use crate::sequence::speculation::Speculation;
use crate::sequence::stop::StopMatcher;
use crate::sequence::trace::RequestSpans;
use crate::shares::Turn;

/// Identifies a request during the life of the engine; never reused.
pub(crate) type SequenceKey = u64;

/// Sequences by key. Clients cannot choose keys, so a fast hasher is safe.
pub(crate) type Sequences = hashbrown::HashMap<SequenceKey, Sequence>;

/// Channel of a request's events.
pub(crate) type EventSender = UnboundedSender<Result<Event, GenerationError>>;

pub(crate) struct Sequence {
    pub key: SequenceKey,
    pub request: GenerationRequest,
    pub num_prompt_tokens: usize,
    /// The prompt, then every generated token that the router received.
    pub tokens: Vec<u32>,
    /// Its id at the shard; `None` while the sequence waits.
    pub sequence_id: Option<u32>,
    pub blocks: Blocks,
    /// Number of its blocks that the shard was sent.
    pub num_sent_blocks: usize,
    /// Hashes of full blocks. The prefix cache compares them.
    pub prefix_key: PrefixKey,
    /// Number of tokens whose computation has been scheduled.
    pub num_computed: usize,
    /// Number of prompt tokens found in the cache before the first token.
    pub num_cached: usize,
    /// Number of tokens being sampled by steps in flight.
    pub num_pending: usize,
    /// Number of drafts in the step in flight, unless its result is to be dropped.
    pub num_drafts: usize,
    /// Number of times that computed tokens had to be dropped. Results for an earlier epoch are ignored.
    pub epoch: u32,
    /// Number of leading tokens that count as computed together: the prompt, or more once the sequence was
    /// recomputed.
    pub num_first: usize,
    lengths: LengthRule,
    /// Its place among the waiting.
    pub turn: Turn,
    /// Number of later sequences that were started before it.
    pub num_overtaken: u32,
    pub crashes: CrashRecord,
    pub submitted: Instant,
    /// Deadline for its first step; `None`: it may wait forever.
    pub start_by: Option<Instant>,
    pub spans: RequestSpans,
    first_scheduled: Option<Instant>,
    first_token: Option<Instant>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// Predictor of drafts; `None`: none are guessed.
    speculation: Option<Speculation>,
    /// True if a step may hold drafts of it.
    takes_drafts: bool,
    /// Tokens that probably come after the last known one, since the grammar allows only their text.
    forced: Vec<u32>,
    /// Log-probabilities of the prompt's tokens so far; `None` once they were sent or when they were not requested.
    prompt_logprobs: Option<Vec<PromptLogprob>>,
    /// Number of characters decoded so far; counted only for log-probabilities.
    num_decoded_chars: u64,
    /// The answer so far, where the span of its decode gets it.
    content: Option<Content>,
    events: EventSender,
    /// Unread events of the client.
    backlog: Option<Backlog>,
    /// Returned before the client is told of the end, so that its next request finds a permit.
    permit: Option<Permit>,
}

/// True if a step may hold drafts of a request's tokens.
fn takes_drafts(request: &GenerationRequest) -> bool {
    let sampling = &request.sampling;
    // Penalties at a position depend on the tokens before it, drafts included. The shard does not apply them to drafts.
    let penalized = sampling.repetition_penalty != 1.0
        || sampling.frequency_penalty != 0.0
        || sampling.presence_penalty != 0.0;
    // Two tokens until guesses are trusted, one draft, and the token behind it.
    let is_short = request.max_new_tokens < 4;
    !penalized && !is_short
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
            sequence_id: None,
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
            turn: Turn::default(),
            num_overtaken: 0,
            crashes: CrashRecord::default(),
            submitted: now,
            start_by: None,
            spans: RequestSpans::queued(&request.span),
            first_scheduled: None,
            first_token: None,
            detokenizer: Detokenizer::new(vocabulary, &tokens, Skips::of(&request)),
            stop: StopMatcher::new(stop, request.stop.include_in_output)
                .passing_over(request.stop.min_new_tokens.saturating_sub(1)),
            speculation: None,
            takes_drafts: takes_drafts(&request),
            forced: Vec::new(),
            prompt_logprobs: request
                .logprobs
                .prompt
                .then(|| vec![PromptLogprob::default()]),
            num_decoded_chars: 0,
            content: request.records_content.then(Content::default),
            events,
            backlog: None,
            permit: None,
            tokens,
            request,
        }
    }

    /// Holds `permit` until the sequence ends, and counts its unread events in `backlog`.
    pub fn admitted(mut self, permit: Permit, backlog: Backlog) -> Self {
        self.permit = Some(permit);
        self.backlog = Some(backlog);
        self
    }

    /// Lets the sequence guess up to `max_drafts` tokens for a step.
    pub fn speculating(mut self, max_drafts: usize) -> Self {
        if max_drafts > 0 && self.takes_drafts {
            self.speculation = Some(Speculation::new(max_drafts, &self.tokens));
        }
        self
    }

    /// Sets the model's dependence of keys on lengths.
    pub fn set_length_rule(&mut self, lengths: LengthRule) {
        self.lengths = lengths;
        self.update_length_class();
    }

    /// Sets the number of tokens computed together. None of the sequence may be computed at this point.
    fn update_length_class(&mut self) {
        self.num_first = self
            .lengths
            .num_first(self.num_prompt_tokens, self.tokens.len());
        self.prefix_key
            .set_length_class(self.lengths.class(self.num_first));
    }

    /// True if the sequence crossed the length at which its keys are invalid, and no token of it is being sampled.
    pub fn must_be_recomputed(&self) -> bool {
        let max = self.lengths.max_computed(self.num_first);
        max.is_some_and(|max| self.tokens.len() > max) && self.num_pending == 0
    }

    /// Number of the tenant that it belongs to, where there are several.
    pub fn tenant_id(&self) -> Option<u32> {
        self.request.tenant.as_ref().map(|tenant| tenant.id())
    }

    /// Number of tokens of the prompt, and of the longest answer that is asked for.
    pub fn num_tokens_asked(&self) -> usize {
        self.num_prompt_tokens + self.request.max_new_tokens as usize
    }

    pub fn num_generated(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens
    }

    /// Number of tokens that can be computed next: those known or being sampled, less those already scheduled. Zero
    /// when the last allowed token is being sampled.
    pub fn num_ready(&self) -> usize {
        if self.num_generated() + self.num_pending >= self.request.max_new_tokens as usize {
            return 0;
        }
        let max = self.lengths.max_computed(self.num_first);
        let known = self.tokens.len() + self.num_pending;
        known
            .min(max.unwrap_or(known))
            .saturating_sub(self.num_computed)
    }

    /// True if its next step computes only the token that was sampled last.
    pub fn is_decoding(&self) -> bool {
        self.num_computed >= self.num_prompt_tokens
            && self.num_computed + 1 == self.tokens.len() + self.num_pending
    }

    /// True if drafts are currently worth their cost.
    pub fn may_draft(&self) -> bool {
        let is_trusted = self
            .speculation
            .as_ref()
            .is_some_and(Speculation::is_trusted);
        is_trusted || (self.takes_drafts && !self.forced.is_empty())
    }

    /// Sets the tokens that probably come after the last known one.
    pub fn set_forced(&mut self, tokens: Vec<u32>) {
        self.forced = tokens;
    }

    /// Up to `max` drafts of the tokens after the last one, without those that could not be used.
    pub fn drafts(&self, max: usize, eos_token_ids: &[u32]) -> Vec<u32> {
        if !self.takes_drafts {
            return Vec::new();
        }
        // One more token is sampled than there are drafts.
        let left = self.request.max_new_tokens as usize - self.num_generated();
        let max = max.min(left.saturating_sub(1));
        let max = match self.lengths.max_computed(self.num_first) {
            Some(limit) => max.min(limit.saturating_sub(self.num_computed + 1)),
            None => max,
        };
        let mut drafts = match &self.speculation {
            _ if !self.forced.is_empty() => self.forced[..max.min(self.forced.len())].to_vec(),
            Some(speculation) => speculation.drafts(&self.tokens, max),
            None => Vec::new(),
        };
        let ends = |id: &u32| self.reason_to_end(*id, eos_token_ids).is_some();
        drafts.truncate(drafts.iter().position(ends).unwrap_or(drafts.len()));
        drafts
    }

    /// Notes that a step of this sequence returned `num_tokens` tokens, accepted up to the end of the sequence.
    pub fn on_step_result(&mut self, num_tokens: usize) {
        self.num_pending -= 1;
        // The sequence's own token counted as computed when the step was made. Drafts do now, except the token behind
        // them.
        if std::mem::take(&mut self.num_drafts) > 0 {
            self.num_computed = self.num_computed + num_tokens - 1;
        }
        if num_tokens == 0
            && let Some(speculation) = &mut self.speculation
        {
            speculation.distrust();
        }
    }

    /// True if the prefix cache may be used: not when the log-probabilities of every position are requested.
    pub fn may_use_cache(&self) -> bool {
        self.prompt_logprobs.is_none()
    }

    /// Estimates how many of its blocks are cached, and how many of these no sequence holds.
    pub fn estimate_cached(
        &mut self,
        pool: &BlockPool,
        block_size_tokens: usize,
    ) -> (usize, usize) {
        let limit = self.max_cached_blocks(block_size_tokens);
        pool.estimate(&mut self.prefix_key, &self.tokens, limit)
    }

    /// Takes its cached blocks. Returns the number of their tokens.
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

    /// Caches its full blocks whose tokens are known and whose computation has been scheduled.
    pub fn share_blocks(&mut self, pool: &mut BlockPool, block_size_tokens: usize) {
        let num_full = self.num_computed.min(self.tokens.len()) / block_size_tokens;
        pool.share(
            &mut self.blocks,
            &mut self.prefix_key,
            &self.tokens,
            num_full,
        );
    }

    /// Maximum number of blocks that it may take from the cache. At least one token must be computed.
    fn max_cached_blocks(&self, block_size_tokens: usize) -> usize {
        if self.may_use_cache() {
            (self.tokens.len() - 1) / block_size_tokens
        } else {
            0
        }
    }

    /// Deadline for its first step, if it has not started.
    pub fn deadline(&self) -> Option<Instant> {
        self.start_by.filter(|_| !self.has_started())
    }

    /// Forgets what the shard holds of it. Tokens being sampled may still arrive.
    pub fn rewind(&mut self) {
        self.sequence_id = None;
        self.num_sent_blocks = 0;
        self.num_computed = 0;
        self.num_drafts = 0;
        self.forced.clear();
        if let Some(logprobs) = &mut self.prompt_logprobs {
            logprobs.truncate(1);
        }
        self.update_length_class();
    }

    pub fn has_started(&self) -> bool {
        self.first_scheduled.is_some()
    }

    /// Notes the first step that computes any of it. Returns the time it waited, once.
    pub fn started(&mut self, now: Instant) -> Option<Duration> {
        if self.first_scheduled.is_some() {
            return None;
        }
        self.first_scheduled = Some(now);
        self.spans.prefill(self.num_prompt_tokens, self.num_cached);
        Some(now.duration_since(self.submitted))
    }

    /// The message that tells the shard of this sequence when it is admitted, possibly again.
    pub fn to_new_sequence(&self, sequence_id: u32, eos_token_ids: &[u32]) -> NewSequence {
        let mut sampling = self.request.sampling.clone();
        let stop = &self.request.stop;
        if stop.min_new_tokens > 0 {
            sampling.first_end_position = self.num_prompt_tokens as u32 + stop.min_new_tokens;
            sampling.end_token_ids = [eos_token_ids, &stop.token_ids].concat();
        }
        let last = self.num_prompt_tokens as u32 + self.request.max_new_tokens - 1;
        for id in &stop.forced_end_token_ids {
            sampling.forced_positions.push(last);
            sampling.forced_token_ids.push(*id);
        }
        NewSequence {
            id: sequence_id,
            token_ids: self.tokens.clone(),
            num_prompt_tokens: self.num_prompt_tokens as u32,
            num_computed_tokens: self.num_computed as u32,
            sampling: Some(sampling),
            logprobs: self.request.logprobs.sampled,
            top_n_logprobs: self.request.logprobs.top_n,
            prompt_logprobs: self.prompt_logprobs.is_some(),
            top_n_prompt_logprobs: match &self.prompt_logprobs {
                Some(_) => self.request.logprobs.prompt_top_n,
                None => 0,
            },
            traceparent: self.spans.traceparent(),
            num_first_tokens: self.num_first as u32,
            grammar: self.request.grammar.as_deref().unwrap_or_default().into(),
            request_id: self.request.request_id.to_string(),
        }
    }

    /// The reason why its newest token, by itself, ends the sequence.
    fn end_of(&self, id: u32, eos_token_ids: &[u32]) -> Option<FinishReason> {
        let may_end = self.num_generated() > self.request.stop.min_new_tokens as usize;
        self.reason_to_end(id, eos_token_ids).filter(|_| may_end)
    }

    /// The reason why this token would end the sequence if it were long enough.
    fn reason_to_end(&self, id: u32, eos_token_ids: &[u32]) -> Option<FinishReason> {
        if !self.request.stop.ignore_eos && eos_token_ids.contains(&id) {
            Some(FinishReason::EndOfSequence)
        } else if self.request.stop.token_ids.contains(&id) {
            Some(FinishReason::StopToken(id))
        } else {
            None
        }
    }
}
