//! The engine's task: sends the scheduler's steps to the shard and applies their results.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;

use super::config::{EngineConfig, Ready};
use crate::error::{GenerationError, StartError};
use crate::lifecycle::{Connector, Ended, Worker};
use crate::metrics::EngineMetrics;
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::sequence::detokenizer::Vocabulary;
use crate::sequence::lengths::LengthRule;
use crate::sequence::{Sequence, SequenceKey};
use crate::shard::client::{self, ReadyShard};
use crate::shard::monitor::Monitor;
use crate::shard::watchdog::Work;
use crate::token_table::TokenTable;

pub(crate) enum Command {
    Submit(Box<Sequence>),
    Abort(SequenceKey),
}

/// Connects to a shard that generates, and opens its stream of steps.
pub(super) struct StepConnector {
    pub config: EngineConfig,
    pub vocabulary: Arc<Vocabulary>,
    /// Texts of all tokens, once a shard that generates was found.
    pub tokens: OnceLock<Arc<TokenTable>>,
}

impl StepConnector {
    fn tokens(&self) -> &Arc<TokenTable> {
        self.tokens.get_or_init(|| self.vocabulary.token_table())
    }
}

impl Connector for StepConnector {
    type Connection = ReadyShard;
    type Ready = Ready;

    async fn connect(&self) -> Result<(ReadyShard, Ready), StartError> {
        let config = &self.config;
        let shard = client::connect(&config.shard, config.startup_timeout, |info| {
            config.warmup_request(info, self.tokens())
        })
        .await?;
        let limits = config.limits(&shard.info, &shard.warmup)?;
        let mut info = shard.info.clone();
        info.eos_token_ids = config.end_token_ids(&shard.info);
        let tokens = self.tokens().clone();
        let ready = Ready {
            info,
            limits,
            tokens,
        };
        Ok((shard, ready))
    }
}

/// The scheduler, driven by the shard's stream of steps.
pub(super) struct StepLoop {
    pub scheduler: Scheduler,
    pub metrics: EngineMetrics,
    pub queue_timeout: Duration,
}

impl Worker<StepConnector> for StepLoop {
    type Command = Command;

    async fn work(
        &mut self,
        shard: &mut ReadyShard,
        commands: &mut UnboundedReceiver<Command>,
        monitor: &mut Monitor,
    ) -> Ended {
        // The warm-up stands for the time of one token until a step has been measured.
        monitor.answered(Work::of_a_token(), shard.warmup_took);
        let mut ticks = Monitor::ticks();
        loop {
            // All commands are executed first, so that requests that arrive together are computed together.
            while let Ok(command) = commands.try_recv() {
                self.execute(command);
            }
            while let Some(step) = self.scheduler.schedule(Instant::now()) {
                if shard.steps.send(step).await.is_err() {
                    return Ended::ShardLost("its step stream is closed".into());
                }
            }
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.execute(command),
                    None => return Ended::NoHandles,
                },
                result = shard.results.message() => match result {
                    Ok(Some(result)) => {
                        if let Some(work) = self.scheduler.oldest_work() {
                            let spent_us = result.forward_us + result.sample_us;
                            monitor.answered(work, Duration::from_micros(spent_us));
                        }
                        if let Err(violation) = self.scheduler.apply(&result, Instant::now()) {
                            tracing::error!("the shard broke the contract: {violation}");
                            return Ended::ShardLost(violation);
                        }
                    }
                    Ok(None) => return Ended::ShardLost("it ended its result stream".into()),
                    Err(status) => return Ended::ShardLost(status.message().to_owned()),
                },
                _ = ticks.tick() => {
                    let now = Instant::now();
                    self.every_second(monitor, now);
                    if let Err(reason) = monitor.look(self.scheduler.oldest_work(), now) {
                        return Ended::ShardLost(reason);
                    }
                }
            }
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Submit(sequence) => {
                self.metrics
                    .prompt_tokens
                    .increment(sequence.num_prompt_tokens as u64);
                self.scheduler.add(*sequence);
            }
            Command::Abort(key) => self.scheduler.abort(key),
        }
    }

    fn expire(&mut self, now: Instant) {
        self.scheduler.expire(now);
    }

    fn fail_all(&mut self, error: &GenerationError) {
        self.scheduler.fail_all(error);
    }

    fn num_sequences(&self) -> usize {
        self.scheduler.num_sequences()
    }

    fn shard_lost(&mut self) {
        self.scheduler.shard_lost(true);
    }

    fn shard_restored(&mut self, ready: &Ready) {
        self.scheduler
            .reset_shard(scheduler_config(ready, self.queue_timeout));
    }
}

pub(super) fn scheduler_config(
    Ready { info, limits, .. }: &Ready,
    queue_timeout: Duration,
) -> SchedulerConfig {
    SchedulerConfig {
        block_size_tokens: limits.block_size_tokens as usize,
        num_blocks: limits.num_blocks,
        max_batch_prefill_tokens: limits.max_batch_prefill_tokens as usize,
        max_sequences: limits.max_sequences,
        prefix_cache: limits.prefix_cache,
        max_drafts: limits.max_drafts as usize,
        draft_step_tokens: limits.draft_step_tokens as usize,
        drafts_only_forced: limits.speculate == 0,
        queue_timeout,
        lengths: LengthRule::of(info),
    }
}
