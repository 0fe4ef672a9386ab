//! `gridwork-judge`: tells whether texts follow JSON schemas as they are enforced. Reads a question per line, such as
//! `{"schema": {"type": "integer"}, "texts": ["1", "a"]}`, and writes a verdict per line. For tests.

use std::io::{BufRead, Write};
use std::process::ExitCode;

use gridwork_router::grammar_texts::{Judge, Question};

/// Stack of the thread that compiles, as in the router: the library recurses over nested expressions.
const STACK_BYTES: usize = 256 * 1024 * 1024;

fn main() -> ExitCode {
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let judged = thread.spawn(|| judge_all().map_err(|error| error.to_string()));
    match judged.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        Ok(Ok(Err(error))) => {
            eprintln!("gridwork-judge: {error}");
            ExitCode::FAILURE
        }
        Ok(Err(_)) | Err(_) => ExitCode::FAILURE,
    }
}

fn judge_all() -> Result<(), Box<dyn std::error::Error>> {
    let judge = Judge::new()?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let question: Question = serde_json::from_str(&line?)?;
        let verdict = judge.judge(&question)?;
        serde_json::to_writer(&mut out, &verdict)?;
        writeln!(out)?;
    }
    Ok(())
}
