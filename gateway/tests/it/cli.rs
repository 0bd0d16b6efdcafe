//! Every command from outside: what it prints, where, and its exit code.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::harness::{LOOP, TRAP, says};
use crate::program::{Served, arg, command, example, finish, novum, novum_with, read_exactly};

const COMMANDS: [&str; 11] = [
    "serve",
    "dev",
    "deploy",
    "invoke",
    "functions",
    "logs",
    "delete",
    "run",
    "stats",
    "doctor",
    "completions",
];

#[test]
fn every_command_explains_itself() {
    let help = novum(&["--help"]).succeeds();
    for name in COMMANDS {
        assert!(help.text().contains(&format!("\n  {name} ")), "{name} is missing in {}", help.text());
        let own = novum(&[name, "--help"]).succeeds();
        assert!(own.text().contains("Examples:") && own.text().contains("--json"), "{name}");
    }
    assert!(novum(&["--version"]).succeeds().text().starts_with("novum "));
}

#[test]
fn a_wrong_command_line_is_refused_with_code_2() {
    novum(&["--frobnicate"]).fails(2, &["--frobnicate"]);
    novum(&["invok"]).fails(2, &["invoke"]);
    novum(&["invoke"]).fails(2, &["<NAME>"]);
    novum(&["invoke", "f", "--timeout", "5"]).fails(2, &["is not a duration"]);
    novum(&["invoke", "f", "--env", "NOVALUE"]).fails(2, &["NAME=VALUE"]);
    novum(&["invoke", "f", "--data", "a", "--file", "b"]).fails(2, &["cannot be used with"]);
    novum(&["run", "--engine", "qemu", "x"]).fails(2, &["[possible values: auto, wasm, process, linux]"]);
    novum(&["deploy", "--name", "Bad_Name", "x"]).fails(2, &["lower-case letter"]);
    novum(&["--server", "https://x", "stats"]).fails(2, &["plain HTTP/2", "unix:/absolute/path"]);
    novum(&["--log", "=,=", "stats"]).fails(2, &["--log"]);
}

#[test]
fn an_unreachable_gateway_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f.wat");
    fs::write(&file, says("x", "", 0)).unwrap();
    let lines: [&[&str]; 6] = [
        &["invoke", "f", "--data", "x"],
        &["functions"],
        &["logs"],
        &["delete", "f"],
        &["stats"],
        &["deploy", "--name", "f", arg(&file)],
    ];
    for line in lines {
        // Port 1 is reserved and nothing listens there.
        let line = [&["--server", "http://127.0.0.1:1"], line].concat();
        novum(&line)
            .fails(69, &["no gateway answers at http://127.0.0.1:1", "refused", "novum serve", "--server"]);
    }
    let ended =
        novum(&["--json", "--server", "unix:/nonexistent/socket", "stats"]).fails(69, &["unix:/nonexistent"]);
    assert_eq!(ended.json()["outcome"], "error");
    assert_eq!(ended.json()["error"]["kind"], "UNREACHABLE");
    assert_eq!(ended.json()["error"]["exit_code"], 69);
}

