//! State of the virtual machine as a whole: interrupt controllers, interval timer, clock.
//!
//! # Order
//! Save: devices first (they can raise interrupts), then vCPUs, then this. Restore: vCPUs first, then this,
//! before any vCPU runs: KVM derives its clock from the vCPUs' TSCs, and the guest must not read it before it
//! is set.
//!
//! # Time
//! A restore may advance time by what has passed since the save ([`VmState::wall_clock_elapsed_ns`]). The
//! same amount goes to the clock here and to the TSC of each vCPU, so that a guest sees the two agree. It is
//! never negative: monotonic time never steps back.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_ioapic_state, kvm_irqchip, kvm_pic_state, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::{ArchError, named};
use crate::state::{State, StateKind};

/// Most by which a restore advances time, in nanoseconds. A longer absence means that the hosts' wall clocks
/// disagree: the guest then goes on from where it was.
pub(crate) const CLOCK_ADVANCE_NS_MAX: u64 = 600 * 1_000_000_000;

pub(super) const PIC_BYTES: usize = size_of::<kvm_pic_state>();
const IO_APIC_BYTES: usize = size_of::<kvm_ioapic_state>();

/// Interrupt controllers, interval timer and clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VmState {
    /// The two 8259s, master first.
    pics: [[u8; PIC_BYTES]; 2],
    /// The I/O APIC: [`IO_APIC_BYTES`].
    io_apic: Vec<u8>,
    /// The 8254.
    pit: kvm_pit_state2,
    /// Nanoseconds of kvm-clock.
    clock_ns: u64,
    /// Wall clock of the host at the same moment, in nanoseconds since 1970.
    realtime_ns: u64,
}

impl State for VmState {
    const KIND: StateKind = StateKind::Vm;
    const VERSION: u16 = 1;
}

impl VmState {
    /// Reads the state of a VM whose vCPUs stand still.
    ///
    /// # Errors
    /// Names the ioctl that failed.
    pub fn save(vm: &VmFd) -> Result<Self, ArchError> {
        let mut state = Self::default();
        state.save_into(vm)?;
        Ok(state)
    }

    /// [`VmState::save`] into the allocations of a former state.
    ///
    /// # Errors
    /// Names the ioctl that failed.
    pub(crate) fn save_into(&mut self, vm: &VmFd) -> Result<(), ArchError> {
        self.pit = vm.get_pit2().map_err(named("KVM_GET_PIT2"))?;
        let clock = vm.get_clock().map_err(named("KVM_GET_CLOCK"))?;
        self.clock_ns = clock.clock;
        // An older KVM does not pair the clocks: the moment between the two readings is then lost to the
        // guest.
        let paired = clock.flags & KVM_CLOCK_REALTIME != 0;
        self.realtime_ns = if paired { clock.realtime } else { realtime_ns() };
        for (chip, pic) in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE]
            .into_iter()
            .zip(&mut self.pics)
        {
            pic.copy_from_slice(&get_chip(vm, chip)?[..PIC_BYTES]);
        }
        self.io_apic.clear();
        self.io_apic
            .extend(&get_chip(vm, KVM_IRQCHIP_IOAPIC)?[..IO_APIC_BYTES]);
        Ok(())
    }

    /// Nanoseconds by which the wall clock went on since the save, for a guest whose clocks shall be right
    /// again: 0 if this host's clock is behind, or further ahead than [`CLOCK_ADVANCE_NS_MAX`].
    pub(crate) fn wall_clock_elapsed_ns(&self) -> u64 {
        let elapsed = realtime_ns().saturating_sub(self.realtime_ns);
        if elapsed > CLOCK_ADVANCE_NS_MAX {
            tracing::warn!(
                elapsed_ns = elapsed,
                "the wall clocks of the hosts disagree; the guest's clock goes on from where it was"
            );
            return 0;
        }
        elapsed
    }

    /// Loads the state into a VM whose vCPUs stand still and have been restored. `advance_ns` is added to the
    /// clock; it must be what the vCPUs were restored with: [`VmState::wall_clock_elapsed_ns`] once, or 0.
    ///
    /// # Errors
    /// Names the ioctl that failed.
    pub fn restore(&self, vm: &VmFd, advance_ns: u64) -> Result<(), ArchError> {
        if self.io_apic.len() != IO_APIC_BYTES {
            return Err(ArchError::Unfit(format!(
                "the I/O APIC's state has {} bytes",
                self.io_apic.len()
            )));
        }
        vm.set_pit2(&self.pit).map_err(named("KVM_SET_PIT2"))?;
        // Without KVM_CLOCK_REALTIME: KVM would add the elapsed time itself,
        // a little different from the TSCs'.
        let clock = kvm_clock_data {
            clock: self.clock_ns.saturating_add(advance_ns),
            ..Default::default()
        };
        vm.set_clock(&clock).map_err(named("KVM_SET_CLOCK"))?;
        for (chip, pic) in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE]
            .into_iter()
            .zip(&self.pics)
        {
            set_chip(vm, chip, pic)?;
        }
        // Last: its pins may inject into the local APICs, which are restored by now.
        set_chip(vm, KVM_IRQCHIP_IOAPIC, &self.io_apic)
    }
}

fn realtime_ns() -> u64 {
    // A clock before 1970 reads as 1970: it then counts as behind.
    #[expect(
        clippy::disallowed_methods,
        reason = "the guest has a wall clock of its own to be set right"
    )]
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// Bytes of the union in `kvm_irqchip`.
const CHIP_BYTES: usize = 512;

/// Reads one interrupt controller.
pub(super) fn get_chip(vm: &VmFd, chip_id: u32) -> Result<[u8; CHIP_BYTES], ArchError> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).map_err(named("KVM_GET_IRQCHIP"))?;
    // SAFETY: every byte of the union was initialised, by `default` or by KVM,
    // and any bytes are valid integers.
    Ok(unsafe { chip.chip.dummy }.map(|byte| byte as u8))
}

/// Writes one interrupt controller; `bytes` is its structure, at most [`CHIP_BYTES`] long.
pub(super) fn set_chip(vm: &VmFd, chip_id: u32, bytes: &[u8]) -> Result<(), ArchError> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    let mut dummy = [0; CHIP_BYTES];
    for (target, byte) in dummy.iter_mut().zip(bytes) {
        *target = *byte as _;
    }
    chip.chip.dummy = dummy;
    vm.set_irqchip(&chip).map_err(named("KVM_SET_IRQCHIP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward_only_and_within_bounds() {
        let now = realtime_ns();
        let state = |realtime_ns| VmState {
            realtime_ns,
            ..Default::default()
        };
        assert_eq!(state(now + 3_600_000_000_000).wall_clock_elapsed_ns(), 0);
        assert_eq!(state(now - 2 * CLOCK_ADVANCE_NS_MAX).wall_clock_elapsed_ns(), 0);
        let elapsed = state(now - 1_000_000_000).wall_clock_elapsed_ns();
        assert!((1_000_000_000..60_000_000_000).contains(&elapsed), "{elapsed}");
    }
}
