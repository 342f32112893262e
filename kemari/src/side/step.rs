//! The steps of a change of roles that can fail.
//!
//! Between a won term and the running guest, and on the way back to a secondary, the VM depends on this process: what fails
//! there is tried again. So that this can be proved of every such call, each passes through [`step`]: a test's build lists
//! them, and a scenario has each of them fail (`KEMARI_FAULTS`, see `faults`).

use std::fmt::Display;

use super::faults;

/// Does something that can fail and is tried again if it does. No two steps of a change have the same name.
pub fn step<T>(name: impl Display, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    faults::before_step(&name)?;
    let done = work()?;
    faults::after_step(&name)?;
    Ok(done)
}
