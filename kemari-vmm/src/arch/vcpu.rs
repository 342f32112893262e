//! State of one vCPU, saved and restored.
//!
//! # Order of a save, and why
//! 1. `KVM_GET_MP_STATE`: it makes KVM process a pending INIT or SIPI, which changes registers.
//! 2. Registers, FPU, debug registers: any order.
//! 3. MSRs, *then* the local APIC. A TSC-deadline timer that fires between the two is then seen in the MSR,
//!    in the APIC's request register, or in both (an interrupt too many is harmless); the other way round it
//!    could be in neither.
//! 4. `KVM_GET_VCPU_EVENTS` last: what came before may have queued an event.
//!
//! # Order of a restore, and why
//! 1. CPUID before all else ([`VcpuIdentity`]): KVM checks what follows against it.
//! 2. MP_STATE, general, special registers (they hold the APIC's base and mode, which the APIC needs), FPU,
//!    XCR0, debug registers.
//! 3. Local APIC, *then* MSRs: KVM drops a TSC deadline unless the timer is in deadline mode. Of the MSRs the
//!    TSC is first and its deadline last, since the deadline is converted with the TSC's offset.
//! 4. Events last. Then clock and interrupt controllers of the VM ([`super::vm`]),
//!    then [`VcpuAccess::resume_clock`].
//!
//! A list of MSRs that is read or written only in part is an error: the state would be torn.

mod due;

use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, KVM_SYNC_X86_VALID_FIELDS, Msrs, kvm_cpuid_entry2, kvm_debugregs,
    kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::xsave::XsaveArea;
use super::{ArchError, cpuid, msr, named, reset};
use crate::state::{State, StateKind};

/// What of a vCPU never changes while it lives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuIdentity {
    cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of its TSC, in kHz.
    pub tsc_khz: u32,
}

impl State for VcpuIdentity {
    const KIND: StateKind = StateKind::VcpuIdentity;
    const VERSION: u16 = 1;
}

/// Frequencies of the TSC closer than one part in this are equal (KVM's `tsc_tolerance_ppm` of 250): each
/// host measures its own, a little different every time.
const TSC_TOLERANCE: u32 = 4000;

impl VcpuIdentity {
    /// Reads it from a vCPU that was set up.
    ///
    /// # Errors
    /// Names the ioctl that failed.
    pub fn save(vcpu: &VcpuFd) -> Result<Self, ArchError> {
        let cpuid = cpuid::shown(vcpu)?;
        let tsc_khz = vcpu.get_tsc_khz().map_err(named("KVM_GET_TSC_KHZ"))?;
        Ok(Self { cpuid, tsc_khz })
    }

    /// Gives a vCPU this identity, before its state is restored and before it first runs. `template` is what
    /// a vCPU that was not set up would get.
    ///
    /// # Errors
    /// If this host's processor lacks a feature, or its TSC has another frequency and KVM cannot scale it.
    pub fn restore(&self, vcpu: &VcpuFd, template: &CpuId) -> Result<(), ArchError> {
        // What KVM made of the template is compared, on both sides: a KVM need not show the guest all of it,
        // or only it.
        let shown = cpuid::shown(vcpu)?;
        let is_new = shown.is_empty();
        let ours = if is_new { template.as_slice() } else { &shown };
        let missing = cpuid::missing(ours, &self.cpuid);
        if !missing.is_empty() {
            return Err(ArchError::Unfit(format!(
                "its processor lacks features that the guest was started with ({}); use hosts with the same \
                 processor and kernel",
                missing.join(", ")
            )));
        }
        // A guest that was started with less keeps seeing less.
        if is_new || !cpuid::missing(&self.cpuid, ours).is_empty() {
            let cpuid = CpuId::from_entries(&self.cpuid)
                .map_err(|_| ArchError::Unfit(format!("{} CPUID entries", self.cpuid.len())))?;
            vcpu.set_cpuid2(&cpuid).map_err(named("KVM_SET_CPUID2"))?;
        }
        let here = vcpu.get_tsc_khz().map_err(named("KVM_GET_TSC_KHZ"))?;
        if here.abs_diff(self.tsc_khz) > here / TSC_TOLERANCE {
            vcpu.set_tsc_khz(self.tsc_khz).map_err(|error| {
                ArchError::Unfit(format!(
                    "the guest's TSC runs at {} kHz, this host's at {here} kHz, and its KVM cannot scale it \
                     ({error}); use hosts with the same TSC frequency",
                    self.tsc_khz
                ))
            })?;
        }
        Ok(())
    }

