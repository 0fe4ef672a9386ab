//! A launcher that serves one program (`--parent-link`), and unix sockets in place of ports (`--uds`).

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::support::launcher::Scene;
use super::support::{runs, wait_for};

/// The next event that the launcher writes to its parent.
fn event(link: &UnixStream) -> Value {
    let mut line = String::new();
    BufReader::new(link).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

#[test]
fn a_parent_is_told_where_its_server_is_and_takes_it_along() {
    let scene = Scene::new();
    let (mut launcher, link) = scene.launch_linked(&[]);
    let ready = event(&link);
    assert_eq!(ready["event"], "ready");
    let socket = PathBuf::from(ready["socket"].as_str().unwrap());
    assert!(socket.starts_with(scene.folder.path()), "{socket:?}");
    UnixStream::connect(&socket).unwrap();
    drop(link);
    let (status, errors) = launcher.wait_end();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert!(!socket.exists());
    scene.assert_nothing_runs();
    scene.assert_no_sockets_left();
}

#[test]
fn a_parent_that_ends_while_its_server_starts_takes_it_along() {
    let scene = Scene::new();
    scene.order("shard-0", "never ready");
    let (mut launcher, link) = scene.launch_linked(&[]);
    wait_for(Duration::from_secs(20), "both are started", || {
        (scene.family().len() == 2).then_some(())
    });
    drop(link);
    let (status, errors) = launcher.wait_end();
    assert_eq!(status.code(), Some(0), "{errors}");
    scene.assert_nothing_runs();
    scene.assert_no_sockets_left();
}

#[test]
fn a_parent_is_told_why_there_is_no_server() {
    let scene = Scene::new();
    scene.order("shard-0", "say failed");
    let (mut launcher, link) = scene.launch_linked(&["--max-restarts", "0"]);
    let failed = event(&link);
    assert_eq!(failed["event"], "failed");
    assert_eq!(failed["kind"], "model");
    let reason = failed["reason"].as_str().unwrap();
    assert!(reason.contains("the weights are of another model"));
    assert!(!launcher.wait_end().0.success());
    let (mut launcher, link) = scene.launch_linked(&["--uds", "/no/such/folder/http"]);
    assert_eq!(event(&link)["kind"], "setting");
    launcher.wait_end();
}

#[test]
fn a_link_needs_a_socket_pair_at_stdin() {
    let scene = Scene::new();
    let (status, errors) = scene.launch(&["--parent-link"]).wait_end();
    assert!(!status.success());
    assert!(errors.contains("--parent-link"), "{errors}");
}

#[test]
fn a_server_listens_on_a_unix_socket_and_removes_it() {
    let scene = Scene::new();
    let socket = scene.path("http");
    let mut launcher = scene.launch(&["--uds", socket.to_str().unwrap()]);
    launcher.wait_ready();
    assert!(
        launcher
            .log()
            .contains(&format!("unix:{}", socket.display()))
    );
    let (status, errors) = scene
        .launch(&["--uds", socket.to_str().unwrap()])
        .wait_end();
    assert!(!status.success());
    assert!(errors.contains("another server listens"), "{errors}");
    launcher.signal(libc::SIGTERM);
    assert_eq!(launcher.wait_end().0.code(), Some(0));
    assert!(!socket.exists());
    assert!(scene.family().iter().all(|pid| !runs(*pid)));
}
