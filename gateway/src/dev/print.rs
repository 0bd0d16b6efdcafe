//! What the dev server says, on standard output.

use std::path::{Path, PathBuf};

use novum_proto::gateway::v1;

use crate::cli::error::Error;
use crate::cli::output::{self, BOLD, CYAN, DIM, GREEN, RED, YELLOW, styled};
use crate::units::{format_duration, format_size};

/// How the gateway is reached from a shell.
#[derive(Clone, Debug)]
pub struct Calls {
    /// `http://127.0.0.1:7070`, or `unix:/path`.
    pub url: String,
}

/// A request longer than this is not worth pasting.
const MAX_PASTED_BYTES: usize = 120;

impl Calls {
    /// A line for curl.
    #[must_use]
    pub fn curl(&self, function: &str, example: Option<&Path>) -> String {
        let data = match example {
            Some(path) => format!("@{}", path.display()),
            None => "hello".to_owned(),
        };
        let data = quote(&data);
        match self.url.strip_prefix("unix:") {
            Some(path) => format!(
                "curl -sS --unix-socket {} --data-binary {data} http://localhost/v1/functions/{function}:invoke",
                quote(path)
            ),
            None => format!("curl -sS --data-binary {data} {}/v1/functions/{function}:invoke", self.url),
        }
    }

    /// A line for grpcurl, which finds the messages by reflection. Bytes are base64 in its JSON.
    #[must_use]
    pub fn grpcurl(&self, function: &str, example: Option<&Path>) -> String {
        use base64::Engine as _;
        let short = |bytes: &Vec<u8>| bytes.len() <= MAX_PASTED_BYTES;
        let payload = example.and_then(|path| std::fs::read(path).ok()).filter(short);
        let payload = payload.unwrap_or_else(|| b"hello".to_vec());
        let payload = base64::engine::general_purpose::STANDARD.encode(payload);
        let body = format!("{{\"function\":\"{function}\",\"payload\":\"{payload}\"}}");
        let address = match self.url.strip_prefix("unix:") {
            Some(path) => format!("-unix {}", quote(path)),
            None => self.url.trim_start_matches("http://").to_owned(),
        };
        format!("grpcurl -plaintext -d '{body}' {address} novum.gateway.v1.Functions/Invoke")
    }
}

/// As one word of a POSIX shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A request that the function's author wrote down: the first `test/*.in` beside the manifest. One with a `.code`
/// beside it is a mistake that the function must refuse.
#[must_use]
pub fn example_request(manifest: &Path) -> Option<PathBuf> {
    let folder = manifest.parent()?.join("test");
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let is_request = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "in");
    files.filter(|path| is_request(path) && !path.with_extension("code").exists()).min()
}

/// Nobody is there to read: nothing to be done about it.
fn say(text: impl std::fmt::Display) {
    let _ = output::line(text);
}

/// A function serves.
pub fn deployed(path: &Path, response: &v1::DeployResponse, calls: &Calls, first: bool) {
    let Some(function) = &response.function else { return };
    let manifest = function.manifest.clone().unwrap_or_default();
    let name = &manifest.name;
    let verb = styled(GREEN, if first { "serving" } else { "redeployed" });
    say(format_args!(
        "{verb} {} version {} from {} ({}, {}, prepared in {})",
        styled(BOLD, name),
        function.version,
        path.display(),
        output::engine_name(manifest.engine),
        format_size(function.artifact_bytes),
        format_duration(output::duration(response.prepare_time.as_ref())),
    ));
    if first {
        let example = example_request(path);
        say(format_args!("  {}", styled(CYAN, calls.curl(name, example.as_deref()))));
        say(format_args!("  {}", styled(CYAN, calls.grpcurl(name, example.as_deref()))));
    }
}

/// A function could not be deployed.
pub fn refused(path: &Path, error: &Error, before: Option<&(String, u64)>) {
    let text = error.to_string();
    let place = path.display().to_string();
    let prefix = if text.contains(&place) { String::new() } else { format!("{place}: ") };
    say(format_args!("{} {prefix}{text}", styled(RED, "error")));
    if let Some(advice) = error.advice() {
        say(format_args!("  {} {advice}", styled(CYAN, "try:")));
    }
    if let Some((name, version)) = before {
        say(format_args!("  {}", styled(YELLOW, format_args!("{name} version {version} keeps serving"))));
    }
}

/// A function is served no more: its files are gone, or give it another name.
pub fn removed(path: &Path, name: &str) {
    say(format_args!("{} {name} of {}", styled(YELLOW, "removed"), path.display()));
}

/// The first lines.
pub fn greeting(root: &Path, addresses: &[String]) {
    say(format_args!(
        "novum dev: functions below {} at {}",
        styled(BOLD, root.display()),
        addresses.join(" ")
    ));
}

/// After the first deploys.
pub fn ready(serving: usize) {
    let what = match serving {
        0 => {
            "no function yet; a directory with a novum.toml, or a .wasm or .wat file, becomes one".to_owned()
        }
        1 => "1 function serves; files are watched, Ctrl-C ends".to_owned(),
        n => format!("{n} functions serve; files are watched, Ctrl-C ends"),
    };
    say(styled(DIM, what));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (text, quoted) in [("a/b.in", "a/b.in"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("", "''")] {
            assert_eq!(quote(text), quoted);
        }
    }

    #[test]
    fn the_example_is_the_first_request_that_is_no_mistake() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("test")).unwrap();
        for name in ["a.in", "a.code", "b.in", "b.out", "c.in"] {
            std::fs::write(dir.path().join("test").join(name), "").unwrap();
        }
        let found = example_request(&dir.path().join("novum.toml")).unwrap();
        assert!(found.ends_with("test/b.in"), "{found:?}");
    }

    #[test]
    fn calls_name_the_address_and_the_function() {
        let tcp = Calls { url: "http://127.0.0.1:7070".into() };
        assert_eq!(
            tcp.curl("hello", None),
            "curl -sS --data-binary hello http://127.0.0.1:7070/v1/functions/hello:invoke"
        );
        assert!(tcp.grpcurl("hello", None).contains("\"payload\":\"aGVsbG8=\"}' 127.0.0.1:7070 novum."));
        let unix = Calls { url: "unix:/run/n.sock".into() };
        assert!(unix.curl("hello", None).contains("--unix-socket /run/n.sock"));
    }
}
