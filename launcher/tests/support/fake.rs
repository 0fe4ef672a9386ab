//! Stand-ins for the router, the shards and `gridwork-server prepare`: small enough to start in milliseconds, and told
//! by a file how to behave.
//!
//! The test program starts itself as the stand-in: the launcher runs `TEST_PROGRAM fake_process --exact --nocapture --
//! …`, and the test of that name calls [`run_if_asked`].

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use gridwork_proto::v1::HealthResponse;
use gridwork_proto::v1::health_response::State;
use gridwork_settings::RouterSettings;
use gridwork_testing::FakeShard;

/// Names the folder through which test and stand-ins talk.
pub const FOLDER_VARIABLE: &str = "GRIDWORK_TEST_FOLDER";

/// Becomes a stand-in when the launcher has started this process as one; never returns then.
pub fn run_if_asked() {
    let Some(folder) = std::env::var_os(FOLDER_VARIABLE) else {
        return;
    };
    let words: Vec<String> = std::env::args().collect();
    let rest = words.iter().skip_while(|word| *word != "--").skip(1);
    let fake = Fake::new(folder.into(), rest.cloned().collect());
    match fake.role.as_str() {
        "router" => fake.be_router(),
        "prepare" => fake.be_prepare(),
        _ => fake.be_shard(),
    }
    std::process::exit(0);
}

struct Fake {
    folder: PathBuf,
    role: String,
    args: Vec<String>,
}

impl Fake {
    fn new(folder: PathBuf, args: Vec<String>) -> Self {
        let value = |flag: &str| {
            let at = args.iter().position(|arg| arg == flag)?;
            args.get(at + 1).cloned()
        };
        let role = match args.first().map(String::as_str) {
            Some("serve") => format!("shard-{}", value("--rank").unwrap()),
            Some("prepare") => "prepare".to_owned(),
            _ => "router".to_owned(),
        };
        let fake = Self { folder, role, args };
        fake.note("started");
        fake
    }

    fn value(&self, flag: &str) -> String {
        let at = self.args.iter().position(|arg| arg == flag).unwrap();
        self.args[at + 1].clone()
    }

    /// The JSON that the launcher has passed, when it has passed any.
    fn settings(&self) -> Option<String> {
        let is_given = self.args.iter().any(|arg| arg == "--settings");
        is_given.then(|| fs::read_to_string(self.value("--settings")).unwrap())
    }

    /// Text that the test wrote for this role; empty if none.
    fn orders(&self) -> String {
        let path = self.folder.join(format!("{}.orders", self.role));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Appends a line to the journal that the test reads.
    fn note(&self, what: &str) {
        self.note_of(what, std::process::id());
    }

    fn note_of(&self, what: &str, id: u32) {
        let journal = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join("journal"));
        let line = format!("{} {what} {id}\n", self.role);
        journal.unwrap().write_all(line.as_bytes()).unwrap();
    }

    /// Orders that are the same for every role.
    fn obey_at_start(&self) {
        let orders = self.orders();
        let environment: Vec<String> = std::env::vars()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let path = self.folder.join(format!("{}.environment", self.role));
        fs::write(path, environment.join("\n")).unwrap();
        let path = self.folder.join(format!("{}.arguments", self.role));
        fs::write(path, self.args.join("\n")).unwrap();
        if let Some(settings) = self.settings() {
            let path = self.folder.join(format!("{}.settings", self.role));
            fs::write(path, settings).unwrap();
        }
        for order in orders.lines() {
            match order.split_once(' ') {
                Some(("print", text)) => println!("{text}"),
                Some(("print-raw", _)) => {
                    std::io::stdout().write_all(b"bad \xff byte\n").unwrap();
                }
                Some(("log", text)) => eprintln!(
                    r#"{{"timestamp":"T","level":"WARN","target":"fake","message":"{text}","fields":{{"n":1}}}}"#
                ),
                Some(("fatal", text)) => {
                    eprintln!(
                        r#"{{"timestamp":"T","level":"ERROR","target":"fake","message":"{text}","fatal":true}}"#
                    );
                    std::process::exit(1);
                }
                Some(("leave", seconds)) => self.leave_orphan(seconds),
                Some(("exit", code)) => std::process::exit(code.parse().unwrap()),
                _ => {}
            }
        }
    }

    /// Starts a process that outlives its parent by some seconds; notes it in the journal.
    fn leave_orphan(&self, seconds: &str) {
        let command = format!("exec >&- 2>&-; sleep {seconds} & echo $! >$0");
        let path = self.folder.join("orphan");
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", &command]).arg(&path);
        assert!(shell.status().unwrap().success());
        let id = fs::read_to_string(path).unwrap().trim().parse().unwrap();
        self.note_of("orphan", id);
    }

