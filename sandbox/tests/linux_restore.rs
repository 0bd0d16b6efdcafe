//! Guests with their agent that are saved, restored and forked: the agent's stream survives, and every one is somebody of
//! its own. In the rig: `cargo xtask rig test --test linux_restore`.
#![cfg(feature = "vm")]

mod guest;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use guest::{Log, PATIENCE, debian_kernel, our_kernel, with_agent};
use novum_sandbox::linux::guest::{
    Command, CommandEnd, Directory, Done, Guest, GuestConfig, Identity, Kernel, Streams,
};
use novum_sandbox::{Input, Output};
use novum_snapshot::{Snapshot, Store};

fn identity(name: &str, like: &GuestConfig) -> Identity {
    Identity {
        hostname: name.into(),
        machine_id: None,
        root: like.root.clone(),
        directories: like.directories.clone(),
        network: None,
        balloon: false,
        patience: PATIENCE,
    }
}

fn ours(test: &str) -> Option<Kernel> {
    Some(Kernel { image: our_kernel(test)?.vmlinux(), modules: None })
}

fn sh(script: &str) -> Command {
    let args = ["sh", "-c", script].map(str::to_owned).into();
    Command { args, env: vec![("PATH".into(), "/usr/bin:/bin".into())], ..Command::default() }
}

fn streams(input: &[u8], log: &Arc<Log>) -> Streams {
    Streams {
        input: Input::Bytes(Bytes::copy_from_slice(input)),
        output: Output::Collect { limit_bytes: 8 << 20 },
        log: log.clone(),
        control: None,
        deadline: Instant::now() + PATIENCE,
    }
}

/// Output of a script that ends well.
async fn run(guest: &mut Guest, script: &str) -> String {
    let log = Arc::new(Log::default());
    let done = guest.run(&sh(script), streams(b"", &log)).await;
    let Done { end, output, .. } = done.unwrap_or_else(|error| panic!("{error}\n{}", guest.console()));
    let errors = log.text();
    assert_eq!(end, CommandEnd::Code(0), "{script}: {errors}");
    String::from_utf8_lossy(&output).into_owned()
}

async fn save(guest: &mut Guest, store: &Store) -> Snapshot {
    let digest = guest.snapshot(store).await.unwrap();
    Snapshot::open(store, &digest).unwrap()
}

/// What must differ between any two guests: kernel's, libc's and Python's randomness, ids; the machine's generation id lies
/// at 0xff000.
const UNIQUE: &str = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; hostname
    dd if=/dev/mem bs=16 skip=$((0xff000 / 16)) count=1 2>/dev/null | od -An -tx1
    head -c 16 /dev/urandom | od -An -tx1
    python3 -c 'import os, random, uuid; print(os.urandom(16).hex(), random.random(), uuid.uuid4())'";

/// A kernel with the driver for generation ids has noticed that its machine is another one.
const NOTICED: &str = "until dmesg | grep -q 'crng reseeded due to virtual machine fork'; do sleep 0.1; done";

async fn survives(kernel: Kernel, notices: bool) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let config = with_agent(kernel, "first");
    let mut first = Guest::boot(config.clone()).await.unwrap_or_else(|error| panic!("{error}"));
    // The nonce is in the guest's memory only.
    run(&mut first, "head -c 16 /dev/urandom | od -An -tx1 > /tmp/nonce").await;
    let nonce = run(&mut first, "cat /tmp/nonce").await;
    let uptime = |text: String| text.split(['.', ' ']).next().unwrap().parse::<u64>().unwrap();
    let before = uptime(run(&mut first, "cat /proc/uptime").await);
    let snapshot = save(&mut first, &store).await;
    let mut seen = vec![run(&mut first, UNIQUE).await];
    for name in ["second", "third"] {
        let mut guest = Guest::restore(&snapshot, &identity(name, &config)).await.unwrap();
        assert_eq!(run(&mut guest, "cat /tmp/nonce").await, nonce, "it was not booted");
        assert_eq!(run(&mut guest, "hostname").await.trim(), name);
        let after = uptime(run(&mut guest, "cat /proc/uptime").await);
        assert!((before..before + 60).contains(&after), "monotonic time goes on: {before}, {after}");
        seen.push(run(&mut guest, UNIQUE).await);
        if notices {
            run(&mut guest, NOTICED).await;
        }
    }
    assert_eq!(run(&mut first, "cat /tmp/nonce").await, nonce, "the saved one goes on");
    let lines: Vec<&str> = seen.iter().flat_map(|text| text.lines()).collect();
    let distinct: HashSet<&str> = lines.iter().copied().collect();
    assert_eq!(distinct.len(), lines.len(), "{lines:#?}");
}

