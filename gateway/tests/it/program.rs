//! The `novum` program as a user runs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use crate::harness::PATIENCE;

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("standard output is text")
    }

    /// The last line of standard output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        let line = self.text().lines().last().unwrap_or_else(|| panic!("no output: {self:?}"));
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Ended with this code, and said all of these on standard error.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, said: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        for words in said {
            assert!(self.stderr.contains(words), "{words:?} is missing in {}", self.stderr);
        }
        self
    }
}

/// The program, knowing nothing of this user's settings.
pub(crate) fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_novum"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NOVUM_")) {
        command.env_remove(name);
    }
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/cache");
    command.env("HOME", home).env("XDG_CACHE_HOME", cache).env_remove("XDG_DATA_HOME");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command line to its end.
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Ended {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().expect("the program starts");
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Some(mut stdin) = stdin {
                // A program that ends early does not read everything.
                let _ = stdin.write_all(input);
            }
        });
        child.wait_with_output().expect("the program ends")
    });
    let code = output.status.code().unwrap_or(-1);
    Ended { code, stdout: output.stdout, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
}

/// Runs `novum ARGS` with `input` as standard input.
pub(crate) fn novum_with(args: &[&str], input: &[u8]) -> Ended {
    let home = tempfile::tempdir().expect("a directory");
    let mut command = command(home.path());
    command.args(args);
    finish(command, input)
}

/// Runs `novum ARGS`.
pub(crate) fn novum(args: &[&str]) -> Ended {
    novum_with(args, b"")
}

/// A program that goes on running; killed when dropped.
pub(crate) struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// What has been printed so far.
    pub(crate) seen: Vec<String>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::inherit()).spawn().expect("the program starts");
        let (to, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line that holds `words`.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, words: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{words:?} was not printed; seen: {:#?}", self.seen);
            };
            self.seen.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gateway of its own, with a data directory of its own.
pub(crate) struct Served {
    pub(crate) home: tempfile::TempDir,
    pub(crate) url: String,
    pub(crate) program: Running,
}

impl Served {
    pub(crate) fn start(args: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let mut command = command(home.path());
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "error"]).args(args);
        let mut program = Running::start(command);
        let line = program.wait_for("listening on http://");
        let url = line.rsplit(' ').next().expect("an address").to_owned();
        Self { home, url, program }
    }

    /// Runs a client command against it.
    pub(crate) fn novum(&self, args: &[&str]) -> Ended {
        self.novum_with(args, b"")
    }

    pub(crate) fn novum_with(&self, args: &[&str], input: &[u8]) -> Ended {
        let mut command = command(self.home.path());
        command.env("NOVUM_SERVER", &self.url).args(args);
        finish(command, input)
    }
}

/// The repository's examples.
pub(crate) fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(path)
}

/// As an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Reads until `wanted` bytes have come.
pub(crate) fn read_exactly(from: &mut impl Read, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    from.read_exact(&mut got).expect("an answer before the input ends");
    assert_eq!(got, wanted);
}
