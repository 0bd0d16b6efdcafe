//! The command line: one file for each command, parsed by clap, run to an exit code.

pub mod error;
pub mod output;

#[cfg(feature = "bench")]
mod bench;
mod completions;
mod delete;
mod deploy;
mod dev;
mod doctor;
mod functions;
mod image;
mod input;
mod invoke;
mod kernel;
mod logs;
mod progress;
mod run;
#[cfg(feature = "vm")]
mod run_guest;
mod sandbox;
mod serve;
mod snapshot;
mod stats;
mod terminal;

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::builder::Styles;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::client::Client;
use error::Error;

// The dev server prints and names things as the commands do.
pub(crate) use functions::all as all_functions;
pub(crate) use input::name_from;
pub(crate) use logs::line_text;
pub(crate) use progress::Progress;
pub(crate) use serve::url as server_url;

/// How help texts look on a terminal.
const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Green.on_default());

/// Functions nobody has to trust, over gRPC and HTTP.
#[derive(Debug, Parser)]
#[command(name = "novum", version, styles = STYLES, max_term_width = 110, after_help = "\
Examples:
  novum dev --demo                     serve the built-in examples and try one
  novum dev functions/                 serve every function found there, redeploy on change
  novum serve                          start a gateway on 127.0.0.1:7070
  novum deploy functions/hello         deploy a directory with a novum.toml
  echo hi | novum invoke hello         call it
  novum run hello.wasm < request       run one function here, without a gateway

Exit codes: a function's own code is passed through; novum's own are listed in docs/cli.md.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const GLOBAL: &str = "Options of every command";

/// What every command understands.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// The gateway: http://HOST:PORT or unix:/path
    #[arg(
        long,
        global = true, help_heading = GLOBAL,
        value_name = "URL",
        env = "NOVUM_SERVER", hide_env_values = true,
        default_value = "http://127.0.0.1:7070"
    )]
    pub server: String,
    /// Print JSON for programs, one value a line
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// When to use colours (NO_COLOR is respected)
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "WHEN", default_value = "auto", value_parser = ["auto", "always", "never"])]
    pub color: String,
    /// Say more on standard error; twice for debugging
    #[arg(short, long, global = true, help_heading = GLOBAL, action = ArgAction::Count)]
    pub verbose: u8,
    /// What to log on standard error, as in "info,novum=debug"; overrides --verbose
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILTER", env = "NOVUM_LOG", hide_env_values = true, hide_short_help = true)]
    pub log: Option<String>,
}

impl Global {
    /// Connects to the gateway.
    ///
    /// # Errors
    /// See [`Client::connect`].
    pub async fn connect(&self) -> Result<Client, Error> {
        Client::connect(&self.server).await
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Dev(dev::Args),
    Deploy(deploy::Args),
    Invoke(invoke::Args),
    Functions(functions::Args),
    Logs(logs::Args),
    Delete(delete::Args),
    Run(run::Args),
    Sandbox(sandbox::Args),
    Snapshot(snapshot::Args),
    Stats(stats::Args),
    Doctor(doctor::Args),
    #[cfg(feature = "bench")]
    Bench(bench::Args),
    Kernel(kernel::Args),
    Image(image::Args),
    Completions(completions::Args),
}

/// Parses the command line, runs the command and gives its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::command().color(color_for_help());
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(error::exit::USAGE));
        }
    };
    set_color(&cli.global.color);
    match start_log(&cli).and_then(|()| execute(&cli)) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            output::failure(&e, cli.global.json);
            ExitCode::from(e.exit_code())
        }
    }
}

fn execute(cli: &Cli) -> Result<u8, Error> {
    let global = &cli.global;
    match &cli.command {
        Command::Serve(args) => serve::run(global, args),
        Command::Dev(args) => dev::run(global, args),
        Command::Deploy(args) => block_on(deploy::run(global, args)),
        Command::Invoke(args) => block_on(invoke::run(global, args)),
        Command::Functions(args) => block_on(functions::run(global, args)),
        Command::Logs(args) => block_on(logs::run(global, args)),
        Command::Delete(args) => block_on(delete::run(global, args)),
        Command::Run(args) => run::run(global, args),
        Command::Sandbox(args) => block_on(sandbox::run(global, args)),
        Command::Snapshot(args) => snapshot::run(global, args),
        Command::Stats(args) => block_on(stats::run(global, args)),
        Command::Doctor(args) => doctor::run(global, args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(args),
        Command::Kernel(args) => kernel::run(global, args),
        Command::Image(args) => image::run(global, args),
        Command::Completions(args) => completions::run(args),
    }
}

/// A client needs one thread; starting more costs more than the call.
fn block_on<T>(command: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::Io { doing: "start the runtime", source })?;
    let result = runtime.block_on(command);
    // A thread may still wait for standard input: the process ends without it.
    runtime.shutdown_background();
    result
}

fn start_log(cli: &Cli) -> Result<(), Error> {
    let serves = matches!(cli.command, Command::Serve(_));
    let level = match (cli.global.verbose, serves) {
        (0, false) => "warn",
        (0, true) | (1, false) => "info",
        (1, true) | (2, _) => "debug",
        _ => "trace",
    };
    // Above `info` the transport's own events drown ours.
    let default =
        format!("{level},h2=info,hyper=info,hyper_util=info,tower=info,cranelift=info,wasmtime=info");
    let filter =
        EnvFilter::try_new(cli.global.log.as_deref().unwrap_or(&default)).map_err(|e| Error::Usage {
            what: format!("--log: {e}"),
            advice: "write a filter such as \"info\" or \"info,novum=debug\"".into(),
        })?;
    let json = matches!(&cli.command, Command::Serve(args) if args.log_json());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match json {
        true => log.json().init(),
        false => log.with_ansi(stderr_has_colors()).init(),
    }
    Ok(())
}

fn stderr_has_colors() -> bool {
    anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
}

fn set_color(when: &str) {
    match when {
        "always" => anstream::ColorChoice::Always.write_global(),
        "never" => anstream::ColorChoice::Never.write_global(),
        _ => anstream::ColorChoice::Auto.write_global(),
    }
}

/// Help is printed by clap while it parses, before `--color` is known: look for it by hand.
fn color_for_help() -> clap::ColorChoice {
    let args: Vec<_> = std::env::args().collect();
    let given = args.iter().enumerate().find_map(|(i, arg)| match arg.strip_prefix("--color") {
        Some("") => args.get(i + 1).map(String::as_str),
        Some(rest) => rest.strip_prefix('='),
        None => None,
    });
    match given {
        Some("always") => clap::ColorChoice::Always,
        Some("never") => clap::ColorChoice::Never,
        _ => clap::ColorChoice::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "{}", command.get_name());
        }
    }
}
