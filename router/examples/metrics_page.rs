//! Writes the tables of `docs/metrics.md`, or with `--check` fails when they are out of date.

use std::process::ExitCode;

use gridwork_router::observability::metrics_page::with_tables;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");

fn main() -> ExitCode {
    match run(std::env::args().any(|argument| argument == "--check")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("docs/metrics.md: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool) -> Result<(), String> {
    let page = std::fs::read_to_string(PAGE).map_err(|error| error.to_string())?;
    let written = with_tables(&page)?;
    if written == page {
        return Ok(());
    }
    if check {
        return Err("its tables are out of date; run `make docs`".to_owned());
    }
    std::fs::write(PAGE, written).map_err(|error| error.to_string())
}
