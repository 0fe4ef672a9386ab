//! The launcher's supervision, with stand-ins for the router and the shards: see `support::fake`.

#[path = "supervision/parent_link.rs"]
mod parent_link;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use gridwork_settings::RouterSettings;
use support::launcher::{Scene, command_line_contains, send};
use support::{runs, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// Not a test: what the launcher starts in place of the router and the shards.
#[test]
fn fake_process() {
    support::fake::run_if_asked();
}

#[test]
fn everything_starts_and_ends_in_order() {
    let scene = Scene::new();
    scene.order("router", "end slowly");
    let mut launcher = scene.launch(&["--num-shard", "2"]);
    launcher.wait_ready();
    let url = format!("http://127.0.0.1:{}", launcher.port);
    assert!(launcher.log().contains(&url));
    launcher.signal(libc::SIGTERM);
    let (status, errors) = launcher.wait_end();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert_eq!(errors, "");
    let journal = scene.read("journal");
    let at = |text: &str| {
        journal
            .find(text)
            .unwrap_or_else(|| panic!("{text}: {journal}"))
    };
    assert!(at("router ended") < at("shard-0 SIGTERM"));
    assert!(at("router ended") < at("shard-1 SIGTERM"));
    scene.assert_nothing_runs();
    scene.assert_no_sockets_left();
}

#[test]
fn no_child_outlives_a_killed_launcher() {
    let scene = Scene::new();
    for role in ["router", "shard-0", "shard-1"] {
        scene.order(role, "ignore SIGTERM");
    }
    let mut launcher = scene.launch(&["--num-shard", "2"]);
    launcher.wait_ready();
    let family = scene.family();
    assert_eq!(family.len(), 3);
    assert!(family.iter().all(|pid| runs(*pid)));
    launcher.signal(libc::SIGKILL);
    launcher.wait_end();
    scene.assert_nothing_runs();
}

#[test]
fn an_orphan_becomes_the_launchers_child_and_is_reaped() {
    let scene = Scene::new();
    scene.order("shard-0", "leave 5");
    let launcher = scene.launch(&[]);
    let orphan = wait_for(SOON, "an orphan is left", || {
        scene.noted("shard-0", "orphan").first().copied()
    });
    let parent = |pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields = stat.rsplit(") ").next()?;
        fields.split(' ').nth(1)?.parse::<u32>().ok()
    };
    assert_eq!(parent(orphan), Some(launcher.id()));
    wait_for(SOON, "the orphan has left the table of processes", || {
        parent(orphan).is_none().then_some(())
    });
    launcher.wait_ready();
}

#[test]
fn a_dead_shard_restarts_its_group_and_not_the_router() {
    let scene = Scene::new();
    // Not this machine, as far as the launcher knows: ranks meet at a port.
    let args = ["--num-shard", "2", "--master-addr", "127.0.0.2"];
    let launcher = scene.launch(&args);
    launcher.wait_ready();
    let ports = |scene: &Scene| scene.read("shard-0.settings");
    let before = ports(&scene);
    for restarts in 1..=3 {
        let victim = *scene.noted("shard-1", "started").last().unwrap();
        send(victim, libc::SIGKILL);
        launcher.wait_for_log("ready again", restarts);
        assert_eq!(scene.noted("shard-0", "started").len(), restarts + 1);
        assert_eq!(scene.noted("shard-1", "started").len(), restarts + 1);
    }
    assert_eq!(scene.noted("router", "started").len(), 1);
    let log = launcher.log();
    assert!(log.contains("shard-1 was killed (SIGKILL)"), "{log}");
    for pause in ["in 0.1 s", "in 0.2 s", "in 0.4 s"] {
        assert!(log.contains(pause), "{log}");
    }
    assert_ne!(before, ports(&scene), "a fresh port for every start");
}

/// Clients can be quicker than the launcher's own look at whether everything is ready.
#[test]
fn a_shard_that_dies_before_its_readiness_is_noticed_is_restarted() {
    let scene = Scene::new();
    scene.order("router", "never ready\nhas loaded\nend slowly");
    let mut launcher = scene.launch(&[]);
    launcher.wait_for_log("router: waiting for the shard", 1);
    launcher.wait_for_log("shard-0: ready", 1);
    send(scene.noted("shard-0", "started")[0], libc::SIGKILL);
    launcher.wait_for_log("ready again", 1);
    assert_eq!(scene.noted("shard-0", "started").len(), 2);
    assert_eq!(scene.noted("router", "started").len(), 1);
    launcher.signal(libc::SIGTERM);
    let (status, errors) = launcher.wait_end();
    assert_eq!(status.code(), Some(0), "{errors}");
    let journal = scene.read("journal");
    let router_ended = journal.find("router ended");
    assert!(router_ended.is_some() && router_ended < journal.find("shard-0 SIGTERM"));
}

