//! `gridwork-router`: reads its settings, listens, and serves until it is told to end.

use std::future::Future;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use gridwork_router::cli::Cli;
use gridwork_router::connections;
use gridwork_router::observability::logs;
use gridwork_router::observability::telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long threads that still tokenize may keep the process once everything else has ended.
const LEFTOVERS_TIMEOUT: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let cli = match Cli::from_process() {
        Ok(cli) => cli,
        // Help and version are no errors; a person at a terminal is not to be given JSON.
        Err(error) if !error.use_stderr() || std::io::stderr().is_terminal() => error.exit(),
        Err(error) => {
            let message = error.to_string();
            return failure(message.trim_start_matches("error: ").trim());
        }
    };
    logs::log_panics();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failure(&format!("no threads can be started: {error}")),
    };
    let result = runtime.block_on(serve(cli));
    runtime.shutdown_timeout(LEFTOVERS_TIMEOUT);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => failure(&message),
    }
}

fn failure(message: &str) -> ExitCode {
    logs::fatal(message);
    ExitCode::FAILURE
}

/// Runs the router. The error is for the user.
async fn serve(cli: Cli) -> Result<(), String> {
    let address = cli.listen_address();
    let mut config = cli.into_config();
    let file_limit = connections::files::raise_limit();
    config.connections.max_connections = connections::files::max_connections(
        config.max_connections,
        config.connections.max_connections,
        file_limit,
    )?;
    let telemetry = match &config.otlp_endpoint {
        None => None,
        Some(endpoint) => Some(
            Telemetry::start(endpoint, &config.otlp_service_name)
                .map_err(|error| format!("--otlp-endpoint {endpoint} cannot be used: {error}"))?,
        ),
    };
    logs::install(config.log_level, telemetry.as_ref());
    let shutdown =
        shutdown_signal().map_err(|error| format!("signals cannot be received: {error}"))?;
    let listener = TcpListener::bind(&address).await.map_err(|error| {
        format!("cannot listen on {address}: {error}; choose another --hostname or --port")
    })?;
    match listener.local_addr() {
        Ok(address) => tracing::info!("listening on {address}"),
        Err(_) => tracing::info!("listening on {address}"),
    }
    let result = gridwork_router::run(listener, config, shutdown).await;
    if let Some(telemetry) = telemetry {
        telemetry.shutdown().await;
    }
    result.map_err(|error| error.to_string())
}

/// Resolves at the first SIGTERM or SIGINT. They are caught from this call on.
fn shutdown_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