    /// What the guest sees of a leaf.
    #[cfg(test)]
    pub(super) fn leaf_mut(&mut self, function: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.cpuid.iter_mut().find(|leaf| leaf.function == function)
    }

    /// Ticks of the TSC in so many nanoseconds.
    pub(crate) fn tsc_ticks(&self, nanoseconds: u64) -> u64 {
        (u128::from(nanoseconds) * u128::from(self.tsc_khz) / 1_000_000) as u64
    }
}

/// The registers of one vCPU: plain data, the same on every host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: u32,
    regs: kvm_regs,
    sregs: kvm_sregs,
    events: kvm_vcpu_events,
    lapic: kvm_lapic_state,
    /// db0 to db3, dr6, dr7.
    debug: [u64; 6],
    xcr0: u64,
    /// The XSAVE area in standard format, without the zeros at its end.
    xsave: Vec<u32>,
    /// (index, value), the TSC first and its deadline last.
    msrs: Vec<(u32, u64)>,
}

impl State for VcpuState {
    const KIND: StateKind = StateKind::Vcpu;
    const VERSION: u16 = 1;
}

impl VcpuState {
    /// The general registers.
    pub fn regs(&self) -> &kvm_regs {
        &self.regs
    }

    /// The same, for who damages them on purpose.
    pub fn regs_mut(&mut self) -> &mut kvm_regs {
        &mut self.regs
    }

    /// The TSC at the save: (its index, its value).
    #[cfg(test)]
    pub(super) fn tsc(&self) -> (u32, u64) {
        self.msrs[0]
    }
}

/// Registers that a guest changes without anybody's learning of it, but next to never:
/// XCR0 and the debug registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RareRegisters {
    /// Read them at every save.
    Read,
    /// [`VcpuAccess::save_after_exit`] takes those of the last full save: for a guest that is known not to
    /// change them, as a bare guest.
    Keep,
}

/// How the state of one vCPU is read and written on this host: the registers there are,
/// and buffers used again.
pub(crate) struct VcpuAccess {
    msrs: Msrs,
    xsave: XsaveArea,
    has_sync_regs: bool,
    rare: RareRegisters,
    state: VcpuState,
}

