//! Writes docs/flags.md from the flags, or compares it with them (`--check`).

use std::process::ExitCode;

use gridwork_settings::{generated, page};

fn main() -> ExitCode {
    generated::write_or_check(std::env::args().skip(1), &page::flags_page())
}