    fn has_order(&self, order: &str) -> bool {
        self.orders().lines().any(|line| line == order)
    }

    fn be_prepare(&self) {
        self.obey_at_start();
        println!(
            "{{\"model_path\": \"{}\"}}",
            self.folder.join("model").display()
        );
    }

    fn be_router(&self) {
        let settings = RouterSettings::from_json(&self.settings().unwrap()).unwrap();
        let mut clients = clients(&settings);
        self.obey_at_start();
        let runtime = runtime();
        let term = self.end_at_sigterm(&runtime);
        self.answer_the_launcher();
        runtime.spawn_blocking({
            let never_ready = self.has_order("never ready");
            let has_loaded = self.has_order("has loaded");
            move || {
                for mut stream in &mut clients {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request);
                    let status = if never_ready {
                        "503 Service Unavailable"
                    } else {
                        "200 OK"
                    };
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nx-gridwork-loaded: {has_loaded}\r\n\r\n{{\"error\":\"waiting for the shard\"}}"
                    );
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
        });
        let _ = runtime.block_on(term);
        std::process::exit(0);
    }

    /// At stdin, as its orders say at that moment. What it is asked is noted in `router.questions`.
    fn answer_the_launcher(&self) {
        let fake = Self {
            folder: self.folder.clone(),
            role: self.role.clone(),
            args: Vec::new(),
        };
        let mut socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
        std::thread::spawn(move || {
            let questions = BufReader::new(socket.try_clone().unwrap());
            for question in questions.lines() {
                let Ok(question) = question else { return };
                let mut file = File::options();
                let file = file.create(true).append(true);
                let mut file = file.open(fake.folder.join("router.questions")).unwrap();
                writeln!(file, "{question}").unwrap();
                let answer: &[u8] = if fake.has_order("silent") {
                    continue;
                } else if fake.has_order("overdue") {
                    b"{\"hang\":\"a step is overdue\",\"hang_ms\":0,\"silent_ms\":0}\n"
                } else {
                    b"{\"hang\":null,\"hang_ms\":0,\"silent_ms\":0}\n"
                };
                let _ = socket.write_all(answer);
            }
        });
    }

    fn be_shard(&self) {
        self.obey_at_start();
        let runtime = runtime();
        let term = self.end_at_sigterm(&runtime);
        let socket = self.value("--socket");
        let shard = ordered_shard(self.folder.join(format!("{}.orders", self.role)));
        let _shard = shard.serve_at(socket.as_ref());
        let _ = runtime.block_on(term);
        std::process::exit(0);
    }

    /// Ends at SIGTERM, noted in the journal, unless ordered to ignore it.
    fn end_at_sigterm(&self, runtime: &tokio::runtime::Runtime) -> tokio::task::JoinHandle<()> {
        let ignore = self.has_order("ignore SIGTERM");
        let slow = self.has_order("end slowly");
        let _guard = runtime.enter();
        let kind = tokio::signal::unix::SignalKind::terminate();
        let mut signal = tokio::signal::unix::signal(kind).unwrap();
        let journal = Self {
            folder: self.folder.clone(),
            role: self.role.clone(),
            args: Vec::new(),
        };
        runtime.spawn(async move {
            loop {
                signal.recv().await;
                journal.note("SIGTERM");
                if ignore {
                    continue;
                }
                if slow {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                journal.note("ended");
                return;
            }
        })
    }
}

/// A connection of a client.
trait Connection: Read + Write + Send {}
impl<S: Read + Write + Send> Connection for S {}

/// Connections that clients open, where the settings say.
fn clients(settings: &RouterSettings) -> Box<dyn Iterator<Item = Box<dyn Connection>> + Send> {
    if let Some(path) = &settings.http.uds {
        let listener = UnixListener::bind(path).unwrap();
        return Box::new(std::iter::repeat_with(move || {
            Box::new(listener.accept().unwrap().0) as Box<dyn Connection>
        }));
    }
    let listener = TcpListener::bind(("127.0.0.1", settings.http.port)).unwrap();
    Box::new(std::iter::repeat_with(move || {
        Box::new(listener.accept().unwrap().0) as Box<dyn Connection>
    }))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// A shard whose health follows its orders at that moment.
fn ordered_shard(orders: PathBuf) -> FakeShard {
    FakeShard::idle().with_health(move || {
        let orders = fs::read_to_string(&orders).unwrap_or_default();
        let has = |order: &str| orders.lines().any(|line| line == order);
        if has("hang") {
            return None;
        }
        let (state, message) = if has("never ready") {
            (State::Loading, "loading layer 3 of 7")
        } else if has("say failed") {
            (State::Failed, "the weights are of another model")
        } else {
            (State::Ready, "")
        };
        Some(HealthResponse {
            state: state.into(),
            message: message.to_owned(),
            rank: 0,
        })
    })
}
