//! Power-on: interrupt controllers and vCPUs as a guest finds them at its first instruction,
//! after a reset too.

use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, KVM_PIT_SPEAKER_DUMMY,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    kvm_debugregs, kvm_enable_cap, kvm_fpu, kvm_mp_state, kvm_pit_config, kvm_pit_state2, kvm_vcpu_events,
    kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::entry::Entry;
use super::layout::{self, abi};
use super::{ArchError, cpuid, msr, named, registers, vm};
use crate::signals::SignalsBlocked;

/// Creates a VM. KVM starts a thread for it, and gives up with EINTR if a signal comes meanwhile:
/// signals wait.
///
/// # Errors
/// Names the ioctl that failed.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, ArchError> {
    let _blocked = SignalsBlocked::new();
    kvm.create_vm().map_err(named("KVM_CREATE_VM"))
}

/// Creates interrupt controllers and interval timer in a new VM, before its vCPUs, in their power-on state.
///
/// # Errors
/// Names the ioctl that failed.
pub fn create_irqchip(vm: &VmFd) -> Result<(), ArchError> {
    // Processors of Intel without "unrestricted guest" need these pages; others ignore them.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(named("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(named("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(named("KVM_CREATE_IRQCHIP"))?;
    // The speaker's port is part of the timer, and Linux reads it when it calibrates.
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(named("KVM_CREATE_PIT2"))?;
    reset_vm(vm)
}

/// Offsets in `kvm_pic_state`.
const PIC_INTERRUPT_MASK: usize = 2;
const PIC_ELCR_MASK: usize = 15;
/// Which lines of each 8259 can be level-triggered.
const PIC_ELCR_MASKS: [(u32, u8); 2] = [(KVM_IRQCHIP_PIC_MASTER, 0xf8), (KVM_IRQCHIP_PIC_SLAVE, 0xde)];
const IO_APIC_PIN_MASKED: u64 = 1 << 16;
/// No mode was programmed: the channel does not count.
const PIT_MODE_NONE: u8 = 0xff;
const PIT_COUNT: u32 = 0x1_0000;

/// Puts interrupt controllers and interval timer into their power-on state,
/// when the guest resets the machine.
///
/// # Errors
/// Names the ioctl that failed.
pub(crate) fn reset_vm(vm: &VmFd) -> Result<(), ArchError> {
    // All lines of the 8259s are masked, as firmware leaves them: a guest of a hardware-reduced machine never
    // touches them, and an unmasked one would deliver a device's interrupt with a vector that nobody chose.
    let mut pic = [0; vm::PIC_BYTES];
    pic[PIC_INTERRUPT_MASK] = 0xff;
    for (chip, elcr_mask) in PIC_ELCR_MASKS {
        pic[PIC_ELCR_MASK] = elcr_mask;
        vm::set_chip(vm, chip, &pic)?;
    }
    let mut io_apic = abi::IO_APIC.to_le_bytes().to_vec();
    // Register select, id, pending lines, padding.
    io_apic.extend([0; 16]);
    for _ in 0..layout::IO_APIC_PINS {
        io_apic.extend(IO_APIC_PIN_MASKED.to_le_bytes());
    }
    vm::set_chip(vm, KVM_IRQCHIP_IOAPIC, &io_apic)?;

    let mut pit = kvm_pit_state2::default();
    for (index, channel) in pit.channels.iter_mut().enumerate() {
        channel.mode = PIT_MODE_NONE;
        channel.gate = u8::from(index != 2);
        channel.count = PIT_COUNT;
    }
    vm.set_pit2(&pit).map_err(named("KVM_SET_PIT2"))
}

