//! Notes what the launcher was built from, for `gridwork --env`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=GIT_SHA");
    println!("cargo:rerun-if-changed=build.rs");
    for file in ["../.git/HEAD", "../.git/logs/HEAD"] {
        // A path that does not exist would make every build run this again.
        if Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    let sha = std::env::var("GIT_SHA")
        .ok()
        .filter(|sha| !sha.is_empty())
        .or_else(|| first_line("git", &["rev-parse", "HEAD"]));
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    note("GRIDWORK_GIT_SHA", sha);
    note("GRIDWORK_RUSTC", first_line(&rustc, &["--version"]));
    note("GRIDWORK_CARGO", first_line(&cargo, &["--version"]));
    note("GRIDWORK_TARGET", std::env::var("TARGET").ok());
}

fn note(name: &str, value: Option<String>) {
    println!(
        "cargo:rustc-env={name}={}",
        value.as_deref().unwrap_or("unknown")
    );
}

fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}
