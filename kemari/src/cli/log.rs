//! What is logged.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Starts logging as `words` say: by default what a running side does,
/// and of short commands only what is wrong.
pub fn init(words: Option<&str>, runs_a_side: bool) -> anyhow::Result<()> {
    let default = match runs_a_side {
        true => "info",
        false => "error",
    };
    let text = words.unwrap_or(default);
    let filter = EnvFilter::try_new(text).with_context(|| {
        format!("`{text}` is no log filter: write a level, as `debug`, or `info,kemari::arbiter=debug`")
    })?;
    crate::log::start(filter)
}
