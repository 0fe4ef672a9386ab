//! `gridwork-router`: reads its settings, listens, and serves until it is told to end.

use std::future::Future;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use gridwork_router::Listeners;
use gridwork_router::config::RouterConfig;
use gridwork_router::connections::Listener;
use gridwork_router::observability::otlp_metrics::OtlpMetrics;
use gridwork_router::observability::telemetry::Telemetry;
use gridwork_router::observability::{logs, metrics};
use gridwork_settings::{RouterSettings, open_files};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Maximum time for which tokenizing threads keep the process after everything else has ended.
const LEFTOVERS_TIMEOUT: Duration = Duration::from_millis(200);

/// Name of the service in traces, unless `--otlp-service-name` gives another.
const SERVICE_NAME: &str = "gridwork.router";

/// The HTTP front of Gridwork: validates, schedules and answers requests, and drives the shard that runs the model.
/// `gridwork` starts it; its flags are those of `gridwork`.
#[derive(Debug, Parser)]
#[command(name = "gridwork-router", version, max_term_width = 120)]
struct Args {
    /// File with the settings, as JSON
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        // Help and version are no errors; a person at a terminal is not to be given JSON.
        Err(error) if !error.use_stderr() || std::io::stderr().is_terminal() => error.exit(),
        Err(error) => {
            let message = error.to_string();
            return failure(message.trim_start_matches("error: ").trim());
        }
    };
    let settings = match read_settings(&args.settings) {
        Ok(settings) => settings,
        Err(message) => return failure(&message),
    };
    logs::log_panics();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failure(&format!("no threads can be started: {error}")),
    };
    let result = runtime.block_on(serve(settings));
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

fn read_settings(file: &PathBuf) -> Result<RouterSettings, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("--settings {} cannot be read: {error}", file.display()))?;
    RouterSettings::from_json(&text).map_err(|error| error.to_string())
}

/// Runs the router. The error is for the user.
async fn serve(settings: RouterSettings) -> Result<(), String> {
    let file_limit = open_files::raise_limit().unwrap_or_else(|_| open_files::limit());
    let config = RouterConfig::new(settings, file_limit)?;
    let output = &config.settings().output;
    let service = output.otlp_service_name.as_deref().unwrap_or(SERVICE_NAME);
    let telemetry = match &output.otlp_endpoint {
        None => None,
        Some(endpoint) => Some(
            Telemetry::start(endpoint, service, output.otlp_sampling_ratio)
                .map_err(|error| format!("--otlp-endpoint {endpoint} cannot be used: {error}"))?,
        ),
    };
    let sent_metrics = match &output.otlp_endpoint {
        Some(endpoint) if output.otlp_metrics => Some(
            OtlpMetrics::start(endpoint, service)
                .map_err(|error| format!("--otlp-endpoint {endpoint} cannot be used: {error}"))?,
        ),
        _ => None,
    };
    metrics::install_with(sent_metrics.as_ref().map(OtlpMetrics::recorder));
    logs::install(output.log_level, telemetry.as_ref());
    let shutdown =
        shutdown_signal().map_err(|error| format!("signals cannot be received: {error}"))?;
    let listeners = listen(&config).await?;
    let result = gridwork_router::run(listeners, config, shutdown).await;
    let traces_sent = async {
        if let Some(telemetry) = telemetry {
            telemetry.shutdown().await;
        }
    };
    let metrics_sent = async {
        if let Some(metrics) = sent_metrics {
            metrics.shutdown().await;
        }
    };
    tokio::join!(traces_sent, metrics_sent);
    result.map_err(|error| error.to_string())
}

/// Opens the sockets that clients and monitors connect to. The error is for the user.
async fn listen(config: &RouterConfig) -> Result<Listeners, String> {
    let http = &config.settings().http;
    let clients = match &http.uds {
        Some(path) => Listener::bind_unix(path).map_err(|error| {
            format!(
                "cannot listen on {}: {error}; choose another --uds",
                path.display()
            )
        })?,
        None => bind(config, http.port, "--hostname or --port").await?,
    };
    tracing::info!("listening on {clients}");
    let monitors = match http.prometheus_port {
        None => None,
        Some(port) => Some(bind(config, port, "--prometheus-port").await?),
    };
    if let Some(monitors) = &monitors {
        tracing::info!("listening on {monitors} for monitors");
    }
    Ok(Listeners { clients, monitors })
}

/// Opens a port. `flags`: what to change where it is not free.
async fn bind(config: &RouterConfig, port: u16, flags: &str) -> Result<Listener, String> {
    let address = config.listen_address(port);
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}; choose another {flags}"))?;
    Ok(listener.into())
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