#[tokio::test]
async fn a_restored_guest_answers_over_the_open_stream_as_somebody_of_its_own() {
    let test = "a_restored_guest_answers_over_the_open_stream_as_somebody_of_its_own";
    let Some(kernel) = ours(test) else { return };
    survives(kernel, false).await;
}

#[tokio::test]
async fn a_restored_guest_of_debians_kernel_does_too() {
    let Some(kernel) = debian_kernel("a_restored_guest_of_debians_kernel_does_too") else { return };
    survives(Kernel { image: kernel.vmlinux(), modules: Some(kernel.modules()) }, true).await;
}

#[tokio::test]
async fn a_command_that_waits_for_its_input_gets_it_in_every_restored_guest() {
    let test = "a_command_that_waits_for_its_input_gets_it_in_every_restored_guest";
    let Some(kernel) = ours(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let config = with_agent(kernel, "first");
    let mut first = Guest::boot(config.clone()).await.unwrap();
    let command = sh("python3 -c 'import sys, json
print(\"ready\", flush=True); print(\"log\", file=sys.stderr, flush=True)
print(json.dumps(sys.stdin.read()))'");
    assert!(first.begin(&command, PATIENCE).await.unwrap());
    let snapshot = save(&mut first, &store).await;
    drop(first);
    for input in ["one", "two"] {
        let mut guest = Guest::restore(&snapshot, &identity("", &config)).await.unwrap();
        let log = Arc::new(Log::default());
        let done = guest.go_on(streams(input.as_bytes(), &log)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&done.output), format!("ready\n\"{input}\"\n"));
        assert_eq!((done.end, log.text()), (CommandEnd::Code(0), "log\n".to_owned()));
        assert_eq!(run(&mut guest, "hostname").await, "first\n", "nobody gave it another name");
    }
    let mut guest = Guest::restore(&snapshot, &identity("", &config)).await.unwrap();
    assert!(!guest.begin(&sh("true"), PATIENCE).await.unwrap(), "it ended without waiting");
}

/// Files that a shell of the guest has open before and uses afterwards.
#[tokio::test]
async fn forks_share_directories_and_have_their_own_files_and_ids() {
    let Some(kernel) = ours("forks_share_directories_and_have_their_own_files_and_ids") else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    let shared = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("lines"), "one\ntwo\nthree\n").unwrap();
        Directory { source: path, target: "/data".into(), read_only: false }
    };
    let config = GuestConfig { directories: vec![shared("a")], vcpus: 2, ..with_agent(kernel, "first") };
    let mut first = Guest::boot(config.clone()).await.unwrap();
    let script = "exec 3< /data/lines; read line <&3; read input; read line <&3; echo $line $input
        echo $line > /data/written; cat /etc/machine-id";
    assert!(first.begin(&sh(script), PATIENCE).await.unwrap());
    let id = [0xa5; 16];
    let identities = [Identity { machine_id: Some(id), ..identity("b", &config) }, identity("c", &config)];
    let forks = first.fork(&store, &identities).await.unwrap();
    assert_eq!(forks.len(), 2);
    let log = Arc::new(Log::default());
    let mut outputs = Vec::new();
    for mut guest in forks.into_iter().chain([first]) {
        let done = guest.go_on(streams(b"go\n", &log)).await.unwrap();
        outputs.push(String::from_utf8_lossy(&done.output).into_owned());
    }
    assert!(
        outputs.iter().all(|output| output.starts_with("two go\n")),
        "{outputs:?} {log:?}",
        log = log.text()
    );
    assert_eq!(outputs[0].lines().nth(1), Some("a5".repeat(16).as_str()));
    assert_ne!(outputs[1], outputs[0]);
    assert_eq!(std::fs::read_to_string(folder.path().join("a/written")).unwrap(), "two\n");
    assert!(!Path::new("/data/written").exists());
}

