//! Limits of a rendering: steps, live bytes, depth and time.
//!
//! A rendering runs on one thread from start to end, so the meter belongs to the thread. Values report when they
//! are made and dropped, and each loop over data pays for its iterations.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::error::{Error, Result};

/// Limits of one rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of steps: expressions evaluated, items visited, and one for each 32 bytes written.
    pub steps: u64,
    /// Maximum number of bytes of all live values.
    pub memory_bytes: usize,
    /// Maximum number of bytes of the result.
    pub output_bytes: usize,
    /// Maximum duration, as the last resort: steps end a rendering long before.
    pub time: Duration,
}

impl Limits {
    /// Limits for a rendering whose variables take `input_bytes` as text.
    pub fn for_input(input_bytes: usize) -> Self {
        Self {
            steps: 20_000_000 + 100 * input_bytes as u64,
            memory_bytes: 64 * MIB + 64 * input_bytes,
            output_bytes: 4 * MIB + 16 * input_bytes,
            time: Duration::from_secs(10),
        }
    }
}

const MIB: usize = 1 << 20;
/// Maximum number of bytes of stack below the start of a rendering. Threads have 2 MiB.
const STACK_BYTES: usize = 1 << 20;
/// Number of steps between two readings of the clock.
const STEPS_PER_CLOCK: u64 = 4096;

thread_local! {
    static METER: Meter = const { Meter::idle() };
}

struct Meter {
    steps_left: Cell<u64>,
    until_clock: Cell<u64>,
    live: Cell<usize>,
    memory_bytes: Cell<usize>,
    deadline: Cell<Option<Instant>>,
    stack_start: Cell<usize>,
}

impl Meter {
    const fn idle() -> Self {
        Self {
            steps_left: Cell::new(u64::MAX),
            until_clock: Cell::new(STEPS_PER_CLOCK),
            live: Cell::new(0),
            memory_bytes: Cell::new(usize::MAX),
            deadline: Cell::new(None),
            stack_start: Cell::new(0),
        }
    }
}

/// Limits this thread until it is dropped.
pub struct Guard(());

impl Guard {
    pub fn start(limits: &Limits) -> Self {
        METER.with(|meter| {
            meter.steps_left.set(limits.steps);
            meter.until_clock.set(STEPS_PER_CLOCK);
            meter.live.set(0);
            meter.memory_bytes.set(limits.memory_bytes);
            meter.deadline.set(Instant::now().checked_add(limits.time));
            meter.stack_start.set(stack_position());
        });
        Self(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        METER.with(|meter| {
            meter.steps_left.set(u64::MAX);
            meter.memory_bytes.set(usize::MAX);
            meter.deadline.set(None);
            meter.stack_start.set(0);
        });
    }
}

/// Pays for `steps`.
pub fn spend(steps: u64) -> Result<()> {
    METER.with(|meter| {
        let Some(left) = meter.steps_left.get().checked_sub(steps) else {
            meter.steps_left.set(0);
            return Err(Error::limit(
                "rendering takes more steps than a chat template may take",
            ));
        };
        meter.steps_left.set(left);
        let Some(until) = meter.until_clock.get().checked_sub(steps) else {
            meter.until_clock.set(STEPS_PER_CLOCK);
            return check_clock(meter);
        };
        meter.until_clock.set(until);
        if meter.live.get() > meter.memory_bytes.get() {
            return Err(too_much_memory());
        }
        Ok(())
    })
}

fn check_clock(meter: &Meter) -> Result<()> {
    match meter.deadline.get() {
        Some(deadline) if Instant::now() > deadline => Err(Error::limit(
            "rendering takes longer than a chat template may take",
        )),
        _ => Ok(()),
    }
}

/// Pays for scanning `bytes` of text.
pub fn scan(bytes: usize) -> Result<()> {
    spend(1 + bytes as u64 / 32)
}

/// Pays for making `bytes`, and refuses them if they would exceed the limit of live bytes.
pub fn reserve(bytes: usize) -> Result<()> {
    scan(bytes)?;
    METER.with(|meter| {
        if meter.live.get().saturating_add(bytes) > meter.memory_bytes.get() {
            return Err(too_much_memory());
        }
        Ok(())
    })
}

/// Like `reserve`, for `count` pieces of `bytes`.
pub fn reserve_many(count: usize, bytes: usize) -> Result<()> {
    reserve(count.saturating_mul(bytes))
}

fn too_much_memory() -> Error {
    Error::limit("rendering takes more memory than a chat template may take")
}

/// Records that a value of `bytes` was made.
pub fn made(bytes: usize) {
    METER.with(|meter| meter.live.set(meter.live.get().saturating_add(bytes)));
}

/// Records that a value of `bytes` was dropped.
pub fn dropped(bytes: usize) {
    // The thread may be ending, its meter already dropped.
    let _ = METER.try_with(|meter| meter.live.set(meter.live.get().saturating_sub(bytes)));
}

/// Fails when calls nest so deeply that the stack may overflow.
pub fn check_depth() -> Result<()> {
    METER.with(|meter| {
        let start = meter.stack_start.get();
        if start != 0 && start.abs_diff(stack_position()) > STACK_BYTES {
            return Err(Error::limit(
                "the chat template nests deeper than it may (macros, loops or expressions within each other)",
            ));
        }
        Ok(())
    })
}

/// Returns an address on the current stack.
#[inline(never)]
fn stack_position() -> usize {
    let here = 0u8;
    std::ptr::from_ref(std::hint::black_box(&here)) as usize
}
