//! Wall clocks of hosts that differ. The clock of one program is shifted by Debian's libfaketime, which
//! leaves the monotonic clock alone.

use std::path::Path;

use anyhow::{Result, ensure};

use super::case::Case;
use super::judge::{KNOWN_AFTER, Said};
use super::world::{TO_FILE, World};
use crate::demo::pair::Side::{A, B};

/// The library that shifts a clock.
const SHIFTS: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "clock-ahead-secondary",
        "issue of a takeover whose guest jumped",
        "the secondary's clock is five minutes ahead: it is said, and the VM goes on nevertheless",
        |world| secondary_off(world, "+300s"),
    ),
    Case::new(
        "clock-behind-secondary",
        "issue of a takeover whose guest jumped",
        "the secondary's clock is five minutes behind: it is said, and the VM goes on nevertheless",
        |world| secondary_off(world, "-300s"),
    ),
];

fn secondary_off(world: &mut World, shift: &str) -> Result<()> {
    ensure!(
        Path::new(SHIFTS).exists(),
        "{SHIFTS} is missing: install Debian's package faketime"
    );
    let script = format!(
        "export LD_PRELOAD={SHIFTS} FAKETIME={shift} FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1; {TO_FILE}"
    );
    world.start(A, "run", TO_FILE)?;
    world.await_service()?;
    let clients = world.clients()?;
    world.start(B, "secondary", &script)?;
    for side in [A, B] {
        world.await_not_ready(side, &["clock"])?;
    }
    std::thread::sleep(KNOWN_AFTER);
    ensure!(world.check(A)? == Said::NotReady, "{:?} is said", world.check(A)?);
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}
