//! Logs: to standard error, since standard output may be the guest's console.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use super::{Action, Cli};

/// Starts logging as `cli` says: by default what a running side does, and of short commands only what is wrong.
pub fn init(cli: &Cli) -> anyhow::Result<()> {
    let default = match cli.action {
        Action::Run { .. } | Action::Secondary { .. } | Action::Up { .. } => "info",
        _ => "error",
    };
    let text = cli.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(text).with_context(|| {
        format!("`{text}` is no log filter: write a level, as `debug`, or `info,kemari::arbiter=debug`")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Colours are for eyes: a file gets none.
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
