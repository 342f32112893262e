//! A machine that has not run yet, and the place of the loop that will drive it.
//!
//! All that a primary is made of and that can fail to be made is made here, while nobody depends on it: a
//! secondary that wins goes on with what it has.

use std::sync::Arc;

use anyhow::Context;
use kemari_vmm::machine::{Machine, MachineSpec};

use super::super::assembly;
use super::super::mailbox::Mailbox;
use super::super::wait::Waiter;
use super::Input;
use crate::config::Config;

/// See the module.
pub struct Seat {
    pub machine: Arc<Machine>,
    /// Where the machine and others tell what has happened.
    pub mailbox: Arc<Mailbox<Input>>,
    /// What the loop will wait at; it waits for the mailbox already.
    pub waiter: Waiter,
}

impl Seat {
    /// Builds the machine of a host, its disks and cables unplugged.
    pub fn make(config: &Config, host: &str, spec: MachineSpec) -> anyhow::Result<Self> {
        let mailbox = Mailbox::new()?;
        let waiter = Waiter::new()?;
        waiter.add(mailbox.fd())?;
        let sink = mailbox.clone();
        let events = Arc::new(move |event| sink.post(Input::Machine(event)));
        let console = assembly::console(config.host(host))?;
        let machine = Machine::new(spec, console, events).context("cannot build the machine")?;
        Ok(Self {
            machine: Arc::new(machine),
            mailbox,
            waiter,
        })
    }
}