impl VcpuAccess {
    /// Finds out what there is to save. The vCPU must have been set up and must not have run.
    ///
    /// # Errors
    /// Names the ioctl that failed.
    pub(crate) fn new(
        kvm: &Kvm,
        vm: &VmFd,
        vcpu: &mut VcpuFd,
        rare: RareRegisters,
    ) -> Result<Self, ArchError> {
        let msrs = msr::saved(kvm, vcpu)?;
        let xsave = XsaveArea::new(vm)?;
        let has_sync_regs = has_sync_regs(kvm);
        if has_sync_regs {
            for registers in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
                vcpu.set_sync_valid_reg(registers);
            }
        }
        let mut access = Self {
            msrs,
            xsave,
            has_sync_regs,
            rare,
            state: VcpuState::default(),
        };
        access.save(vcpu)?;
        Ok(access)
    }

    /// Reads the whole state. The vCPU must stand still, and an exit for I/O must have been completed by
    /// entering once more with `immediate_exit` set.
    ///
    /// # Errors
    /// Names the ioctl that failed.
    pub(crate) fn save(&mut self, vcpu: &VcpuFd) -> Result<&VcpuState, ArchError> {
        self.state.mp_state = vcpu.get_mp_state().map_err(named("KVM_GET_MP_STATE"))?.mp_state;
        self.state.regs = vcpu.get_regs().map_err(named("KVM_GET_REGS"))?;
        self.state.sregs = vcpu.get_sregs().map_err(named("KVM_GET_SREGS"))?;
        self.save_rare(vcpu)?;
        self.save_in_common(vcpu)?;
        self.state.events = vcpu.get_vcpu_events().map_err(named("KVM_GET_VCPU_EVENTS"))?;
        Ok(&self.state)
    }

    /// Reads the state right after `KVM_RUN` has returned on this vCPU's thread, from an instruction that
    /// exited (so the vCPU is not halted), completed as for [`VcpuAccess::save`]. Nothing may have been
    /// written to the vCPU since. Most registers then lie in the run page and cost nothing. `only_vcpu`: no
    /// other vCPU has run since either, which could have sent it an NMI or an INIT; otherwise that is looked
    /// for.
    ///
    /// # Errors
    /// Names the ioctl that failed.
    pub(crate) fn save_after_exit(
        &mut self,
        vcpu: &VcpuFd,
        only_vcpu: bool,
    ) -> Result<&VcpuState, ArchError> {
        if !self.has_sync_regs {
            return self.save(vcpu);
        }
        // Reading the run state carries a pending INIT out.
        let was_stopped = !only_vcpu
            && vcpu.get_mp_state().map_err(named("KVM_GET_MP_STATE"))?.mp_state != KVM_MP_STATE_RUNNABLE;
        if was_stopped {
            return self.save(vcpu);
        }
        let synced = vcpu.sync_regs();
        self.state.mp_state = KVM_MP_STATE_RUNNABLE;
        self.state.regs = synced.regs;
        self.state.sregs = synced.sregs;
        self.state.events = synced.events;
        if self.rare == RareRegisters::Read {
            self.save_rare(vcpu)?;
        }
        self.save_in_common(vcpu)?;
        if !only_vcpu {
            self.state.events = vcpu.get_vcpu_events().map_err(named("KVM_GET_VCPU_EVENTS"))?;
        }
        Ok(&self.state)
    }

    fn save_rare(&mut self, vcpu: &VcpuFd) -> Result<(), ArchError> {
        // XCR0 is the only one that KVM has.
        self.state.xcr0 = vcpu.get_xcrs().map_err(named("KVM_GET_XCRS"))?.xcrs[0].value;
        let debug = vcpu.get_debug_regs().map_err(named("KVM_GET_DEBUGREGS"))?;
        self.state.debug = [
            debug.db[0],
            debug.db[1],
            debug.db[2],
            debug.db[3],
            debug.dr6,
            debug.dr7,
        ];
        Ok(())
    }

    fn save_in_common(&mut self, vcpu: &VcpuFd) -> Result<(), ArchError> {
        self.xsave.read(vcpu, &mut self.state.xsave)?;
        msr::read(vcpu, &mut self.msrs)?;
        self.state.msrs.clear();
        self.state
            .msrs
            .extend(self.msrs.as_slice().iter().map(|entry| (entry.index, entry.data)));
        self.state.lapic = vcpu.get_lapic().map_err(named("KVM_GET_LAPIC"))?;
        Ok(())
    }

    /// Writes a state into a vCPU that stands still and has its identity. `tsc_advance` is added to the TSC,
    /// in ticks: [`VcpuIdentity::tsc_ticks`] of what the VM's clock is advanced by. (A KVM that cannot offset
    /// the TSC, as `kvm_pvm`, shows its guests the host's in any case.)
    ///
    /// # Errors
    /// Names the ioctl that failed; the vCPU is then not to be run.
    pub(crate) fn restore(
        &mut self,
        vcpu: &VcpuFd,
        state: &VcpuState,
        tsc_advance: u64,
    ) -> Result<(), ArchError> {
        self.write(vcpu, state, advanced(&state.msrs, tsc_advance))
    }

    /// Tries whether [`VcpuAccess::restore`] would succeed, on a vCPU that has not run and will be restored
    /// before it does. Guest memory stays as it is.
    ///
    /// # Errors
    /// As those of the restore.
    pub(crate) fn try_on(&mut self, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), ArchError> {
        let msrs = state.msrs.iter().copied();
        self.write(
            vcpu,
            state,
            msrs.filter(|(index, _)| !msr::NOT_TRIED.contains(index)),
        )
    }

    fn write(
        &mut self,
        vcpu: &VcpuFd,
        state: &VcpuState,
        msrs: impl Iterator<Item = (u32, u64)>,
    ) -> Result<(), ArchError> {
        let mp_state = kvm_mp_state {
            mp_state: state.mp_state,
        };
        vcpu.set_mp_state(mp_state).map_err(named("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&state.regs).map_err(named("KVM_SET_REGS"))?;
        vcpu.set_sregs(&state.sregs).map_err(named("KVM_SET_SREGS"))?;
        self.xsave.write(vcpu, &state.xsave)?;
        reset::set_xcr0(vcpu, state.xcr0)?;
        let [db0, db1, db2, db3, dr6, dr7] = state.debug;
        let debug = kvm_debugregs {
            db: [db0, db1, db2, db3],
            dr6,
            dr7,
            ..Default::default()
        };
        vcpu.set_debug_regs(&debug).map_err(named("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&state.lapic).map_err(named("KVM_SET_LAPIC"))?;
        // A register that is not used there need not exist here.
        let exists = |index| self.msrs.as_slice().iter().any(|entry| entry.index == index);
        msr::write(vcpu, msrs.filter(|&(index, value)| value != 0 || exists(index)))?;
        vcpu.set_vcpu_events(&state.events)
            .map_err(named("KVM_SET_VCPU_EVENTS"))?;
        // What a later `save_after_exit` keeps must be this guest's.
        (self.state.xcr0, self.state.debug) = (state.xcr0, state.debug);
        Ok(())
    }

    /// Tells a guest with kvm-clock that it stood still, so that it does not take the gap for a lock-up. For
    /// each vCPU, when all is restored and before it runs.
    ///
    /// # Errors
    /// Names the ioctl that failed.
    pub(crate) fn resume_clock(&self, vcpu: &VcpuFd) -> Result<(), ArchError> {
        match vcpu.kvmclock_ctrl() {
            // The guest does not use kvm-clock.
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            result => result.map_err(named("KVM_KVMCLOCK_CTRL")),
        }
    }
}

/// Model-specific registers, with a TSC that has gone on by so many ticks.
fn advanced(msrs: &[(u32, u64)], tsc_advance: u64) -> impl Iterator<Item = (u32, u64)> + '_ {
    msrs.iter().map(move |&(index, data)| match index {
        msr::TSC => (index, data.wrapping_add(tsc_advance)),
        _ => (index, data),
    })
}

/// Whether KVM puts registers, special registers and events into the run page at every exit.
fn has_sync_regs(kvm: &Kvm) -> bool {
    let all = KVM_SYNC_X86_VALID_FIELDS as i32;
    kvm.check_extension_int(Cap::SyncRegs) & all == all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not every KVM lets its guests have a TSC of their own, so this cannot be seen from outside on each.
    #[test]
    fn the_tsc_goes_on_by_what_has_passed_and_nothing_else_does() {
        let msrs = [(msr::TSC, u64::MAX), (msr::STAR, 5), (msr::TSC_DEADLINE, 9)];
        let found: Vec<_> = advanced(&msrs, 3).collect();
        assert_eq!(found, [(msr::TSC, 2), (msr::STAR, 5), (msr::TSC_DEADLINE, 9)]);
    }
}