#[test]
fn missing_files_and_bad_manifests_are_told_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    novum(&["deploy", arg(&path("nothing"))]).fails(66, &["nothing", "No such file"]);
    novum(&["deploy", arg(dir.path())]).fails(2, &["there is no novum.toml in", "--name NAME"]);
    novum(&["run", arg(&path("nothing.wasm"))]).fails(66, &["nothing.wasm", "No such file"]);
    novum(&["invoke", "f", "--file", arg(&path("nothing"))]).fails(66, &["nothing", "No such file"]);
    novum(&["serve", "--config", arg(&path("nothing"))]).fails(66, &["nothing", "No such file"]);
    novum(&["dev", arg(&path("nothing"))]).fails(66, &["nothing", "No such file"]);
    fs::write(path("novum.toml"), "name = \"a\"\nentry = \"a.wasm\"\nmemroy = 1\n").unwrap();
    for command in ["deploy", "run"] {
        let ended = novum(&["--json", command, arg(dir.path())]);
        let ended = ended.fails(65, &["novum.toml:3:1: unknown key `memroy`", "did you mean `memory`?"]);
        assert_eq!(ended.json()["error"]["kind"], "INVALID_MANIFEST");
    }
    fs::write(path("c.toml"), "workers = 1\nworker = 1\n").unwrap();
    novum(&["serve", "--config", arg(&path("c.toml"))]).fails(65, &["c.toml:2:1: unknown field `worker`"]);
    fs::write(path("plain.txt"), "hello").unwrap();
    novum(&["deploy", arg(&path("plain.txt"))]).fails(2, &["novum deploy --name NAME"]);
    novum(&["run", arg(&path("plain.txt"))]).fails(2, &["no engine of this build knows what"]);
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = novum(&["completions", shell]).succeeds();
        assert!(script.text().contains("novum") && script.text().contains("timings"), "{shell}");
    }
    let mut check = std::process::Command::new("bash");
    check.args(["-n"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let script = novum(&["completions", "bash"]).stdout;
    finish(check, &script).succeeds();
}

#[test]
fn doctor_tells_what_runs_here() {
    let text = novum(&["doctor", "--listen", "127.0.0.1:0"]).succeeds();
    for name in ["engines", "wasm", "process", "linux", "kvm", "pagemap-scan", "data-dir"] {
        assert!(text.text().contains(name), "{name}");
    }
    let report = novum(&["doctor", "--json"]).succeeds().json();
    assert_eq!(report["healthy"], true);
    assert_eq!(report["engines"][0]["engine"], "wasm");
    assert_eq!(report["engines"][0]["verdict"], "good");
    let checks = report["checks"].as_array().unwrap();
    let verdict = |name: &str| checks.iter().find(|c| c["check"] == name).unwrap();
    if verdict("kvm")["verdict"] == "good" {
        let measured = &verdict("kvm-speed")["measured"];
        assert!(measured["exit_us"].as_f64().unwrap() > 0.0, "{measured}");
        assert_eq!(measured["sensible"]["process"], true);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = novum(&["doctor", "--data-dir", arg(&file.path().join("below")), "--json"]).json();
    let data_dir =
        refused["checks"].as_array().unwrap().iter().find(|c| c["check"] == "data-dir").unwrap().clone();
    assert_eq!(data_dir["verdict"], "bad");
    assert!(data_dir["advice"].as_str().unwrap().contains("--data-dir"));
}

#[test]
fn colours_come_only_when_they_are_wanted() {
    assert!(!novum(&["doctor"]).text().contains('\x1b'));
    assert!(novum(&["--color", "always", "doctor"]).text().contains('\x1b'));
    assert!(novum(&["--color", "always", "--help"]).text().contains('\x1b'));
    assert!(!novum(&["--color=never", "--help"]).text().contains('\x1b'));
}

#[test]
fn run_passes_input_output_and_exit_code_through() {
    let echo = example("echo");
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(novum_with(&["run", arg(&echo)], &bytes).succeeds().stdout, bytes);
    let dir = tempfile::tempdir().unwrap();
    let module = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    novum(&["run", arg(&module("seven.wat", &says("", "", 7)))]).fails(7, &[]);
    novum(&["run", arg(&module("trap.wat", TRAP))]).fails(134, &["trap.wat crashed (trap)", "unreachable"]);
    novum(&["run", arg(&module("loop.wat", LOOP)), "--timeout", "50ms"]).fails(124, &["deadline"]);
    novum(&["run", arg(&module("bad.wat", "(module (func (export \"_start\") i32.add))"))])
        .fails(65, &["artifact"]);
    let timed = novum(&["run", "--timings", arg(&module("say.wat", &says("hi", "", 0)))]).succeeds();
    assert_eq!(timed.stdout, b"hi");
    assert!(timed.stderr.contains("prepare") && timed.stderr.contains("wasm"), "{}", timed.stderr);
    let seven = novum(&["--json", "run", arg(&module("seven.wat", &says("", "", 7)))]).fails(7, &[]);
    assert_eq!(seven.json()["outcome"], "exited");
    assert_eq!(seven.json()["exit_code"], 7);
    assert!(seven.json()["timings"]["run_us"].is_number());
}

#[test]
fn run_runs_an_unmodified_program_of_this_machine() {
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() || cfg!(not(feature = "vm")) {
        assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none(), "/dev/kvm does not open");
        println!("SKIPPED: run_runs_an_unmodified_program_of_this_machine: /dev/kvm does not open");
        return;
    }
    let sorted = novum_with(&["run", "--system", "/usr/bin/sort", "--", "-r"], b"a\nb\n").succeeds();
    assert_eq!(sorted.stdout, b"b\na\n");
    novum(&["run", "--system", "/bin/sh", "--", "-c", "exit 3"]).fails(3, &[]);
    novum(&["run", "/usr/bin/sort"]).fails(65, &["needs the interpreter"]);
}

#[test]
fn run_streams_while_the_input_is_still_open() {
    let home = tempfile::tempdir().unwrap();
    let mut command = command(home.path());
    command.args(["run", arg(&example("echo"))]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for piece in [&b"first\n"[..], b"second\n"] {
        stdin.write_all(piece).unwrap();
        read_exactly(&mut stdout, piece);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_function_goes_from_deploy_to_delete() {
    let gateway = Served::start(&[]);
    let ended = gateway.novum(&["deploy", arg(&example("wordcount")), arg(&example("echo"))]).succeeds();
    assert!(ended.text().contains("deployed wordcount version 1 (wasm,"), "{}", ended.text());
    let again = gateway.novum(&["deploy", "--json", arg(&example("echo"))]).succeeds().json();
    assert_eq!((&again["outcome"], &again["function"]["version"]), (&"unchanged".into(), &1.into()));

    let listed = gateway.novum(&["functions"]).succeeds();
    assert!(listed.text().lines().nth(1).unwrap().starts_with("echo "), "{}", listed.text());
    let names: Vec<_> =
        gateway.novum(&["functions", "--json"]).succeeds().text().lines().map(str::to_owned).collect();
    assert_eq!(names.len(), 2);
    let shown = gateway.novum(&["functions", "get", "wordcount", "--json"]).succeeds().json();
    assert_eq!(shown["allow_env"][0], "TOP");
    assert!(gateway.novum(&["functions", "get", "wordcount"]).succeeds().text().contains("TOP"));

    let input = fs::read(example("wordcount/test/text.in")).unwrap();
    let expected = fs::read(example("wordcount/test/text.out")).unwrap();
    assert_eq!(gateway.novum_with(&["invoke", "wordcount"], &input).succeeds().stdout, expected);
    let file = example("wordcount/test/text.in");
    assert_eq!(gateway.novum(&["invoke", "wordcount", "--file", arg(&file)]).succeeds().stdout, expected);
    let one = gateway
        .novum(&["invoke", "wordcount", "--data", "a b a", "--env", "TOP=1", "--json"])
        .succeeds()
        .json();
    assert_eq!(one["outcome"], "exited");
    assert_eq!(one["timings"]["engine"], "wasm");
    assert!(one["payload"].as_str().unwrap().contains("\"count\":2"));
    let timed = gateway.novum(&["invoke", "echo", "--data", "hi", "--timings"]).succeeds();
    assert_eq!(timed.stdout, b"hi");
    assert!(timed.stderr.contains("queued") && timed.stderr.contains("version 1"), "{}", timed.stderr);
    for clock in ["sandbox ready", "guest resumed", "first byte", "seen here"] {
        assert!(timed.stderr.contains(clock), "{clock}: {}", timed.stderr);
    }
    let clocks = &one["timings"]["clocks"];
    let names = ["sandbox_ready_us", "guest_resumed_us", "first_byte_us", "answered_us", "client_sees_us"];
    let moments = names.map(|name| clocks[name].as_f64().unwrap());
    assert!(moments.is_sorted() && moments[0] > 0.0, "{clocks}");

    let stats = gateway.novum(&["stats", "--json"]).succeeds().json();
    let wordcount =
        stats["functions"].as_array().unwrap().iter().find(|f| f["function"] == "wordcount").unwrap().clone();
    assert_eq!(wordcount["succeeded"], 3);
    assert!(gateway.novum(&["stats"]).succeeds().text().contains("engine wasm: available"));

    gateway.novum(&["delete", "echo", "wordcount"]).succeeds();
    assert_eq!(gateway.novum(&["functions", "--json"]).succeeds().stdout, b"");
    gateway.novum(&["invoke", "echo", "--data", "x"]).fails(67, &["echo", "novum functions"]);
    gateway.novum(&["delete", "echo"]).fails(67, &["echo"]);
    gateway.novum(&["functions", "get", "echo"]).fails(67, &["echo"]);
}

#[test]
fn what_a_function_does_and_what_the_gateway_refuses_have_their_own_codes() {
    let gateway = Served::start(&["--max-payload", "64KiB"]);
    let deploy = |name: &str, text: &str| {
        let path = gateway.home.path().join(format!("{name}.wat"));
        fs::write(&path, text).unwrap();
        gateway.novum(&["deploy", "--name", name, "--timeout", "300ms", arg(&path)])
    };
    deploy("seven", &says("", "", 7)).succeeds();
    deploy("crash", TRAP).succeeds();
    deploy("forever", LOOP).succeeds();
    deploy("broken", "(module").fails(65, &["broken"]);
    gateway.novum(&["invoke", "seven", "--data", ""]).fails(7, &[]);
    let logs = gateway.novum(&["logs", "seven"]).succeeds();
    assert!(logs.text().contains(" seven exit=7 engine=wasm"), "{}", logs.text());
    let line = gateway.novum(&["logs", "--json", "-n", "1"]).succeeds().json();
    assert_eq!((&line["function"], &line["note"]), (&"seven".into(), &true.into()));
    gateway.novum(&["logs", "nobody"]).fails(67, &["nobody"]);
    let crash = gateway.novum(&["invoke", "crash", "--json", "--data", ""]).fails(134, &[]).json();
    assert_eq!((&crash["outcome"], &crash["fault"]["kind"]), (&"faulted".into(), &"trap".into()));
    gateway.novum(&["invoke", "forever", "--data", ""]).fails(124, &["deadline"]);
    gateway.novum(&["invoke", "forever", "--data", "", "--stream"]).fails(124, &["deadline"]);
    let large = vec![b'x'; 1 << 20];
    let refused = gateway.novum_with(&["invoke", "seven", "--json"], &large).fails(75, &[]).json();
    assert_eq!(refused["error"]["kind"], "RESOURCE_EXHAUSTED");
    gateway.novum(&["invoke", "seven", "--data", "", "--env", "A=b"]).fails(65, &["A"]);
    gateway.novum(&["invoke", "seven", "--data", "", "--version", "9"]).fails(67, &["9"]);
}

#[test]
fn an_invocation_streams_both_ways() {
    let gateway = Served::start(&[]);
    gateway.novum(&["deploy", arg(&example("echo"))]).succeeds();
    let mut command = command(gateway.home.path());
    command.env("NOVUM_SERVER", &gateway.url).args(["invoke", "echo", "--stream"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for piece in [&b"first\n"[..], b"second\n"] {
        stdin.write_all(piece).unwrap();
        read_exactly(&mut stdout, piece);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let json = gateway.novum(&["invoke", "echo", "--stream", "--json", "--data", "hi"]).succeeds();
    assert!(json.text().starts_with("{\"output\":\"hi\"}\n"), "{}", json.text());
    assert_eq!(json.json()["outcome"], "exited");
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let gateway = Served::start(&[]);
    gateway.novum(&["deploy", arg(&example("echo"))]).succeeds();
    let home = tempfile::tempdir().unwrap();
    let mut command = command(home.path());
    let bytes = vec![b'x'; 1 << 20];
    fs::write(home.path().join("in"), &bytes).unwrap();
    command.env("NOVUM_SERVER", &gateway.url).args([
        "invoke",
        "echo",
        "--file",
        arg(&home.path().join("in")),
    ]);
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}

#[test]
fn a_unix_socket_and_a_port_file_serve_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, ports) = (dir.path().join("s"), dir.path().join("ports"));
    let listen = format!("unix:{}", socket.display());
    let gateway = Served::start(&["--listen", &listen, "--port-file", arg(&ports)]);
    let written = fs::read_to_string(&ports).unwrap();
    assert_eq!(written.lines().count(), 2);
    assert!(written.contains(&listen) && gateway.url.ends_with(written.lines().next().unwrap()), "{written}");
    novum(&["--server", &listen, "stats"]).succeeds();
}

#[test]
fn sigterm_ends_the_gateway_with_code_0() {
    let gateway = Served::start(&[]);
    gateway.program.signal(rustix::process::Signal::TERM);
    assert_eq!(gateway.program.wait(), Some(0));
}
