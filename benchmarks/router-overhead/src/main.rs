//! Measures the router's own cost.
//!
//! Starts `gridwork-router` on one core with a shard that has no model, and streams to many clients from another
//! core. Prints Markdown tables: the time that the scheduler alone takes for a step, the tokens per second that the
//! one core streams, and the latency that the router adds to a token (from the moment the shard has the step's result
//! to the arrival of the event's bytes at the client).

mod affinity;
mod load;
mod null_shard;
mod scheduler;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use gridwork_settings::{RouterLaunch, RouterSettings};
use tokio::net::UnixListener;

use crate::load::{Answer, FIRST_PROMPT_TOKEN, run_clients};
use crate::null_shard::{SentTimes, null_shard};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Measures the router with a shard that answers at once.
#[derive(Parser, Clone)]
struct Args {
    /// The router to measure
    #[arg(long, default_value = "target/release/gridwork-router")]
    router: PathBuf,
    /// Folder with a tokenizer; its weights are not read
    #[arg(long)]
    model_path: PathBuf,
    /// Core of the router
    #[arg(long, default_value_t = 0)]
    router_core: usize,
    /// Core of the clients and the shard
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Number of concurrent streaming clients
    #[arg(long, default_value_t = 512)]
    clients: u32,
    /// Number of tokens of one answer
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Number of answers that each client requests, one after another
    #[arg(long, default_value_t = 4)]
    requests: usize,
    /// Number of rounds, of which the median is printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure only the scheduler
    #[arg(long)]
    scheduler_only: bool,
}

/// A router on its own core, with a null shard in this process. Dropping it ends both.
struct MeasuredRouter {
    router: Child,
    port: u16,
    shard: tokio::task::JoinHandle<()>,
    socket: PathBuf,
    /// The router reads it when it starts.
    _settings: tempfile::NamedTempFile,
}

fn router_settings(args: &Args, socket: &Path, port: u16) -> Result<RouterSettings> {
    let port = port.to_string();
    let cli = gridwork_settings::try_parse([
        "gridwork",
        "--model-id=null",
        "--hostname=127.0.0.1",
        "--log-level=error",
        "--max-batch-size=1024",
        "--max-concurrent-requests=2048",
        "--max-batch-prefill-tokens=8192",
        "--port",
        &port,
    ])?;
    let launch = RouterLaunch {
        model_id: "null".to_owned(),
        model_path: args.model_path.clone(),
        tokenizer_path: None,
        tokenize_on_shard: false,
        revision: None,
        shard_socket: socket.to_string_lossy().into_owned(),
        compute_type: "cpu".to_owned(),
        supervised: false,
    };
    Ok(RouterSettings::new(&cli, launch))
}