#[test]
fn a_dead_router_is_restarted_alone() {
    let scene = Scene::new();
    let launcher = scene.launch(&[]);
    launcher.wait_ready();
    send(scene.noted("router", "started")[0], libc::SIGKILL);
    launcher.wait_for_log("ready again", 1);
    assert_eq!(scene.noted("router", "started").len(), 2);
    assert_eq!(scene.noted("shard-0", "started").len(), 1);
    assert!(launcher.log().contains("are lost"));
}

#[test]
fn a_shard_that_does_not_come_back_is_given_up() {
    let scene = Scene::new();
    let mut launcher = scene.launch(&["--max-restarts", "3"]);
    launcher.wait_ready();
    scene.order("shard-0", "fatal no memory left");
    send(scene.noted("shard-0", "started")[0], libc::SIGKILL);
    let (status, errors) = launcher.wait_end();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("3 restarts in a row"), "{errors}");
    assert!(errors.contains("no memory left"), "{errors}");
    assert_eq!(scene.noted("shard-0", "started").len(), 4);
    scene.assert_nothing_runs();
    scene.assert_no_sockets_left();
}

#[test]
fn a_shard_that_stops_answering_is_restarted() {
    let scene = Scene::new();
    let launcher = scene.launch(&["--shard-hang-timeout", "1"]);
    launcher.wait_ready();
    let pid = scene.noted("shard-0", "started")[0];
    scene.order("shard-0", "hang");
    wait_for(SOON, "the hanging shard is killed", || {
        (!runs(pid)).then_some(())
    });
    scene.order("shard-0", "");
    launcher.wait_for_log("ready again", 1);
    assert!(launcher.log().contains("shard-0 has not answered for 1 s"));
}

#[test]
fn a_shard_stopped_by_a_signal_is_restarted() {
    let scene = Scene::new();
    let launcher = scene.launch(&["--shard-hang-timeout", "1"]);
    launcher.wait_ready();
    send(scene.noted("shard-0", "started")[0], libc::SIGSTOP);
    launcher.wait_for_log("ready again", 1);
}

#[test]
fn a_router_that_stops_answering_is_restarted() {
    for (orders, signal) in [("silent", None), ("", Some(libc::SIGSTOP))] {
        let scene = Scene::new();
        let launcher = scene.launch(&["--router-hang-timeout", "1"]);
        launcher.wait_ready();
        let pid = scene.noted("router", "started")[0];
        scene.order("router", orders);
        if let Some(signal) = signal {
            send(pid, signal);
        }
        wait_for(SOON, "the router is killed", || (!runs(pid)).then_some(()));
        scene.order("router", "");
        launcher.wait_for_log("the router: ready again", 1);
        let log = launcher.log();
        assert!(log.contains("router has not answered for 1 s"), "{log}");
        assert_eq!(scene.noted("shard-0", "started").len(), 1);
    }
}

#[test]
fn shards_with_an_overdue_step_are_restarted() {
    let scene = Scene::new();
    let launcher = scene.launch(&["--num-shard", "2"]);
    launcher.wait_ready();
    let pid = scene.noted("shard-1", "started")[0];
    scene.order("router", "overdue");
    wait_for(SOON, "the shards are killed", || (!runs(pid)).then_some(()));
    scene.order("router", "");
    launcher.wait_for_log("all shards: ready again", 1);
    assert!(launcher.log().contains("ERROR launcher: a step is overdue"));
    assert_eq!(scene.noted("router", "started").len(), 1);
}

#[test]
fn a_socket_that_is_removed_is_put_back_and_a_folder_made_again() {
    let scene = Scene::new();
    let launcher = scene.launch(&[]);
    launcher.wait_ready();
    let socket = scene.argument("shard-0", "--socket");
    let folder = socket.parent().unwrap().to_owned();
    let mode = folder.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    std::fs::remove_file(&socket).unwrap();
    wait_for(SOON, "the socket is there again", || {
        socket.exists().then_some(())
    });
    assert_eq!(scene.noted("shard-0", "started").len(), 1);
    std::fs::remove_dir_all(folder).unwrap();
    launcher.wait_for_log("ready again", 1);
    assert!(socket.exists());
}

