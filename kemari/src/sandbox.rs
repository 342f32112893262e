//! A side's process has little to lose: what it gives up at its start, before it reads anything of a guest or a peer.
//!
//! docs/security.md says what that keeps from whom.

use kemari_vmm::memory;
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask};
use rustix::thread::set_no_new_privs;

/// Gives up what no side needs, for the life of the process and of all that it starts. Only the first thread may call it,
/// while there is no other.
///
/// - Neither a crash nor another process of the same user gets at its memory, which holds the guest's.
/// - Nothing that it starts can have more rights than it has itself (so a fence command may be `sudo` only as root).
/// - Whatever it makes is its user's alone.
pub fn begin() {
    // What is read of the process itself later on: nobody but root may open it from here on.
    memory::open_pagemap();
    // None of these can fail: each is about this process itself, and asks for less than it has.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    let _ = set_no_new_privs(true);
    umask(Mode::RWXG | Mode::RWXO);
}
