//! `novum delete`.

use novum_proto::gateway::v1;
use serde_json::json;

use super::Global;
use super::error::Error;
use super::output;

/// Remove a function and all its versions; invocations under way finish
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum delete hello
  novum delete hello wordcount")]
pub(super) struct Args {
    /// The functions' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(super) async fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let mut functions = global.connect().await?.functions();
    for name in &args.names {
        let request = v1::DeleteRequest { name: name.clone() };
        functions.delete(request).await.map_err(Error::status(format!("delete {name}")))?;
        match global.json {
            true => output::json_line(&json!({ "outcome": "deleted", "name": name }))?,
            false => output::line(format_args!("deleted {name}"))?,
        }
    }
    Ok(0)
}
