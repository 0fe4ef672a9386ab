//! Support of the black-box tests: a launcher under test, and the stand-ins that it starts in place of a router and
//! shards.

pub mod fake;
pub mod launcher;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Polls until `found` gives something; fails with `what` when it does not in time.
pub fn wait_for<T>(timeout: Duration, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// True if a process runs: zombies do not.
pub fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z'))
}

/// A folder that passes the launcher's checks of a model.
pub fn write_model(folder: &std::path::Path) -> PathBuf {
    let model = folder.join("model");
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    std::fs::write(model.join("tokenizer.json"), "{}").unwrap();
    let weights = [&length[..], header.as_bytes(), &[0; 4]].concat();
    std::fs::write(model.join("model.safetensors"), weights).unwrap();
    model
}
