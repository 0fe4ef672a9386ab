//! A launcher under test, with stand-ins for what it starts.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{fake, runs, wait_for, write_model};

const PATIENCE: Duration = Duration::from_secs(30);

/// Folder in which test, launcher and stand-ins meet.
pub struct Scene {
    pub folder: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path());
        Self { folder }
    }

    /// Tells the stand-in `role` (`router`, `shard-0`, `prepare`) how to behave, from its next start or answer on.
    pub fn order(&self, role: &str, orders: &str) {
        fs::write(self.path(&format!("{role}.orders")), orders).unwrap();
    }

    /// A file in the folder.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Path that a stand-in was given after a flag.
    pub fn argument(&self, role: &str, flag: &str) -> std::path::PathBuf {
        let arguments = self.read(&format!("{role}.arguments"));
        let mut lines = arguments.lines().skip_while(|line| *line != flag);
        lines.nth(1).unwrap().into()
    }

    /// Process ids of `role`, in the order in which they noted `what`.
    pub fn noted(&self, role: &str, what: &str) -> Vec<u32> {
        let start = format!("{role} {what} ");
        let journal = self.read("journal");
        let ids = journal.lines().filter_map(|line| line.strip_prefix(&start));
        ids.map(|id| id.parse().unwrap()).collect()
    }

    /// Starts a launcher with a model that passes its checks.
    pub fn launch(&self, args: &[&str]) -> Launcher {
        let model = self.path("model");
        self.launch_bare(&[&["--model-id", model.to_str().unwrap()], args].concat())
    }

    /// The same without a model.
    pub fn launch_bare(&self, args: &[&str]) -> Launcher {
        self.launch_at(free_port(), args)
    }

    /// The same at a port of the test's choice.
    pub fn launch_at(&self, port: u16, args: &[&str]) -> Launcher {
        self.start(port, args, Stdio::null())
    }

    /// Starts a launcher with `--parent-link`; gives the parent's end of the link too.
    pub fn launch_linked(&self, args: &[&str]) -> (Launcher, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let (model, stand_in) = (self.path("model"), stand_in());
        // The variables of these flags are not read.
        let linked = [
            "--parent-link",
            "--model-id",
            model.to_str().unwrap(),
            "--server-command",
            &stand_in,
            "--router-command",
            &stand_in,
        ];
        let stdin = OwnedFd::from(theirs).into();
        let launcher = self.start(free_port(), &[&linked, args].concat(), stdin);
        (launcher, ours)
    }

    fn start(&self, port: u16, args: &[&str], stdin: Stdio) -> Launcher {
        let stand_in = stand_in();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gridwork"));
        // Under `nohup` the tests have SIGHUP ignored, and so would the launcher have.
        // SAFETY: `signal` may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            });
        }
        let mut process = command
            .args(["--hostname", "127.0.0.1", "--device", "cpu", "--port"])
            .arg(port.to_string())
            .args(args)
            .env("GRIDWORK_SERVER", &stand_in)
            .env("GRIDWORK_ROUTER", &stand_in)
            .env("API_KEY", "hush")
            .envs([
                ("HF_TOKEN", "whisper"),
                ("HUGGING_FACE_HUB_TOKEN", "whisper"),
                ("AWS_SECRET_ACCESS_KEY", "whisper"),
                ("WANTED", "yes"),
            ])
            .env("TMPDIR", self.folder.path())
            .env(fake::FOLDER_VARIABLE, self.folder.path())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in stdout.lines() {
                    let mut log = log.lock().unwrap();
                    log.push_str(&line.unwrap());
                    log.push('\n');
                }
            }
        });
        Launcher {
            process,
            port,
            log,
            reader: Some(reader),
        }
    }

    /// Process ids of everything that was ever started here.
    pub fn family(&self) -> Vec<u32> {
        let journal = self.read("journal");
        let started = journal.lines().filter(|line| line.contains(" started "));
        started
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect()
    }

    pub fn assert_nothing_runs(&self) {
        wait_for(Duration::from_secs(5), "no stand-in runs", || {
            self.family().iter().all(|pid| !runs(*pid)).then_some(())
        });
    }

    /// Nothing but what the test itself has put there.
    pub fn assert_no_sockets_left(&self) {
        let left = fs::read_dir(self.folder.path()).unwrap().flatten();
        let left: Vec<_> = left
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name.starts_with("gridwork-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Command of this test program as a stand-in.
fn stand_in() -> String {
    let this = std::env::current_exe().unwrap();
    format!("{} fake_process --exact --nocapture --", this.display())
}

/// Killed when dropped.
pub struct Launcher {
    process: Child,
    pub port: u16,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Launcher {
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log contains `text` `times` times.
    pub fn wait_for_log(&self, text: &str, times: usize) {
        wait_for(PATIENCE, &format!("{text:?} in the log"), || {
            (self.log().matches(text).count() >= times).then_some(())
        });
    }

    pub fn wait_ready(&self) {
        self.wait_for_log("is ready at", 1);
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, signal: i32) {
        send(self.id(), signal);
    }

    /// Waits for its end; gives the exit status and what it wrote to stderr.
    pub fn wait_end(&mut self) -> (ExitStatus, String) {
        let status = wait_for(PATIENCE, "the launcher ends", || {
            self.process.try_wait().unwrap()
        });
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        let mut errors = String::new();
        let stderr = self.process.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut errors).unwrap();
        (status, errors)
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn send(pid: u32, signal: i32) {
    // SAFETY: plain system call on a process that this test has started.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// True if the command line of a running process contains `text`.
pub fn command_line_contains(pid: u32, text: &str) -> bool {
    let path = format!("/proc/{pid}/cmdline");
    fs::read(Path::new(&path)).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
}
