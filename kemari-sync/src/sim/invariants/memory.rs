//! After a commit the secondary has exactly what the primary captured: no dirty page is lost, no stale one
//! kept, no state is missing. What is sent as a difference differs from what is there.

use std::collections::HashMap;

use crate::sim::host::Staged;
use crate::sim::parts::{Content, PARTS};
use crate::sim::vm::{PAGES, Vm};
use crate::wire::CommitId;

struct Captured {
    memory: [u64; PAGES],
    seq: u64,
    digest: u64,
}

#[derive(Default)]
pub(in crate::sim) struct Memory {
    /// By primary and epoch, all of a run: a secondary that stood still may commit an old one.
    captures: HashMap<(u128, u64), Captured>,
    /// By secondary: of which primary, and which sync.
    commits: HashMap<u128, (u128, CommitId)>,
}

impl Memory {
    pub(in crate::sim) fn captured(&mut self, primary: u128, epoch: u64, vm: &Vm) {
        let captured = Captured {
            memory: vm.pages,
            seq: vm.seq,
            digest: vm.digest(),
        };
        self.captures.insert((primary, epoch), captured);
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
        state: Option<&Vm>,
    ) -> Result<(), String> {
        let Some(captured) = self.captures.get(&(primary, commit.epoch)) else {
            return Err(format!("sync {} was committed, but never captured", commit.epoch));
        };
        if state.map(Vm::digest) != Some(captured.digest) {
            return Err(format!(
                "after sync {} the secondary's state is not that of the capture",
                commit.epoch
            ));
        }
        let captured = &captured.memory;
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
        self.captures
            .get(&(primary, epoch))
            .map_or(0, |captured| captured.seq)
    }

    pub(in crate::sim) fn last_commit(&self, secondary: u128) -> Option<(u128, CommitId)> {
        self.commits.get(&secondary).copied()
    }
}

/// What a whole sync says by way of what is there: that is there, and each difference is the first word of
/// its sync on a page.
pub(in crate::sim) fn refers(staged: &Staged, memory: &[u64; PAGES], has_state: bool) -> Result<(), String> {
    if !has_state && staged.parts.len() < PARTS {
        return Err(format!("sync {} leaves out what was never there", staged.epoch));
    }
    for (at, (page, content)) in staged.pages.iter().enumerate() {
        let Content::Change { base, .. } = content else {
            continue;
        };
        let is_first = staged.pages[..at].iter().all(|(before, _)| before != page);
        if *base != memory[*page] || !is_first {
            return Err(format!(
                "page {page} of sync {} is a change of {base}, but what is there is {}",
                staged.epoch, memory[*page]
            ));
        }
    }
    Ok(())
}
