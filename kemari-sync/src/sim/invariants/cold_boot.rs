//! A cold boot gives up whatever state there was: only if nobody who lives may still go on from it.

use crate::record::{Phase, Record};
use crate::sim::host::{Host, Process};

pub(in crate::sim) fn runs(hosts: &[Host], booting: usize, replaced: Option<&Record>) -> Result<(), String> {
    for (index, host) in hosts.iter().enumerate().filter(|(index, _)| *index != booting) {
        match &host.process {
            Process::Primary(side) if !side.machine.is_over() => {
                return Err(format!("the VM is booted while host {index} runs it"));
            }
            Process::Secondary(side) => {
                let is_peer = replaced.is_some_and(|record| {
                    record.phase != Phase::Stopped && record.peer.as_ref() == Some(&host.me)
                });
                if is_peer && side.machine.holds().is_some() {
                    return Err(format!(
                        "the VM is booted while host {index}, the recorded peer, holds a commit"
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
