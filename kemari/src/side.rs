//! One side of a VM: the wiring of the mechanism (`kemari_sync`), the machine (`kemari_vmm`) and the link.
//!
//! A side is one loop on one thread. It waits for its sockets, for its mailbox (into which other threads put
//! what happened) and for the mechanism's next deadline; it feeds the mechanism's state machine with events
//! and carries out the actions that come back. `primary` and `secondary` are those loops, `life` goes from
//! one to the other.

mod about;
mod ahead;
mod alarms;
mod arbiter_thread;
mod assembly;
mod board;
mod calls;
mod capture;
#[cfg(test)]
mod capture_test;
mod cards;
mod certificates;
mod clock;
mod console;
mod copy;
mod deltas;
mod drill;
mod faults;
mod fence;
mod frames;
mod gather;
mod health;
mod life;
mod looks;
mod mailbox;
mod primary;
mod probe;
mod query;
mod readiness;
mod said;
mod secondary;
mod shown;
mod signals;
mod step;
mod sync_tap;
mod terminal;
#[cfg(test)]
mod testing;
mod timers;
mod trace;
mod wait;

pub use about::{about, memory_available_mib};
pub(crate) use assembly::kernel;
pub(crate) use calls::LISTS;
pub use clock::wall_clock_ms;
pub(crate) use faults::directories as directories_of_faults;
pub(crate) use fence::{fence, run_hook};
pub use life::{StartAs, run};
pub use query::{PeerAnswer, question};
pub use readiness::{CLOCKS_MS_MAX, executable};
