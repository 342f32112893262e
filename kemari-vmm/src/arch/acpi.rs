//! The ACPI tables by which a guest finds its processors, its virtio-mmio devices and its console, and by
//! which it resets and powers off.
//!
//! A machine without firmware is "hardware-reduced" (ACPI 6.5, section 4.1): no fixed registers, no 8259
//! timer or RTC to probe for. A guest that looks for an RTC that is not there wastes seconds, so its absence
//! is stated. Firmware sets up 8259s and timer as a PC's does, and lets the timer tick: a guest that it boots
//! is told of them, or their interrupts would come to a guest that knows of none ([`handed`]).

pub(crate) mod handed;

use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use super::layout::{self, MmioDevice, abi};

const OEM_ID: [u8; 6] = *b"KEMARI";
const OEM_TABLE_ID: [u8; 8] = *b"KEMARIVM";
const OEM_REVISION: u32 = 1;

/// IA-PC boot architecture flags (ACPI 6.5, table 5.11): no VGA, no message-signalled interrupts, no RTC in
/// CMOS. The flags for other legacy devices and for the keyboard controller stay clear: there are none.
const BOOT_ARCH_VGA_NOT_PRESENT: u16 = 1 << 2;
const BOOT_ARCH_MSI_NOT_SUPPORTED: u16 = 1 << 3;
const BOOT_ARCH_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Flag of the MADT: there are two 8259s.
const MADT_FLAGS: usize = 40;
const MADT_PCAT_COMPAT: u8 = 1;

/// The tables, to be written to [`layout::ACPI_TABLES`]. The RSDP is at their beginning.
pub(crate) struct Tables {
    /// All tables, one behind the other, with the gaps that alignment needs.
    pub bytes: Vec<u8>,
}

/// Builds the tables for these devices (in slot order) and this number of processors.
pub(crate) fn build(devices: &[MmioDevice], vcpu_count: u8) -> Tables {
    let mut bytes = vec![0; Rsdp::len()];
    let xsdt = lay_out(&mut bytes, layout::ACPI_TABLES, devices, vcpu_count, false).xsdt;
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    Tables { bytes }
}

/// Addresses of tables that name others, and how many the XSDT names.
struct LaidOut {
    fadt: u64,
    madt: u64,
    xsdt: u64,
    entries: usize,
}

/// Appends all tables but the RSDP to `bytes`, whose beginning is at `base`. `for_firmware`: those of a
/// machine that is not hardware-reduced.
fn lay_out(
    bytes: &mut Vec<u8>,
    base: u64,
    devices: &[MmioDevice],
    vcpu_count: u8,
    for_firmware: bool,
) -> LaidOut {
    let facs = for_firmware.then(|| append(bytes, base, &FACS::new()));
    let dsdt = append(bytes, base, &dsdt(devices));
    let fadt = append(bytes, base, &fadt(dsdt, facs));
    let madt = append(bytes, base, &madt(vcpu_count));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let entries = [fadt, madt];
    entries.iter().for_each(|&entry| xsdt.add_entry(entry));
    if for_firmware {
        bytes[(madt - base) as usize + MADT_FLAGS] |= MADT_PCAT_COMPAT;
    }
    LaidOut {
        fadt,
        madt,
        xsdt: append(bytes, base, &xsdt),
        entries: entries.len(),
    }
}

/// Appends a table at the next address that is a multiple of 16; returns that address.
fn append(bytes: &mut Vec<u8>, base: u64, table: &dyn Aml) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let address = base + bytes.len() as u64;
    table.to_aml_bytes(bytes);
    address
}

fn port(address: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address.into(),
    )
}

/// `facs`: where firmware's machine has one; it has fixed registers as well.
fn fadt(dsdt: u64, facs: Option<u64>) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::ResetRegSup)
        // Neither button is a fixed register; without these flags a guest would look for them.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Wbinvd);
    fadt.reset_reg = port(abi::RESET_PORT);
    fadt.reset_value = abi::RESET_VALUE;
    fadt.iapc_boot_arch =
        (BOOT_ARCH_VGA_NOT_PRESENT | BOOT_ARCH_MSI_NOT_SUPPORTED | BOOT_ARCH_RTC_NOT_PRESENT).into();
    let Some(facs) = facs else {
        fadt.sleep_control_reg = port(abi::SLEEP_CONTROL_PORT);
        fadt.sleep_status_reg = port(abi::SLEEP_STATUS_PORT);
        return fadt.flag(Flags::HwReducedAcpi).finalize();
    };
    // Firmware reads the 32-bit pointer to the DSDT only.
    fadt.dsdt = (dsdt as u32).into();
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.sci_int = layout::SCI_GSI.into();
    fadt.pm1a_evt_blk = u32::from(layout::PM_PORT).into();
    fadt.pm1_evt_len = layout::PM_CONTROL as u8;
    fadt.pm1a_cnt_blk = u32::from(layout::PM_PORT + layout::PM_CONTROL).into();
    fadt.pm1_cnt_len = (layout::PM_PORTS - layout::PM_CONTROL) as u8;
    fadt.finalize()
}

fn madt(vcpu_count: u8) -> MADT {
    let lapic = LocalInterruptController::Address(abi::LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for index in 0..vcpu_count {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, abi::IO_APIC as u32, 0));
    madt
}

fn dsdt(devices: &[MmioDevice]) -> Sdt {
    let mut code = Vec::new();
    s5().to_aml_bytes(&mut code);
    append_console(&mut code);
    for (slot, device) in devices.iter().enumerate() {
        append_virtio(&mut code, slot, device);
    }
    // 36 bytes of header; revision 2 means 64-bit integers.
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// `\_S5`: the sleep types of "soft off" for the sleep control register.
fn s5() -> aml::Name {
    let types = aml::Package::new(vec![
        &layout::SLEEP_TYPE_S5,
        &layout::SLEEP_TYPE_S5,
        &aml::ZERO,
        &aml::ZERO,
    ]);
    aml::Name::new("_S5_".into(), &types)
}

/// An edge-triggered, active-high, exclusive line of a device that consumes it.
fn line(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

fn append_console(code: &mut Vec<u8>) {
    let ports = aml::IO::new(layout::COM1_PORT, layout::COM1_PORT, 0, layout::COM1_PORTS as u8);
    let line = line(layout::COM1_GSI);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_DDN".into(), &"COM1"),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&ports, &line])),
        ],
    )
    .to_aml_bytes(code);
}

fn append_virtio(code: &mut Vec<u8>, slot: usize, device: &MmioDevice) {
    let registers = aml::Memory32Fixed::new(true, device.base as u32, layout::VIRTIO_MMIO_BYTES as u32);
    let line = line(device.gsi);
    aml::Device::new(
        format!("_SB_.VR{slot:02}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &slot),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&registers, &line]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod tests;
