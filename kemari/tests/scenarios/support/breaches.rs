//! System calls that are on no list of the thread that made them. The process died of it: that may have been
//! the scenario's plan for it anyway, so it writes them down before.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

/// The file of a scenario into which its processes write them.
pub(crate) const NAME: &str = "breaches";
/// The variable by which a process is told where that is.
pub(crate) const VARIABLE: &str = "KEMARI_BREACHES";

/// Fails if there are any in the directory of a scenario.
pub(crate) fn none_in(directory: &Path) -> Result<()> {
    let breaches = fs::read_to_string(directory.join(NAME)).unwrap_or_default();
    ensure!(breaches.is_empty(), "beyond the sandbox: {breaches}");
    Ok(())
}
