//! `novum completions`.

use clap::CommandFactory;

use super::error::Error;
use super::output;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum completions bash > ~/.local/share/bash-completion/completions/novum
  novum completions zsh > ~/.zfunc/_novum
  novum completions fish > ~/.config/fish/completions/novum.fish")]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args) -> Result<u8, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "novum", &mut script);
    output::raw(&script)?;
    Ok(0)
}
