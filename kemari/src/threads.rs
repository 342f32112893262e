//! Threads. A host may have none left, by a limit of its own or of this process's control group; that passes,
//! and no side ends for it. What a side needs while it runs is done by threads that were made beforehand: by
//! its own, or by [`helpers`]; those that serve the devices of a VM that is taken over wait in a
//! reserve ([`kemari_vmm::threads`]). Only what can be refused or tried again makes new ones.

pub(crate) mod helpers;
mod monitor;

pub(crate) use kemari_vmm::threads::make as start;
pub(crate) use monitor::Monitor;
