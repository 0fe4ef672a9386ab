//! What a step costs the scheduler, alone in this thread: how that grows with running and with waiting sequences.

use std::path::Path;
use std::sync::Arc;

use gridwork_engine::bench::SchedulerBench;
use tokenizers::Tokenizer;

use crate::{Result, quantile};

const BLOCK_TOKENS: usize = 16;

/// Prints a Markdown table for each: running sequences, and sequences in the queue.
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

/// Other programs only ever add to a measurement: the least of several medians.
fn best(rounds: usize, mut measure: impl FnMut() -> f64) -> f64 {
    (0..rounds).map(|_| measure()).fold(f64::INFINITY, f64::min)
}

/// Steps in which all do nothing but decode: microseconds, median.
fn decoding(tokenizer: &Arc<Tokenizer>, running: u32) -> f64 {
    let blocks = running as usize * (64_usize + 600).div_ceil(BLOCK_TOKENS) * 2;
    let mut bench = SchedulerBench::new(tokenizer.clone(), running, blocks as u32);
    for _ in 0..running {
        bench.submit(64, 600);
    }
    let times = (0..500).map(|_| bench.step());
    let full = times
        .filter(|(_, sequences, tokens)| (sequences, tokens) == (&(running as usize), sequences));
    let times: Vec<f64> = full.map(|(time, ..)| time.as_secs_f64() * 1e6).collect();
    quantile(times, 0.5)
}

/// 64 sequences run; two end at a step and two are admitted.
fn changing(tokenizer: &Arc<Tokenizer>, waiting: usize) -> f64 {
    let mut bench = SchedulerBench::new(tokenizer.clone(), 64, 4096);
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
            bench.read_events();
        }
        while bench.num_sequences() < 64 + waiting {
            bench.submit(48, 33);
        }
    }
    quantile(times, 0.5)
}

/// Eight sequences run, and the cache has no room for the first one in the queue, which is looked at in every step.
fn blocked(tokenizer: &Arc<Tokenizer>, waiting: usize) -> f64 {
    let blocks = 8 * (64_usize + 400).div_ceil(BLOCK_TOKENS);
    let mut bench = SchedulerBench::new(tokenizer.clone(), 64, blocks as u32);
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
