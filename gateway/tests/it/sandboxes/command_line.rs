//! `novum sandbox` from outside.

use super::calls::Place;
use crate::program::{Ended, arg, novum, novum_with};

/// `novum --server URL sandbox ARGS`.
fn sandbox(place: &Place, args: &[&str], input: &[u8]) -> Ended {
    let server = format!("http://{}", place.gateway.address);
    novum_with(&[&["--server", &server, "sandbox"], args].concat(), input)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_on_the_command_line() {
    let Some(place) = Place::new("a_session_on_the_command_line", &[]).await else { return };
    let root = place.root();
    let create = ["create", "--root", &root, "--engine", "process", "--name", "work", "--memory", "64MiB"];
    assert_eq!(sandbox(&place, &create, b"").succeeds().text(), "work\n");
    sandbox(&place, &create, b"").fails(1, &["work", "already"]);
    let ended = sandbox(
        &place,
        &["exec", "work", "--", "sh", "-c", "read x; echo $x; echo bad >&2; exit 3"],
        b"in\n",
    );
    assert_eq!(ended.text(), "in\n");
    ended.fails(3, &["bad"]);
    let ended = sandbox(&place, &["exec", "work", "-n", "--json", "--", "echo", "hi"], b"").succeeds();
    assert_eq!(ended.text().lines().next().unwrap(), r#"{"output":"hi\n"}"#);
    assert_eq!((&ended.json()["outcome"], &ended.json()["exit_code"]), (&"exited".into(), &0.into()));
    assert_eq!(
        sandbox(&place, &["shell", "work"], b"echo from a shell\n").succeeds().text(),
        "from a shell\n"
    );
    sandbox(&place, &["exec", "work", "-t", "--", "sh"], b"").fails(2, &["terminal"]);
    let local = place.dir.path().join("local");
    std::fs::write(&local, "a file").unwrap();
    sandbox(&place, &["cp", "-p", arg(&local), "work:/data/in/file"], b"").succeeds();
    assert_eq!(sandbox(&place, &["cp", "work:/data/in/file", "-"], b"").succeeds().text(), "a file");
    sandbox(&place, &["cp", "-", "work:/tmp/piped"], b"piped").succeeds();
    let into = place.dir.path().join("into");
    std::fs::create_dir(&into).unwrap();
    sandbox(&place, &["cp", "work:/tmp/piped", arg(&into)], b"").succeeds();
    assert_eq!(std::fs::read(into.join("piped")).unwrap(), b"piped");
    sandbox(&place, &["cp", "work:/missing", arg(&into)], b"").fails(67, &["/missing"]);
    assert_eq!(sandbox(&place, &["pause", "work"], b"").succeeds().text(), "work is paused\n");
    sandbox(&place, &["exec", "work", "-n", "--", "true"], b"").fails(71, &["paused"]);
    assert_eq!(sandbox(&place, &["resume", "work"], b"").succeeds().text(), "work is running\n");
    sandbox(&place, &["snapshot", "work", "--name", "kept"], b"").succeeds();
    assert!(sandbox(&place, &["snapshots"], b"").succeeds().text().contains("kept"));
    let forks = sandbox(&place, &["fork", "work", "--name", "a", "--name", "b"], b"").succeeds();
    assert_eq!(forks.text(), "a\nb\n");
    assert_eq!(
        sandbox(&place, &["create", "--snapshot", "kept", "--name", "c"], b"").succeeds().text(),
        "c\n"
    );
    assert_eq!(
        sandbox(&place, &["exec", "c", "-n", "--", "cat", "/tmp/piped"], b"").succeeds().text(),
        "piped"
    );
    let list = sandbox(&place, &["ls", "--json"], b"").succeeds();
    let names = list.text().lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    assert_eq!(
        names.map(|s| s["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>(),
        ["a", "b", "c", "work"]
    );
    assert!(sandbox(&place, &["get", "work"], b"").succeeds().text().contains("root /"));
    sandbox(&place, &["rm", "a", "b", "c", "work"], b"").succeeds();
    sandbox(&place, &["rm", "--snapshot", "kept"], b"").succeeds();
    sandbox(&place, &["rm", "work"], b"").fails(67, &["novum sandbox ls"]);
    sandbox(&place, &["create", "--name", "x"], b"").fails(2, &["--function"]);
    // What is wrong is said once, and advice is about that.
    let refused = sandbox(&place, &["watch", "Not_A_Name"], b"");
    assert_eq!(refused.stderr.matches("a name is 1 to 63 characters").count(), 1, "{}", refused.stderr);
    let refused = sandbox(&place, &["create", "--root", "/etc"], b"");
    assert!(
        refused.stderr.contains("--allow-share") && !refused.stderr.contains("doctor"),
        "{}",
        refused.stderr
    );
    novum(&["sandbox", "--help"]).succeeds();
}
