//! `gridwork`, the program that people start. It fetches or checks the model, starts the router and the shards, watches
//! them, and ends them in order.

mod error;
mod health;
mod launch;
mod logs;
mod machine;
mod model;
mod process;
mod supervisor;
mod tools;

use std::ffi::OsString;
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use error::LauncherError;
use gridwork_edge::{api_key_file, tls};
use gridwork_settings::{Cli, Http, open_files};
use launch::{LaunchPlan, prepare};
use logs::{Format, Log};
use machine::{Gpus, Placement, report};
use model::{Fitness, NativeTypes, Source, Trust};
use process::hidden_keys;
use process::http_socket::HttpSocket;
use process::orphans;
use process::parent::{Event, Parent};
use process::programs::Wanted;
use process::signals::Signals;
use process::sockets::{self, Sockets};

/// Maximum time that a stalled terminal may delay the end.
const LAST_LINES_WAIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let began = Instant::now();
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|word| word == "health") {
        return tell_health(&args[2..]);
    }
    match tools::run(&args) {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => {
            say(format!(
                "error: {}\n",
                logs::visible(&error.to_string(), true)
            ));
            return ExitCode::FAILURE;
        }
    }
    if let Err(error) = hidden_keys::hide(&args) {
        say(format!(
            "warning: --api-key is shown by `ps`, since this program cannot be started anew: {error}\n"
        ));
    }
    let cli = gridwork_settings::parse_command_line();
    if cli.report.env {
        let text = report::describe(&cli.processes, &Gpus::detect());
        // Nobody is left to tell if the reader has closed the pipe.
        let _ = writeln!(stdout(), "{text}");
        return ExitCode::SUCCESS;
    }
    let result = start(cli, began);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format!(
                "error: {}\n",
                logs::visible(&error.to_string(), true)
            ));
            ExitCode::from(error.exit_code())
        }
    }
}

/// `gridwork health`: prints the state of the server, and succeeds if it is ready.
fn tell_health(flags: &[OsString]) -> ExitCode {
    let result = health::check(flags);
    let text = match &result {
        Ok(url) => format!("{url} is ready"),
        Err(error) => format!("error: {}", logs::visible(&error.to_string(), true)),
    };
    let _ = writeln!(stdout(), "{text}");
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes to stderr. It may be a pipe that nobody reads, so that the wait is bounded.
fn say(text: String) {
    let (done, written) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = stderr().write_all(text.as_bytes());
        let _ = done.send(());
    });
    let _ = written.recv_timeout(LAST_LINES_WAIT);
}

/// Runs everything on this thread: children are bound to the thread that started them (see [`process`]).
fn start(cli: Cli, began: Instant) -> Result<(), LauncherError> {
    let io = |what| move |source| LauncherError::Io { what, source };
    let format = Format::for_stdout(cli.report.json_output);
    let log = Log::start(cli.output.log_level, format, stdout())
        .map_err(io("cannot start a thread for the log"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io("cannot start"))?;
    let result = runtime.block_on(async {
        orphans::reap().map_err(io("cannot become the parent of orphans"))?;
        let is_linked = cli.processes.parent_link;
        let parent = is_linked.then(Parent::at_stdin).transpose();
        let parent = parent.map_err(io("--parent-link: stdin is no end of a socket pair"))?;
        let mut signals = Signals::listen(parent).map_err(io("cannot listen to signals"))?;
        let result = launch(cli, began, &log, &mut signals).await;
        if let Err(error) = &result {
            signals.teller().tell(&Event::Failed {
                kind: error.blame(),
                reason: &error.to_string(),
            });
        }
        result
    });
    log.flush(LAST_LINES_WAIT);
    // Name resolution of the health checks may still be under way on a thread of its own.
    runtime.shutdown_background();
    result
}

/// Checks the certificate and the files of keys, which the router reads.
fn check_edge(cli: &Cli) -> Result<(), LauncherError> {
    let setting = |error: &dyn std::error::Error| LauncherError::Setting(error.to_string());
    let Http {
        tls_cert, tls_key, ..
    } = &cli.http;
    if let Some(files) = tls::files(tls_cert.as_deref(), tls_key.as_deref()) {
        files.identity().map_err(|error| setting(&error))?;
    }
    if let Some(path) = &cli.http.api_key_file {
        api_key_file::read(path).map_err(|error| setting(&error))?;
    }
    Ok(())
}

/// Checks everything that can be checked, cheapest first, then runs the server until it is told to end.
async fn launch(
    mut cli: Cli,
    began: Instant,
    log: &Log,
    signals: &mut Signals,
) -> Result<(), LauncherError> {
    for warning in cli
        .legacy
        .warnings()
        .into_iter()
        .chain(cli.warnings.clone())
    {
        log.warn(warning);
    }
    let file_limit = open_files::raise_limit().unwrap_or_else(|error| {
        log.warn(format!("the limit of open files cannot be raised: {error}"));
        open_files::limit()
    });
    open_files::max_connections(
        cli.http.max_connections,
        cli.limits.max_concurrent_requests,
        file_limit,
    )
    .map_err(LauncherError::Setting)?;
    check_edge(&cli)?;
    let model_id = cli.model.model_id.clone().unwrap_or_default();
    let source = model::locate(&model_id)?;
    let server = Wanted::server(&cli.processes).find();
    let trust = Trust {
        remote_code: cli.model.trust_remote_code,
        pickles: cli.model.allow_pickle_weights,
        native_types: NativeTypes::of_server(server.as_deref().unwrap_or_default()),
    };
    let fitness = match &source {
        Source::Folder(folder) => model::check_folder(folder, &trust)?,
        _ => Fitness::Ready,
    };
    let server = server?;
    let gpus = Gpus::detect();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let placement = Placement::choose(&cli.processes, &gpus, cores)?;
    let router = Wanted::router(&cli.processes).find()?;
    let sockets = Sockets::prepare(cli.processes.shard_uds_path.as_deref(), placement.num_shard)?;
    if cli.processes.parent_link && cli.http.uds.is_none() {
        cli.http.uds = Some(sockets.http());
    }
    let _http_socket = match &cli.http.uds {
        Some(path) => Some(HttpSocket::prepare(path)?),
        None => {
            sockets::check_port(&cli.http.hostname, cli.http.port, "--port")?;
            None
        }
    };
    if let Some(port) = cli.http.prometheus_port {
        sockets::check_port(&cli.http.hostname, port, "--prometheus-port")?;
    }
    let prepared = prepare::folder_of(source, fitness, &cli, &server, &trust, log, signals).await?;
    let Some(model) = prepared else {
        return Ok(());
    };
    let compute_type = std::env::var("COMPUTE_TYPE")
        .ok()
        .filter(|text| !text.is_empty());
    let plan = LaunchPlan {
        model_id,
        model_path: model.path,
        tokenizer: model.tokenizer,
        placement,
        compute_type: compute_type.unwrap_or_else(|| placement.compute_type(&gpus)),
        server,
        router,
        cli,
    };
    log.info(format!(
        "Gridwork {} starts {} with {} on {}",
        env!("CARGO_PKG_VERSION"),
        plan.model_id,
        match placement.num_shard {
            1 => "one shard".to_owned(),
            n => format!("{n} shards"),
        },
        plan.compute_type
    ));
    log.debug(format!("{:?}", plan.cli));
    plan.check(&sockets)?;
    supervisor::run(&plan, &sockets, log, signals, began).await?;
    Ok(())
}