#[tokio::test]
async fn an_hour_later_the_time_is_right_and_an_old_snapshot_is_good() {
    let test = "an_hour_later_the_time_is_right_and_an_old_snapshot_is_good";
    let Some(kernel) = ours(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let config = with_agent(kernel, "first");
    let mut first = Guest::boot(config.clone()).await.unwrap();
    // For the guest it is an hour earlier than it is.
    run(&mut first, "date -s @$(($(date +%s) - 3600)) > /dev/null").await;
    let snapshot = save(&mut first, &store).await;
    drop(first);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let earliest = now();
    let mut guest = Guest::restore(&snapshot, &identity("", &config)).await.unwrap();
    let time: u128 = run(&mut guest, "date +%s%3N").await.trim().parse().unwrap();
    assert!((earliest..=now()).contains(&time), "{earliest} {time} {}", now());
}

/// Runs on in the guest while it is saved: reads and writes over 9p, draws random bytes, sleeps; says how often all was well.
/// A file's name goes with its bytes: the saved guest goes on for a while beside the restored one, and writes the same.
const LOAD: &str = r#"
import hashlib, os, time
sum = lambda path: hashlib.md5(open(path, 'rb').read()).hexdigest()
first, last, count = sum('/data/blob'), time.monotonic(), 0
while True:
    assert sum('/data/blob') == first, 'what was read changed'
    text = os.urandom(20000)
    own = '/data/own-' + text[:8].hex()
    with open(own, 'wb') as file:
        file.write(text)
    assert open(own, 'rb').read() == text, 'what was written changed'
    time.sleep(0.001)
    now = time.monotonic()
    assert last < now < last + 600, 'time jumped'
    last, count = now, count + 1
    with open('/tmp/count.new', 'w') as file:
        file.write(str(count))
    os.rename('/tmp/count.new', '/tmp/count')
"#;

/// Each guest comes from the one before, a diff over a diff, in the midst of its work. `NOVUM_RESTORES` says how often.
#[tokio::test]
async fn restores_in_a_row_under_load_lose_nothing() {
    let Some(kernel) = ours("restores_in_a_row_under_load_lose_nothing") else { return };
    let rounds: usize = std::env::var("NOVUM_RESTORES").map_or(4, |count| count.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let blob: Vec<u8> =
        (0..300_000u32).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(data.join("blob"), &blob).unwrap();
    std::fs::write(data.join("load"), LOAD).unwrap();
    let directory = Directory { source: data, target: "/data".into(), read_only: false };
    let config = GuestConfig { directories: vec![directory], vcpus: 2, ..with_agent(kernel, "first") };
    let mut guest = Guest::boot(config.clone()).await.unwrap();
    run(&mut guest, "setsid python3 /data/load > /tmp/log 2>&1 < /dev/null &").await;
    let begun = "until [ -e /tmp/count ]; do [ -s /tmp/log ] && cat /tmp/log >&2 && exit 1; sleep 0.1; done
        head -c 9 /dev/urandom > /tmp/nonce";
    run(&mut guest, begun).await;
    let nonce = run(&mut guest, "od /tmp/nonce").await;
    for round in 0..rounds {
        let count = run(&mut guest, "cat /tmp/count").await;
        let snapshot = save(&mut guest, &store).await;
        drop(guest);
        guest = Guest::restore(&snapshot, &identity(&format!("guest{round}"), &config)).await.unwrap();
        let script = format!(
            "until [ $(cat /tmp/count) -gt $(({count} + 2)) ]; do
            [ -s /tmp/log ] && cat /tmp/log >&2 && exit 1; sleep 0.05; done; od /tmp/nonce; hostname"
        );
        assert_eq!(run(&mut guest, &script).await, format!("{nonce}guest{round}\n"), "round {round}");
        // Through the agent's stream and back: more than fits into any buffer on the way.
        let log = Arc::new(Log::default());
        let done = guest.run(&sh("cat"), streams(&blob, &log)).await.unwrap();
        assert!(done.output == blob, "round {round}: {} bytes", done.output.len());
    }
}