#[test]
fn the_folder_of_a_killed_launcher_is_removed_by_the_next_one() {
    let scene = Scene::new();
    let mut killed = scene.launch(&[]);
    killed.wait_ready();
    let left = scene.argument("shard-0", "--socket");
    killed.signal(libc::SIGKILL);
    killed.wait_end();
    assert!(left.exists());
    let mut next = scene.launch(&[]);
    next.wait_ready();
    assert!(!left.parent().unwrap().exists());
    next.signal(libc::SIGTERM);
    next.wait_end();
    scene.assert_no_sockets_left();
}

#[test]
fn the_router_is_told_why_everything_ends() {
    let scene = Scene::new();
    let mut launcher = scene.launch(&["--max-restarts", "1"]);
    launcher.wait_ready();
    scene.order("shard-0", "fatal no memory left");
    send(scene.noted("shard-0", "started")[0], libc::SIGKILL);
    let (status, _) = launcher.wait_end();
    assert_eq!(status.code(), Some(1));
    let questions = scene.read("router.questions");
    let last = questions.lines().last().unwrap();
    assert!(
        last.contains("ends") && last.contains("no memory left"),
        "{questions}"
    );
    assert!(scene.read("journal").contains("router ended"));
}

#[test]
fn tokens_are_told_to_the_downloader_alone() {
    let scene = Scene::new();
    scene.order("prepare", "log downloading");
    let launcher = scene.launch_bare(&["--model-id", "org/name", "--shard-env", "WANTED"]);
    launcher.wait_ready();
    let seen_by = |role: &str| scene.read(&format!("{role}.environment"));
    let tokens = ["HF_TOKEN=whisper", "HUGGING_FACE_HUB_TOKEN=whisper"];
    for token in tokens {
        assert!(seen_by("prepare").contains(token));
    }
    for role in ["router", "shard-0"] {
        for token in tokens {
            assert!(!seen_by(role).contains(token), "{role}");
        }
    }
    assert!(!seen_by("shard-0").contains("whisper"));
    assert!(seen_by("shard-0").contains("WANTED=yes"));
}

#[test]
fn a_failure_at_the_start_is_told_once_and_ends_everything() {
    for (role, orders, expected) in [
        (
            "shard-1",
            "print noise\nfatal cannot load: bad weights",
            "error: shard-1: cannot load: bad weights\n",
        ),
        (
            "router",
            "fatal cannot listen",
            "error: router: cannot listen\n",
        ),
        (
            "shard-0",
            "say failed",
            "error: shard-0: the weights are of another model\n",
        ),
        (
            "shard-0",
            "log last words\nexit 3",
            "error: shard-0 ended with exit code 3; its last line was: ",
        ),
    ] {
        let scene = Scene::new();
        scene.order(role, orders);
        let began = Instant::now();
        let mut launcher = scene.launch(&["--num-shard", "2"]);
        let (status, errors) = launcher.wait_end();
        assert!(began.elapsed() < SOON);
        assert_eq!(status.code(), Some(1), "{role} {orders}");
        assert!(errors.starts_with(expected), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        if orders.contains("fatal") {
            let log = launcher.log();
            assert!(!log.contains("cannot"), "told twice: {log}");
        }
        scene.assert_nothing_runs();
        scene.assert_no_sockets_left();
    }
}

#[test]
fn a_start_that_takes_too_long_tells_who_is_not_ready() {
    let scene = Scene::new();
    scene.order("shard-1", "never ready");
    scene.order("router", "never ready");
    let mut launcher = scene.launch(&["--num-shard", "2", "--startup-timeout", "2"]);
    let (status, errors) = launcher.wait_end();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("--startup-timeout"), "{errors}");
    assert!(
        errors.contains("shard-1 (loading layer 3 of 7)"),
        "{errors}"
    );
    assert!(
        errors.contains("router (waiting for the shard)"),
        "{errors}"
    );
    assert!(!errors.contains("shard-0"), "{errors}");
    assert!(launcher.log().contains("shard-1: loading layer 3 of 7"));
    scene.assert_nothing_runs();
}

#[test]
fn a_signal_during_the_start_ends_it() {
    let scene = Scene::new();
    scene.order("shard-0", "never ready");
    scene.order("router", "never ready");
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let mut launcher = scene.launch(&[]);
        launcher.wait_for_log("loading layer", 1);
        launcher.signal(signal);
        let (status, errors) = launcher.wait_end();
        assert_eq!(status.code(), Some(0), "{errors}");
        scene.assert_nothing_runs();
    }
}

