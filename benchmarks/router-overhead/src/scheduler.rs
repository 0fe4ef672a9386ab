//! Time that a step takes the scheduler, alone in this thread: how it grows with running and with waiting sequences.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gridwork_engine::bench::SchedulerBench;
use gridwork_testing::FakeSequences;
use tokenizers::Tokenizer;

use crate::{Result, quantile};

const BLOCK_TOKENS: usize = 16;

/// A scheduler, and a shard that computes its steps at once.
struct Bench {
    scheduler: SchedulerBench,
    sequences: FakeSequences,
}

impl Bench {
    fn new(tokenizer: Arc<Tokenizer>, max_sequences: u32, num_blocks: u32) -> Self {
        Bench {
            scheduler: SchedulerBench::new(tokenizer, max_sequences, num_blocks),
            sequences: FakeSequences::default(),
        }
    }

    fn submit(&mut self, prompt_tokens: usize, max_new_tokens: u32) {
        self.scheduler.submit(prompt_tokens, max_new_tokens);
    }

    fn step(&mut self) -> (Duration, usize, usize) {
        self.scheduler.step(|step| {
            self.sequences
                .run(step, |sequence| 1000 + (sequence.num_tokens + 1) % 1000)
        })
    }
}

/// Prints one Markdown table over running sequences and one over waiting sequences.
pub fn print_cost(model_path: &Path, rounds: usize) -> Result<()> {
    let tokenizer = Arc::new(Tokenizer::from_file(model_path.join("tokenizer.json"))?);
    println!("| running | scheduler a step | a running sequence |\n|---|---|---|");
    for running in [1, 8, 64, 512] {
        let cost = best(rounds, || decoding(&tokenizer, running));
        println!(
            "| {running} | {cost:.2} µs | {:.2} µs |",
            cost / f64::from(running)
        );
    }
    println!(
        "\n| waiting | 64 run, some end at each step | 8 run, no room for the next one |\n|---|---|---|"
    );
    for waiting in [10, 100, 1000, 10_000] {
        let changing = best(rounds, || changing(&tokenizer, waiting));
        let blocked = best(rounds, || blocked(&tokenizer, waiting));
        println!("| {waiting} | {changing:.2} µs | {blocked:.2} µs |");
    }
    println!();
    Ok(())
}

/// The minimum of several medians: other programs only ever add to a measurement.
fn best(rounds: usize, mut measure: impl FnMut() -> f64) -> f64 {
    (0..rounds).map(|_| measure()).fold(f64::INFINITY, f64::min)
}

/// Median time of steps that only decode, in microseconds.
fn decoding(tokenizer: &Arc<Tokenizer>, running: u32) -> f64 {
    let blocks = running as usize * (64_usize + 600).div_ceil(BLOCK_TOKENS) * 2;
    let mut bench = Bench::new(tokenizer.clone(), running, blocks as u32);
    for _ in 0..running {
        bench.submit(64, 600);
    }
    let times = (0..500).map(|_| bench.step());
    let full = times
        .filter(|(_, sequences, tokens)| (sequences, tokens) == (&(running as usize), sequences));
    let times: Vec<f64> = full.map(|(time, ..)| time.as_secs_f64() * 1e6).collect();
    quantile(times, 0.5)
}

/// Median time while 64 sequences run and about two end and two are admitted in each step, in microseconds.
fn changing(tokenizer: &Arc<Tokenizer>, waiting: usize) -> f64 {
    let mut bench = Bench::new(tokenizer.clone(), 64, 4096);
    for i in 0..64 + waiting {
        bench.submit(48, 1 + (i % 64) as u32);
    }
    let mut times = Vec::new();
    for i in 0..600 {
        let (time, ..) = bench.step();
        if i >= 100 {
            times.push(time.as_secs_f64() * 1e6);
        }
        if i % 100 == 0 {
            bench.scheduler.read_events();
        }
        while bench.scheduler.num_sequences() < 64 + waiting {
            bench.submit(48, 33);
        }
    }
    quantile(times, 0.5)
}

/// Median time while eight sequences run and the first waiting one does not fit into the cache, in microseconds. Every
/// step examines that sequence.
fn blocked(tokenizer: &Arc<Tokenizer>, waiting: usize) -> f64 {
    let blocks = 8 * (64_usize + 400).div_ceil(BLOCK_TOKENS);
    let mut bench = Bench::new(tokenizer.clone(), 64, blocks as u32);
    for _ in 0..8 {
        bench.submit(64, 400);
    }
    for _ in 0..waiting {
        bench.submit(blocks * BLOCK_TOKENS - 1, 1);
    }
    let times = (0..300).map(|_| bench.step());
    let decodes = times.filter(|(_, sequences, tokens)| (*sequences, *tokens) == (8, 8));
    let times: Vec<f64> = decodes.map(|(time, ..)| time.as_secs_f64() * 1e6).collect();
    quantile(times, 0.5)
}
