//! What the threads of a side ask of the kernel, in one place for who counts them;
//! each list stands beside its thread.

use kemari_vmm::confine::Calls;

use super::{console, drill, health, probe};

/// The lists of a side's threads.
pub const LISTS: [Calls; 4] = [console::CALLS, drill::CALLS, health::CALLS, probe::CALLS];
