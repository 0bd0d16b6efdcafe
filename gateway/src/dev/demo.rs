//! The examples inside the binary, for the quick start.

use std::path::Path;
use std::time::Instant;

use novum_proto::gateway::v1;

use crate::cli::error::Error;
use crate::cli::output::{self, BOLD, DIM, styled};
use crate::client::Client;
use crate::units::format_duration;

/// One example: its folder, and each file's path in it.
struct Example {
    name: &'static str,
    files: &'static [(&'static str, &'static [u8])],
}

macro_rules! examples {
    ($($name:literal: $($file:literal),+;)+) => {
        &[$(Example {
            name: $name,
            files: &[$(($file, include_bytes!(concat!("../../../examples/", $name, "/", $file)))),+],
        }),+]
    };
}

/// Those of examples/ that are small enough to be in git.
const EXAMPLES: &[Example] = examples! {
    "echo": "novum.toml", "echo.wat";
    "json": "novum.toml", "json.wasm", "test/pretty.in";
    "wordcount": "novum.toml", "wordcount.wasm", "test/text.in";
};

/// What is shown: a Rust program that counts words.
const SHOWN: &str = "wordcount";
const REQUEST: &str = "the quick brown fox jumps over the lazy dog\n";

/// Writes the examples below `root`.
///
/// # Errors
/// A directory that cannot be written.
pub fn write(root: &Path) -> std::io::Result<()> {
    for example in EXAMPLES {
        for (file, bytes) in example.files {
            let path = root.join(example.name).join(file);
            std::fs::create_dir_all(path.parent().unwrap_or(root))?;
            std::fs::write(path, bytes)?;
        }
    }
    Ok(())
}

/// Invokes one example over gRPC, as any client would, and shows the answer with its timings.
///
/// # Errors
/// The gateway's.
pub async fn show(client: &Client) -> Result<(), Error> {
    let mut functions = client.functions();
    output::line(format_args!(
        "\n{} over gRPC with: {}",
        styled(BOLD, format_args!("calling {SHOWN}")),
        REQUEST.trim()
    ))?;
    for call in ["first call ", "second call"] {
        let request = v1::InvokeRequest {
            function: SHOWN.to_owned(),
            payload: REQUEST.into(),
            ..v1::InvokeRequest::default()
        };
        let asked = Instant::now();
        let reply =
            functions.invoke(request).await.map_err(Error::status(format!("invoke {SHOWN}")))?.into_inner();
        let seen = format_duration(asked.elapsed());
        let timings = reply.timings.as_ref().ok_or(Error::Protocol("timings"))?;
        output::line(format_args!("  {call} {}", String::from_utf8_lossy(&reply.payload).trim_end()))?;
        let text = format!("              {}; seen by the client {seen}", output::timings_text(timings));
        output::line(styled(DIM, text))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    #[test]
    fn every_example_has_a_good_manifest() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        for example in EXAMPLES {
            let file = manifest::load(&dir.path().join(example.name).join("novum.toml")).unwrap();
            assert_eq!(file.manifest.name.as_str(), example.name);
        }
        assert!(EXAMPLES.iter().any(|example| example.name == SHOWN));
    }
}