impl MeasuredRouter {
    async fn start(args: &Args, step_time: Duration, sent: Option<SentTimes>) -> Result<Self> {
        let socket =
            std::env::temp_dir().join(format!("gridwork-null-shard-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)?;
        let shard = tokio::spawn(async move {
            if let Err(error) = null_shard(step_time, sent).serve(listener).await {
                eprintln!("the null shard ended: {error}");
            }
        });
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?
            .local_addr()?
            .port();
        // A process inherits the cores of the thread that starts it.
        affinity::pin_to(args.router_core)?;
        let mut settings = tempfile::NamedTempFile::new()?;
        serde_json::to_writer(&mut settings, &router_settings(args, &socket, port)?)?;
        let started = Command::new(&args.router)
            .arg("--settings")
            .arg(settings.path())
            .stdin(Stdio::null())
            .spawn();
        affinity::pin_to(args.client_core)?;
        let router =
            started.map_err(|error| format!("cannot start {}: {error}", args.router.display()))?;
        let measured = MeasuredRouter {
            router,
            port,
            shard,
            socket,
            _settings: settings,
        };
        measured.wait_until_ready().await?;
        Ok(measured)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match load::stream_once(self.port, 0, 1).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("the router is not ready: {error}").into());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for MeasuredRouter {
    fn drop(&mut self) {
        let _ = self.router.kill();
        let _ = self.router.wait();
        self.shard.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Tokens per second with the shard at full speed, CPU microseconds of the router for each token, and the median
/// TPOT.
async fn throughput(args: &Args, clients: u32, requests: usize) -> Result<(f64, f64, f64)> {
    let measured = MeasuredRouter::start(args, Duration::ZERO, None).await?;
    run_clients(measured.port, clients, 1, args.tokens).await?;
    let cpu_before = affinity::cpu_seconds(measured.router.id())?;
    let (elapsed, answers) = run_clients(measured.port, clients, requests, args.tokens).await?;
    let cpu = affinity::cpu_seconds(measured.router.id())? - cpu_before;
    let tokens = f64::from(clients) * (requests * args.tokens) as f64;
    let tpot = quantile(answers.iter().flatten().map(tpot_us).collect(), 0.5);
    Ok((tokens / elapsed.as_secs_f64(), cpu * 1e6 / tokens, tpot))
}

fn tpot_us(answer: &Answer) -> f64 {
    match answer.arrivals.as_slice() {
        [first, .., last] => {
            (*last - *first).as_secs_f64() * 1e6 / (answer.arrivals.len() - 1) as f64
        }
        _ => 0.0,
    }
}

/// Latencies with steps of `step_time`, in microseconds: from the step's result to the event's bytes at the client,
/// p50 and p99, and from the request's bytes to those of the first token without the step itself, p50.
async fn latency(args: &Args, clients: u32, step_time: Duration) -> Result<(f64, f64, f64)> {
    let sent: SentTimes = Arc::new(Mutex::new(Default::default()));
    let measured = MeasuredRouter::start(args, step_time, Some(sent.clone())).await?;
    let _ = sent.lock().map(|mut sent| sent.clear());
    let (_, answers) = run_clients(measured.port, clients, 1, args.tokens).await?;
    let sent = sent.lock().map_err(|_| "the null shard panicked")?;
    let mut added = Vec::new();
    let mut first = Vec::new();
    for (client, answers) in answers.iter().enumerate() {
        let Some(times) = sent.get(&(FIRST_PROMPT_TOKEN + client as u32)) else {
            continue;
        };
        for answer in answers {
            let pairs = times.iter().zip(&answer.arrivals);
            added.extend(pairs.map(|(sent, arrived)| {
                arrived.saturating_duration_since(*sent).as_secs_f64() * 1e6
            }));
            if let Some(arrived) = answer.arrivals.first() {
                let since = arrived.saturating_duration_since(answer.started + step_time);
                first.push(since.as_secs_f64() * 1e6);
            }
        }
    }
    Ok((
        quantile(added.clone(), 0.5),
        quantile(added, 0.99),
        quantile(first, 0.5),
    ))
}

fn quantile(mut values: Vec<f64>, at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get(((values.len() as f64 * at) as usize).min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

async fn run(args: Args) -> Result<()> {
    scheduler::print_cost(&args.model_path, args.rounds)?;
    if args.scheduler_only {
        return Ok(());
    }
    println!(
        "| clients | shard | tokens/s | router CPU a token | TPOT p50 |\n|---|---|---|---|---|"
    );
    for clients in [1, 32, args.clients] {
        let requests = if clients == 1 { 16 } else { args.requests };
        let mut rounds = Vec::new();
        for _ in 0..args.rounds {
            rounds.push(throughput(&args, clients, requests).await?);
        }
        let median =
            |pick: fn(&(f64, f64, f64)) -> f64| quantile(rounds.iter().map(pick).collect(), 0.5);
        println!(
            "| {clients} | at once | {:.0} | {:.1} µs | {:.0} µs |",
            median(|round| round.0),
            median(|round| round.1),
            median(|round| round.2)
        );
    }
    println!(
        "\n| clients | step | added to a token, p50 | p99 | to the first token besides its step, p50 |"
    );
    println!("|---|---|---|---|---|");
    for (clients, step_ms) in [(1, 10), (32, 20), (args.clients, 50)] {
        let (p50, p99, first) = latency(&args, clients, Duration::from_millis(step_ms)).await?;
        println!("| {clients} | {step_ms} ms | {p50:.0} µs | {p99:.0} µs | {first:.0} µs |");
    }
    Ok(())
}

fn main() -> Result<()> {
    let args = Args::parse();
    affinity::pin_to(args.client_core)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(args))
}
