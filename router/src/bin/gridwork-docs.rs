//! `gridwork-docs`: writes the tables on the pages in docs/ that come from the router's code. With `--check` it names
//! the pages that are out of date instead. To be run in the root of the repository.

use std::process::ExitCode;

use gridwork_router::docs::{PAGES, Page};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let checks = match &arguments[..] {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => {
            eprintln!("usage: gridwork-docs [--check]");
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    for page in PAGES {
        if let Err(error) = run(page, checks) {
            eprintln!("{}: {error}", page.path);
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn run(page: Page, checks: bool) -> Result<(), String> {
    let old = std::fs::read_to_string(page.path).map_err(|error| error.to_string())?;
    let new = (page.update)(&old)?;
    if new == old {
        return Ok(());
    }
    if checks {
        return Err("its tables are out of date; run `make docs`".to_owned());
    }
    std::fs::write(page.path, new).map_err(|error| error.to_string())
}
