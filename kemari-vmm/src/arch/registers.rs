//! General and special registers at the first instruction, for each way of entry.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::entry::{Entry, GDT_LIMIT, TSS_LIMIT, task};
use super::layout::abi;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_NW_CD: u64 = 3 << 29;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 0x500;
/// The processor state that abi.rs promises to a bare guest.
const BARE_CR0: u64 = 0x8005_0033;
/// PAE, PGE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
const BARE_CR4: u64 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
const BARE_EFER: u64 = 0x501;
const XCR0_X87: u64 = 1;
const XCR0_X87_SSE_AVX: u64 = 7;
const RFLAGS_RESERVED: u64 = 2;
/// Ports are open to ring 3 by the TSS's bitmap, which is what `kvm_pvm` looks at, and by the privilege
/// level, which is what QEMU's emulated AMD-V looks at (it does not accept a busy TSS, and KVM knows no
/// other).
const RFLAGS_IO_PRIVILEGE_RING_3: u64 = 3 << 12;
const RFLAGS_INTERRUPTS: u64 = 1 << 9;
const APIC_BASE_ENABLED: u64 = 1 << 11;
const APIC_BASE_BOOT_PROCESSOR: u64 = 1 << 8;

/// Segment types (Intel SDM, volume 3, section 3.4.5.1), with the accessed or busy bit set.
const CODE: u8 = 0xb;
const DATA: u8 = 0x3;
const LDT: u8 = 0x2;
const TSS_BUSY: u8 = 0xb;

/// Selectors of the table that the loader writes.
const KERNEL_CODE: u16 = 0x10;
const KERNEL_DATA: u16 = 0x18;
const USER_DATA: u16 = 0x2b;
const USER_CODE: u16 = 0x33;
const TASK: u16 = 0x40;

/// The general registers of a vCPU; without an entry those of a processor after reset.
pub(crate) fn general(index: u8, entry: Option<&Entry>) -> kvm_regs {
    let regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match entry {
        None | Some(Entry::ResetVector) => kvm_regs { rip: 0xfff0, ..regs },
        Some(&Entry::Linux64 { rip, boot_params }) => kvm_regs {
            rip,
            rsi: boot_params,
            ..regs
        },
        Some(&Entry::Pvh { rip, start_info }) => kvm_regs {
            rip,
            rbx: start_info,
            ..regs
        },
        Some(&Entry::Bare { rip }) => kvm_regs {
            rip,
            rdi: abi::BOOT_INFO,
            rsi: index.into(),
            rflags: RFLAGS_RESERVED | RFLAGS_INTERRUPTS | RFLAGS_IO_PRIVILEGE_RING_3,
            ..regs
        },
    }
}

/// The special registers; without an entry those of a processor after reset.
pub(crate) fn special(index: u8, entry: Option<&Entry>) -> kvm_sregs {
    let boot = if index == 0 { APIC_BASE_BOOT_PROCESSOR } else { 0 };
    let sregs = kvm_sregs {
        apic_base: abi::LOCAL_APIC | APIC_BASE_ENABLED | boot,
        ..Default::default()
    };
    match entry {
        None | Some(Entry::ResetVector) => after_reset(sregs),
        Some(Entry::Linux64 { .. }) => long_mode(
            abi::TSS,
            kvm_sregs {
                cs: flat_code(KERNEL_CODE, 0),
                cr0: CR0_PE | CR0_ET | CR0_NE | CR0_PG,
                cr4: CR4_PAE,
                efer: EFER_LME_LMA,
                ..flat_data_everywhere(sregs, KERNEL_DATA, 0)
            },
        ),
        Some(Entry::Pvh { .. }) => kvm_sregs {
            cs: kvm_segment {
                db: 1,
                l: 0,
                ..flat_code(KERNEL_CODE, 0)
            },
            tr: system_segment(0, TSS_BUSY, 0, 0x67),
            ldt: kvm_segment {
                unusable: 1,
                ..system_segment(0, LDT, 0, 0)
            },
            cr0: CR0_PE | CR0_ET,
            ..flat_data_everywhere(sregs, KERNEL_DATA, 0)
        },
        Some(Entry::Bare { .. }) => long_mode(
            task(index.into()).0,
            kvm_sregs {
                cs: flat_code(USER_CODE, 3),
                cr0: BARE_CR0,
                cr4: BARE_CR4,
                efer: BARE_EFER,
                ..flat_data_everywhere(sregs, USER_DATA, 3)
            },
        ),
    }
}

/// Page tables, descriptor tables and task state as the loader wrote them.
fn long_mode(task_state: u64, sregs: kvm_sregs) -> kvm_sregs {
    kvm_sregs {
        cr3: abi::PAGE_TABLES,
        gdt: kvm_dtable {
            base: abi::GDT,
            limit: GDT_LIMIT,
            ..Default::default()
        },
        idt: kvm_dtable {
            base: abi::IDT,
            limit: 0xfff,
            ..Default::default()
        },
        tr: system_segment(TASK, TSS_BUSY, task_state, TSS_LIMIT),
        ldt: kvm_segment {
            unusable: 1,
            ..system_segment(0, LDT, 0, 0)
        },
        ..sregs
    }
}

fn flat_data_everywhere(sregs: kvm_sregs, selector: u16, dpl: u8) -> kvm_sregs {
    let data = kvm_segment {
        limit: u32::MAX,
        selector,
        type_: DATA,
        present: 1,
        dpl,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    kvm_sregs {
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        ..sregs
    }
}

/// 64-bit code.
fn flat_code(selector: u16, dpl: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_: CODE,
        present: 1,
        dpl,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    }
}

fn system_segment(selector: u16, type_: u8, base: u64, limit: u32) -> kvm_segment {
    kvm_segment {
        base,
        limit,
        selector,
        type_,
        present: 1,
        ..Default::default()
    }
}

/// Real mode at the reset vector (Intel SDM, volume 3, table 10-1).
fn after_reset(sregs: kvm_sregs) -> kvm_sregs {
    let segment = kvm_segment {
        limit: 0xffff,
        type_: DATA,
        present: 1,
        s: 1,
        ..Default::default()
    };
    let table = kvm_dtable {
        limit: 0xffff,
        ..Default::default()
    };
    kvm_sregs {
        cs: kvm_segment {
            base: 0xffff_0000,
            selector: 0xf000,
            type_: CODE,
            ..segment
        },
        ds: segment,
        es: segment,
        fs: segment,
        gs: segment,
        ss: segment,
        tr: system_segment(0, TSS_BUSY, 0, 0xffff),
        ldt: system_segment(0, LDT, 0, 0xffff),
        gdt: table,
        idt: table,
        cr0: CR0_ET | CR0_NW_CD,
        ..sregs
    }
}

/// XCR0 of every vCPU: x87 only, as after a reset. A bare guest is promised SSE and AVX. For Linux, and
/// firmware that boots it, it is at once what
/// Linux will set on each processor, all that is supported (`supported`, by CPUID): QEMU's emulated AMD-V
/// does not intercept XSETBV, and a KVM on it would go on believing in the old value and load that.
pub(crate) fn xcr0(entry: Option<&Entry>, supported: u64) -> u64 {
    match entry {
        None => XCR0_X87,
        Some(Entry::Linux64 { .. } | Entry::Pvh { .. } | Entry::ResetVector) => XCR0_X87 | supported,
        Some(Entry::Bare { .. }) => XCR0_X87_SSE_AVX,
    }
}
