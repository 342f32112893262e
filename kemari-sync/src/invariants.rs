//! When state machines check themselves.
//!
//! Each has an `assert_invariants` that is called at the end of each event, or change. It says what the
//! contract on the type promises, and nothing that an adversary could bring about: whoever is told nonsense
//! refuses it before.

use crate::faults::are_all_rules_kept;

/// Whether they do: in debug builds and in the simulation, unless a rule was taken out of them.
pub(crate) fn are_asserted() -> bool {
    cfg!(any(debug_assertions, feature = "sim")) && are_all_rules_kept()
}
