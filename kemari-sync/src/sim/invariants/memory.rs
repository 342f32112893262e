//! After a commit the secondary has exactly what the primary captured: no dirty page is lost,
//! no stale one kept.

use std::collections::HashMap;

use crate::sim::vm::PAGES;
use crate::wire::CommitId;

#[derive(Default)]
pub(in crate::sim) struct Memory {
    /// By primary and epoch, all of a run: a secondary that stood still may commit an old one.
    captures: HashMap<(u128, u64), ([u64; PAGES], u64)>,
    /// By secondary: of which primary, and which sync.
    commits: HashMap<u128, (u128, CommitId)>,
}

impl Memory {
    pub(in crate::sim) fn captured(&mut self, primary: u128, epoch: u64, memory: [u64; PAGES], seq: u64) {
        self.captures.insert((primary, epoch), (memory, seq));
    }

    /// A secondary has decided; whether it lives to apply it is another matter.
    pub(in crate::sim) fn decided(&mut self, secondary: u128, primary: u128, commit: CommitId) {
        self.commits.insert(secondary, (primary, commit));
    }

    pub(in crate::sim) fn applied(
        &self,
        primary: u128,
        commit: CommitId,
        memory: [u64; PAGES],
    ) -> Result<(), String> {
        let Some((captured, _)) = self.captures.get(&(primary, commit.epoch)) else {
            return Err(format!("sync {} was committed, but never captured", commit.epoch));
        };
        match (0..PAGES).find(|&page| captured[page] != memory[page]) {
            None => Ok(()),
            Some(page) => Err(format!(
                "after sync {} page {page} is {} at the secondary, but was {} at the capture",
                commit.epoch, memory[page], captured[page]
            )),
        }
    }

    /// Up to which number this sync contains what the machine did.
    pub(in crate::sim) fn contains(&self, primary: u128, epoch: u64) -> u64 {
        self.captures.get(&(primary, epoch)).map_or(0, |(_, seq)| *seq)
    }

    pub(in crate::sim) fn last_commit(&self, secondary: u128) -> Option<(u128, CommitId)> {
        self.commits.get(&secondary).copied()
    }
}