/// Puts a vCPU into its power-on state: after its creation, and when the guest resets the machine. With an
/// entry its TSC begins at 0, if KVM lets it have one of its own; for that they must be set up in their
/// order, vCPU 0 first.
///
/// `template` is [`cpuid::template`]'s; the vCPU's own numbers are added here. vCPU 0 is made ready to enter
/// what was loaded (`entry`; without one it is left at its reset vector, to be restored into);
/// the others wait to be started by it (INIT, SIPI), or, with a bare guest, enter it as well.
///
/// # Errors
/// Names the ioctl that failed.
pub(crate) fn setup_vcpu(
    vcpu: &VcpuFd,
    template: &CpuId,
    index: u8,
    entry: Option<&Entry>,
) -> Result<(), ArchError> {
    // CPUID first: KVM checks all that follows against it. Only once: it must not change when the vCPU has
    // run, and what KVM made of it may differ from what it was given.
    if cpuid::shown(vcpu)?.is_empty() {
        enforce_features(vcpu);
        vcpu.set_cpuid2(&cpuid::for_vcpu(template, index))
            .map_err(named("KVM_SET_CPUID2"))?;
    }
    let enters = index == 0 || matches!(entry, Some(Entry::Bare { .. }));
    let mp_state = if enters {
        KVM_MP_STATE_RUNNABLE
    } else {
        KVM_MP_STATE_UNINITIALIZED
    };
    vcpu.set_mp_state(kvm_mp_state { mp_state })
        .map_err(named("KVM_SET_MP_STATE"))?;

    let xcr0 = registers::xcr0(entry, cpuid::supported_xcr0(template));
    if entry.is_some() {
        msr::write(vcpu, tsc_begins(index).iter().map(|&ticks| (msr::TSC, ticks)))?;
    }
    let entry = entry.filter(|_| enters);
    vcpu.set_regs(&registers::general(index, entry))
        .map_err(named("KVM_SET_REGS"))?;
    vcpu.set_sregs(&registers::special(index, entry))
        .map_err(named("KVM_SET_SREGS"))?;
    let fpu = kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: MXCSR,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(named("KVM_SET_FPU"))?;
    set_xcr0(vcpu, xcr0)?;
    let debug = kvm_debugregs {
        dr6: DR6,
        dr7: DR7,
        ..Default::default()
    };
    vcpu.set_debug_regs(&debug).map_err(named("KVM_SET_DEBUGREGS"))?;
    reset_local_apic(vcpu, index)?;
    msr::write_existing(vcpu, &POWER_ON_MSRS)?;
    let flags =
        KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW;
    let events = kvm_vcpu_events {
        flags,
        ..Default::default()
    };
    vcpu.set_vcpu_events(&events)
        .map_err(named("KVM_SET_VCPU_EVENTS"))
}

/// What is written to the TSC of a vCPU at its power-on, one value after the other, so that all of them begin
/// anew and agree.
///
/// Firmware may depend on it: SeaBIOS of the "microvm" kind compares bits of the TSC, as a signed number of
/// 32 bits, with a time that is 0 at first. For half of the time of a TSC that went on over the guest's
/// reboot, minutes on end, it would neither count time nor see a key.
///
/// KVM takes a value within a second of what it expects for an attempt to make several vCPUs agree, and keeps
/// its own; likewise a zero, whatever it expects. So the first one is moved far away before it begins, and
/// the others follow it, however late they come.
const fn tsc_begins(index: u8) -> &'static [u64] {
    match index {
        0 => &[TSC_FAR, 1],
        _ => &[0],
    }
}

/// No TSC comes there, nor is it ever expected there.
const TSC_FAR: u64 = 1 << 62;

/// What FNINIT and the reset of SSE leave: all exceptions masked.
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;
/// Debug registers after a reset (Intel SDM, volume 3, table 10-1).
const DR6: u64 = 0xffff_0ff0;
const DR7: u64 = 0x400;

/// Sets XCR0, the only extended control register there is.
pub(super) fn set_xcr0(vcpu: &VcpuFd, value: u64) -> Result<(), ArchError> {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = value;
    vcpu.set_xcrs(&xcrs).map_err(named("KVM_SET_XCRS"))
}

