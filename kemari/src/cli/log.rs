//! What is logged.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use super::Cli;

/// Starts logging as `cli` says: by default what a running side does, and of short commands only what is wrong.
pub fn init(cli: &Cli) -> anyhow::Result<()> {
    let default = match cli.action.runs_a_side() {
        true => "info",
        false => "error",
    };
    let text = cli.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(text).with_context(|| {
        format!("`{text}` is no log filter: write a level, as `debug`, or `info,kemari::arbiter=debug`")
    })?;
    crate::log::start(filter)
}
