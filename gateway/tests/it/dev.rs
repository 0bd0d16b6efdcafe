//! The local dev server: what it prints, and that its functions follow the files.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::says;
use crate::program::{Ended, Running, command, finish};

struct Dev {
    root: tempfile::TempDir,
    home: tempfile::TempDir,
    url: String,
    program: Running,
}

impl Dev {
    /// With these files to begin with.
    fn start(files: &[(&str, &str)]) -> Self {
        let (root, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (path, text) in files {
            put(root.path(), path, text);
        }
        let mut command = command(home.path());
        // Its own cache: the session keeps what it deployed there.
        command
            .env("XDG_CACHE_HOME", home.path())
            .arg("dev")
            .arg(root.path())
            .args(["--listen", "127.0.0.1:0"]);
        let mut program = Running::start(command);
        let line = program.wait_for("novum dev: functions below");
        let url = line.rsplit(' ').next().unwrap().to_owned();
        Self { root, home, url, program }
    }

    fn put(&self, path: &str, text: &str) {
        put(self.root.path(), path, text);
    }

    fn invoke(&self, name: &str) -> Ended {
        let mut command = command(self.home.path());
        command.env("NOVUM_SERVER", &self.url).args(["invoke", name, "--data", ""]);
        finish(command, b"")
    }
}

/// As a compiler does it: beside, then renamed.
fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

const MANIFEST: &str = "name = \"hello\"\nentry = \"hello.wat\"\n";

#[test]
fn a_change_is_redeployed_and_a_mistake_leaves_the_last_good_version() {
    let mut dev = Dev::start(&[("hello/novum.toml", MANIFEST), ("hello/hello.wat", &says("one", "", 0))]);
    dev.program.wait_for("serving hello version 1");
    dev.program.wait_for("1 function serves");
    assert_eq!(dev.invoke("hello").succeeds().stdout, b"one");
    dev.program.wait_for("ok engine=wasm");

    dev.put("hello/hello.wat", &says("two", "", 0));
    dev.program.wait_for("redeployed hello version 2");
    assert_eq!(dev.invoke("hello").succeeds().stdout, b"two");

    dev.put("hello/hello.wat", "(module (func (export \"_start\") i32.add))");
    dev.program.wait_for("error");
    dev.program.wait_for("hello version 2 keeps serving");
    assert_eq!(dev.invoke("hello").succeeds().stdout, b"two");

    dev.put("hello/hello.wat", &says("three", "", 0));
    dev.program.wait_for("redeployed hello version 3");
    dev.put("hello/novum.toml", "name = \"hello\"\nentry = \"hello.wat\"\nmemroy = 1\n");
    dev.program.wait_for("novum.toml:3:1: unknown key `memroy`");
    dev.program.wait_for("hello version 3 keeps serving");
    assert_eq!(dev.invoke("hello").succeeds().stdout, b"three");
}

#[test]
fn functions_come_and_go_with_their_files() {
    let mut dev = Dev::start(&[]);
    dev.program.wait_for("no function yet");
    dev.put("lone.wat", &says("lone", "", 0));
    dev.program.wait_for("serving lone version 1");
    assert_eq!(dev.invoke("lone").succeeds().stdout, b"lone");
    dev.put("twin/novum.toml", "name = \"lone\"\nentry = \"t.wat\"\n");
    dev.program.wait_for("cannot open");
    dev.put("twin/t.wat", &says("twin", "", 0));
    dev.program.wait_for("is also named lone");
    fs::remove_file(dev.root.path().join("lone.wat")).unwrap();
    dev.program.wait_for("removed lone");
    dev.put("twin/novum.toml", "name = \"renamed\"\nentry = \"t.wat\"\n");
    dev.program.wait_for("serving renamed version 1");
    assert_eq!(dev.invoke("renamed").succeeds().stdout, b"twin");
    dev.put("twin/novum.toml", "name = \"again\"\nentry = \"t.wat\"\n");
    dev.program.wait_for("serving again version 1");
    dev.invoke("renamed").fails(67, &["renamed"]);
}

#[test]
fn the_printed_curl_line_calls_the_function() {
    let mut dev = Dev::start(&[
        ("echo/novum.toml", include_str!("../../../examples/echo/novum.toml")),
        ("echo/echo.wat", include_str!("../../../examples/echo/echo.wat")),
        ("echo/test/a case.in", "the request\n"),
    ]);
    let curl = dev.program.wait_for("curl -sS");
    let grpcurl = dev.program.wait_for("grpcurl -plaintext");
    assert!(grpcurl.contains("\"payload\":\"dGhlIHJlcXVlc3QK\""), "{grpcurl}");
    assert!(grpcurl.ends_with("novum.gateway.v1.Functions/Invoke"), "{grpcurl}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &curl]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    assert_eq!(finish(shell, b"").succeeds().stdout, b"the request\n");
    dev.program.wait_for("ok engine=wasm");
}

#[test]
fn ctrl_c_ends_it_with_code_0() {
    let mut dev = Dev::start(&[("a.wat", &says("a", "", 0))]);
    dev.program.wait_for("1 function serves");
    dev.program.signal(rustix::process::Signal::INT);
    assert_eq!(dev.program.wait(), Some(0));
}

#[test]
fn a_second_session_forgets_functions_whose_files_are_gone() {
    let mut dev = Dev::start(&[("a.wat", &says("a", "", 0)), ("b.wat", &says("b", "", 0))]);
    dev.program.wait_for("2 functions serve");
    dev.program.signal(rustix::process::Signal::TERM);
    let Dev { root, home, program, .. } = dev;
    assert_eq!(program.wait(), Some(0));
    fs::remove_file(root.path().join("a.wat")).unwrap();
    let mut command = command(home.path());
    command.env("XDG_CACHE_HOME", home.path()).arg("dev").arg(root.path()).args(["--listen", "127.0.0.1:0"]);
    let mut program = Running::start(command);
    let line = program.wait_for("novum dev: functions below");
    let url = line.rsplit(' ').next().unwrap().to_owned();
    program.wait_for("1 function serves");
    let dev = Dev { root, home, url, program };
    dev.invoke("a").fails(67, &["a"]);
    assert_eq!(dev.invoke("b").succeeds().stdout, b"b");
}

#[test]
fn the_demonstration_calls_an_example_and_ends() {
    let home = tempfile::tempdir().unwrap();
    let mut command = command(home.path());
    command.args(["dev", "--demo", "--exit", "--listen", "127.0.0.1:0"]);
    let ended = finish(command, b"").succeeds();
    for words in [
        "serving echo",
        "serving wordcount",
        "curl -sS",
        "grpcurl",
        "\"words\":9",
        "queued",
        "seen by the client",
    ] {
        assert!(ended.text().contains(words), "{words:?} is missing in {}", ended.text());
    }
}
