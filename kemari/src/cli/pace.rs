//! The words of `kemari mode`.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCompleter;

use super::{Target, complete};
use crate::config::Mode;
use crate::control::PaceChange;

/// What of the pace changes.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub struct PaceWords {
    /// What starts a sync, and what the guest does meanwhile: lockstep, pipelined or interval.
    #[arg(value_name = "MODE", value_parser = First::parse, add = ArgValueCompleter::new(complete::modes))]
    pub mode: Option<First>,
    /// Time between two syncs in mode `interval`, in ms.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3_600_000))]
    pub interval_ms: Option<u32>,
    /// Longest time between two syncs in any mode, in ms.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3_600_000))]
    pub max_interval_ms: Option<u32>,
    /// Dirty pages of 4 KiB that start a sync in any mode.
    #[arg(long, value_name = "N")]
    pub(crate) max_dirty_pages: Option<u32>,
}

/// The first word: a mode or, where a limit alone changes, the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// A mode.
    Mode(Mode),
    /// Another word.
    Vm(PathBuf),
}

impl First {
    fn parse(word: &str) -> Result<Self, String> {
        Ok(Mode::from_str(word, false).map_or_else(|_| Self::Vm(word.into()), Self::Mode))
    }
}

impl PaceWords {
    /// What changes, and whose.
    pub(crate) fn resolve(self, mut target: Target) -> anyhow::Result<(PaceChange, Target)> {
        let mut change = PaceChange {
            mode: None,
            interval_ms: self.interval_ms,
            max_interval_ms: self.max_interval_ms,
            max_dirty_pages: self.max_dirty_pages,
        };
        match self.mode {
            None => {}
            Some(First::Mode(mode)) => change.mode = Some(mode),
            Some(First::Vm(vm))
                if target.vm.is_none() && target.socket.is_none() && change != PaceChange::default() =>
            {
                target.vm = Some(vm);
            }
            Some(First::Vm(word)) => {
                bail!("`{}` is no mode: lockstep, pipelined or interval", word.display())
            }
        }
        Ok((change, target))
    }
}
