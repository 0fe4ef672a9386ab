//! The report of `gridwork --env`, to attach to a description of a problem.

use std::process::Command;

use gridwork_settings::Processes;

use super::Gpus;
use crate::process::programs::Wanted;

/// Returns versions, platform, programs and GPU, a line each.
pub fn describe(processes: &Processes, gpus: &Gpus) -> String {
    let (server, router) = (Wanted::server(processes), Wanted::router(processes));
    let found = |wanted: Wanted<'_>| match wanted.find() {
        Ok(program) => program.join(" "),
        Err(_) => "not found".to_owned(),
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut lines = vec![
        format!("Gridwork: {}", env!("CARGO_PKG_VERSION")),
        format!("Git commit: {}", env!("GRIDWORK_GIT_SHA")),
        format!("Target: {}", env!("GRIDWORK_TARGET")),
        format!("Rust: {}", env!("GRIDWORK_RUSTC")),
        format!("Cargo: {}", env!("GRIDWORK_CARGO")),
        format!("Kernel: {}", first_line("uname", &["-srm"])),
        format!("Cores: {cores}"),
        format!(
            "Memory: {}",
            memory().unwrap_or_else(|| "unknown".to_owned())
        ),
        format!("Server: {}", found(server)),
        format!("Router: {}", found(router)),
        format!("Visible GPUs: {}", gpus.visible),
    ];
    if gpus.visible > 0 {
        let query = [
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv",
        ];
        lines.push(format!("nvidia-smi:\n{}", output("nvidia-smi", &query)));
    }
    lines.join("\n")
}

fn memory() -> Option<String> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().to_owned())
}

fn first_line(program: &str, args: &[&str]) -> String {
    let text = output(program, args);
    text.lines().next().unwrap_or_default().to_owned()
}

fn output(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => format!("{program}: {error}"),
    }
}
