//! Commands of the host: started, waited for, their last words kept for the error.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::Error;

/// How much of a failed command's output an error repeats.
const LAST_LINES: usize = 15;

/// Runs `command` and returns its standard output. `package` is the Debian package that has the program.
pub(crate) fn output(command: &mut Command, package: &'static str) -> Result<Vec<u8>, Error> {
    let line = describe(command);
    let result = command.stdin(Stdio::null()).output().map_err(|source| missing(command, package, source))?;
    if result.status.success() {
        return Ok(result.stdout);
    }
    let words = [result.stdout, result.stderr].concat();
    Err(Error::Command { command: line, status: result.status, output: last_lines(&words) })
}

/// Runs `command` as a filter over `input`; a non-zero exit status is an error.
pub(crate) fn filter(command: &mut Command, package: &'static str, input: &[u8]) -> Result<Vec<u8>, Error> {
    let line = describe(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| missing(command, package, source))?;
    let mut stdin = child.stdin.take();
    let result = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A filter that stops reading early says why by its exit status.
            let _ = stdin.as_mut().map(|pipe| pipe.write_all(input));
        });
        child.wait_with_output()
    });
    let result = result.map_err(|source| missing(command, package, source))?;
    if result.status.success() {
        return Ok(result.stdout);
    }
    Err(Error::Command { command: line, status: result.status, output: last_lines(&result.stderr) })
}

fn missing(command: &Command, package: &'static str, source: std::io::Error) -> Error {
    Error::Missing { command: command.get_program().to_string_lossy().into_owned(), package, source }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_repeats_its_last_words() {
        let error =
            output(Command::new("sh").args(["-c", "echo so; echo sad >&2; exit 3"]), "dash").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("so\nsad"), "{text}");
    }

    #[test]
    fn a_missing_command_names_its_package() {
        let error = output(&mut Command::new("no-such-command"), "some-package").unwrap_err();
        assert!(error.to_string().contains("some-package"));
    }

    #[test]
    fn a_filter_passes_more_than_a_pipe_holds() {
        let input = vec![7; 1 << 20];
        assert_eq!(filter(&mut Command::new("cat"), "coreutils", &input).unwrap(), input);
    }
}
