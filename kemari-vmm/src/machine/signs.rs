//! Signs of life of a machine: whether its guest runs, and what went wrong with it.

use std::io;
use std::sync::atomic::Ordering;

use super::Machine;
use crate::arch::stats::{VcpuCounts, VcpuStats};
use crate::arch::vcpu::VcpuState;
use crate::state::{StateBlob, StateError};

/// What a vCPU of a captured state is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuDue {
    /// It executes instructions as soon as it may.
    pub runnable: bool,
    /// The guest has started it.
    pub started: bool,
    /// When its timer fires, in nanoseconds from the capture on, if it is armed.
    pub timer_ns: Option<u64>,
}

/// Counts what the vCPUs of a machine do.
pub struct VcpuWatch(Vec<VcpuStats>);

impl VcpuWatch {
    /// What each vCPU has done since the machine was made, in order. The guest may run meanwhile.
    pub fn counts(&self) -> io::Result<Vec<VcpuCounts>> {
        self.0.iter().map(VcpuStats::read).collect()
    }
}

impl Machine {
    /// What each vCPU of a captured state is about to do, in order.
    ///
    /// # Errors
    /// If the states are not those of such a machine.
    pub fn vcpus_due(&self, states: &[StateBlob]) -> Result<Vec<VcpuDue>, StateError> {
        (0..u16::from(self.spec.vcpus))
            .map(|index| {
                let state: VcpuState = StateBlob::find_state(states, index)?;
                Ok(VcpuDue {
                    runnable: state.is_runnable(),
                    started: state.is_started(),
                    timer_ns: state.timer_due_ns(self.identities[usize::from(index)].tsc_khz),
                })
            })
            .collect()
    }

    /// Has KVM count what the vCPUs do. The machine must be paused.
    ///
    /// # Errors
    /// If this KVM does not count (before Linux 5.14).
    pub fn watch_vcpus(&self) -> io::Result<VcpuWatch> {
        let stats = (0..self.vcpus.count()).map(|index| VcpuStats::open(&self.vcpus.fd(index)));
        Ok(VcpuWatch(stats.collect::<io::Result<_>>()?))
    }

    /// How often a processor of the guest has shut down (a triple fault).
    pub fn shut_downs(&self) -> u32 {
        self.parts.shut_downs.load(Ordering::SeqCst)
    }

    /// The devices that have stopped because the guest's driver broke the rules.
    pub fn broken_devices(&self) -> Vec<String> {
        let broken = self.parts.devices().filter(|device| device.is_broken());
        broken
            .filter_map(|device| Some(device.channels().first()?.name().to_owned()))
            .collect()
    }
}