#[test]
fn a_second_interrupt_ends_everything_at_once() {
    let scene = Scene::new();
    scene.order("router", "ignore SIGTERM");
    let mut launcher = scene.launch(&[]);
    launcher.wait_ready();
    launcher.signal(libc::SIGINT);
    wait_for(SOON, "the router is told", || {
        (!scene.noted("router", "SIGTERM").is_empty()).then_some(())
    });
    launcher.signal(libc::SIGINT);
    let began = Instant::now();
    let (status, errors) = launcher.wait_end();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(status.code(), Some(130), "{errors}");
    scene.assert_nothing_runs();
    scene.assert_no_sockets_left();
}

#[test]
fn a_router_that_does_not_end_is_killed() {
    let scene = Scene::new();
    scene.order("router", "ignore SIGTERM");
    let mut launcher = scene.launch(&["--graceful-termination-timeout", "0"]);
    launcher.wait_ready();
    launcher.signal(libc::SIGTERM);
    let (status, _) = launcher.wait_end();
    assert_eq!(status.code(), Some(0));
    assert!(launcher.log().contains("the router did not end in time"));
    scene.assert_nothing_runs();
}

#[test]
fn what_children_print_is_shown_with_their_tag() {
    let scene = Scene::new();
    scene.order(
        "shard-0",
        "print hello from custom code\nprint-raw x\nlog a warning",
    );
    let launcher = scene.launch(&[]);
    launcher.wait_ready();
    let log = launcher.log();
    for line in [
        "shard-0 | hello from custom code\n",
        "shard-0 | bad \u{fffd} byte\n",
        "T  WARN shard-0 fake: a warning n=1\n",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(!log.contains('\x1b'), "colour without a terminal: {log}");
}

#[test]
fn json_output_is_one_object_a_line() {
    let scene = Scene::new();
    scene.order("shard-0", "print hello\nlog a warning");
    let launcher = scene.launch(&["--json-output"]);
    launcher.wait_ready();
    let log = launcher.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect();
    let find = |message: &str| {
        lines
            .iter()
            .find(|line| line["message"] == message)
            .unwrap()
    };
    assert_eq!(find("hello")["tag"], "shard-0");
    assert_eq!(find("a warning")["level"], "WARN");
    assert_eq!(find("a warning")["fields"]["n"], 1);
    assert!(lines.iter().any(|line| line["tag"] == "launcher"));
}

#[test]
fn the_key_is_in_the_routers_settings_alone() {
    let scene = Scene::new();
    let launcher = scene.launch(&["--log-level", "trace"]);
    launcher.wait_ready();
    let router = scene.noted("router", "started")[0];
    assert!(!command_line_contains(router, "hush"));
    assert!(
        scene
            .read("router.settings")
            .contains(r#""api_key":["hush"]"#)
    );
    assert!(!scene.read("router.environment").contains("hush"));
    assert!(!scene.read("shard-0.environment").contains("hush"));
    assert!(!scene.read("shard-0.settings").contains("hush"));
    assert!(!launcher.log().contains("hush"));
}

#[test]
fn a_name_on_the_hub_is_prepared_first() {
    let scene = Scene::new();
    scene.order("prepare", "log downloading");
    let launcher = scene.launch_bare(&["--model-id", "org/name", "--revision", "v2"]);
    launcher.wait_ready();
    assert!(launcher.log().contains("prepare fake: downloading"));
    let given = scene.read("prepare.arguments");
    assert_eq!(given, "prepare\n--model-id\norg/name\n--revision\nv2");
    let folder = scene.path("model");
    let router = RouterSettings::from_json(&scene.read("router.settings")).unwrap();
    assert_eq!(router.launch.model_path, folder);
    assert_eq!(router.launch.model_id, "org/name");
}

#[test]
fn a_model_that_cannot_be_prepared_ends_the_launcher() {
    let scene = Scene::new();
    scene.order("prepare", "fatal the hub cannot be reached");
    let mut launcher = scene.launch_bare(&["--model-id", "org/name"]);
    let (status, errors) = launcher.wait_end();
    assert_eq!(status.code(), Some(1));
    assert_eq!(
        errors,
        "error: cannot prepare org/name: the hub cannot be reached\n"
    );
    assert_eq!(scene.family().len(), 1, "nothing else was started");
}

#[test]
fn a_port_in_use_is_told_before_anything_starts() {
    let scene = Scene::new();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let began = Instant::now();
    let mut launcher =
        scene.launch_at(port, &["--model-id", scene.path("model").to_str().unwrap()]);
    let (status, errors) = launcher.wait_end();
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains(&format!("port {port}")), "{errors}");
    assert!(errors.contains("already in use"), "{errors}");
    assert!(scene.family().is_empty());
    scene.assert_no_sockets_left();
}