/// Offsets of the local APIC's registers (Intel SDM, volume 3, table 11-1).
const APIC_ID: usize = 0x20;
const APIC_VERSION: usize = 0x30;
const APIC_DESTINATION_FORMAT: usize = 0xe0;
const APIC_SPURIOUS: usize = 0xf0;
const APIC_LVT_CMCI: usize = 0x2f0;
/// Timer, thermal sensor, performance counters, error.
const APIC_LVTS: [usize; 4] = [0x320, 0x330, 0x340, 0x370];
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const LVT_MASKED: u32 = 1 << 16;
/// LINT0 passes on the 8259's interrupts and LINT1 the NMI, as firmware programs the boot processor of a PC.
const LVT_EXTINT: u32 = 0x700;
const LVT_NMI: u32 = 0x400;

/// Of KVM's own features the guest gets those that it is shown, and no other: steal time and asynchronous
/// page faults write its memory outside of its execution, also after a capture.
fn enforce_features(vcpu: &VcpuFd) {
    let mut request = kvm_enable_cap {
        cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
        ..Default::default()
    };
    request.args[0] = 1;
    if let Err(error) = vcpu.enable_cap(&request) {
        // Linux has it since 5.10; a guest that keeps to what it is shown does not notice.
        tracing::debug!("KVM does not enforce what it shows of its features: {error}");
    }
}

fn reset_local_apic(vcpu: &VcpuFd, index: u8) -> Result<(), ArchError> {
    let mut lapic = vcpu.get_lapic().map_err(named("KVM_GET_LAPIC"))?;
    let version = lapic.regs[APIC_VERSION..APIC_VERSION + 4].to_vec();
    lapic.regs.fill(0);
    lapic.regs[APIC_VERSION..APIC_VERSION + 4].copy_from_slice(&version);
    let mut set = |offset: usize, value: u32| {
        for (target, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
            *target = byte as _;
        }
    };
    set(APIC_ID, u32::from(index) << 24);
    set(APIC_DESTINATION_FORMAT, u32::MAX);
    set(APIC_SPURIOUS, 0xff);
    set(APIC_LVT_CMCI, LVT_MASKED);
    for offset in APIC_LVTS {
        set(offset, LVT_MASKED);
    }
    let boot = index == 0;
    set(APIC_LVT_LINT0, if boot { LVT_EXTINT } else { LVT_MASKED });
    set(APIC_LVT_LINT1, if boot { LVT_NMI } else { LVT_MASKED });
    vcpu.set_lapic(&lapic).map_err(named("KVM_SET_LAPIC"))
}

/// Model-specific registers and their values after power-on. The addresses that a former guest gave to KVM
/// (kvm-clock, EOI, ...) are among them: KVM would go on to write there.
const POWER_ON_MSRS: [(u32, u64); 22] = [
    (msr::TSC_ADJUST, 0),
    (msr::KVM_WALL_CLOCK_OLD, 0),
    (msr::KVM_SYSTEM_TIME_OLD, 0),
    (msr::KVM_WALL_CLOCK, 0),
    (msr::KVM_SYSTEM_TIME, 0),
    (msr::KVM_ASYNC_PF, 0),
    (msr::KVM_STEAL_TIME, 0),
    (msr::KVM_PV_EOI, 0),
    (msr::SYSENTER_CS, 0),
    (msr::SYSENTER_ESP, 0),
    (msr::SYSENTER_EIP, 0),
    (msr::STAR, 0),
    (msr::LSTAR, 0),
    (msr::CSTAR, 0),
    (msr::SYSCALL_MASK, 0),
    (msr::KERNEL_GS_BASE, 0),
    (msr::TSC_AUX, 0),
    (msr::SPEC_CTRL, 0),
    (msr::TSC_DEADLINE, 0),
    (msr::MISC_ENABLE, msr::MISC_ENABLE_FAST_STRING),
    (msr::PAT, 0x0007_0406_0007_0406),
    // Without firmware somebody must say that memory is write-back, or Linux distrusts its page attributes.
    (msr::MTRR_DEFAULT_TYPE, msr::MTRR_ENABLED | msr::MTRR_WRITE_BACK),
];

#[cfg(test)]
#[path = "reset_test.rs"]
mod tests;
