//! `gridwork-docs`: writes the generated parts of the pages in docs/. `gridwork-docs --check` names the pages that are
//! out of date, without changing them. To be run in the root of the repository.

use std::process::ExitCode;

use gridwork_router::docs::PARTS;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let checks = match &arguments[..] {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => return fail("usage: gridwork-docs [--check]"),
    };
    let mut out_of_date = false;
    for part in PARTS {
        let (page, name) = (part.page, part.name);
        let old = match std::fs::read_to_string(page) {
            Ok(text) => text,
            Err(error) => return fail(&format!("{page} cannot be read: {error}")),
        };
        let Some(new) = part.update(&old) else {
            return fail(&format!(
                "{page} has no lines `<!-- generated: {name} -->` and `<!-- end: {name} -->`"
            ));
        };
        if new == old {
            continue;
        }
        if checks {
            eprintln!("{page}: the part `{name}` is out of date; run `make docs`");
            out_of_date = true;
        } else if let Err(error) = std::fs::write(page, new) {
            return fail(&format!("{page} cannot be written: {error}"));
        }
    }
    match out_of_date {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}
