//! The tables as firmware takes them: it puts them where it likes, then writes the addresses into them and
//! mends their checksums, by a list of commands ("table loader" of QEMU, hw/acpi/bios-linker-loader.c).

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;

use super::{OEM_ID, lay_out};
use crate::arch::layout::MmioDevice;

/// The file of all tables but the RSDP.
pub(crate) const TABLES: &str = "etc/acpi/tables";
/// The file of the RSDP.
pub(crate) const RSDP: &str = "etc/acpi/rsdp";
/// The file of the commands.
pub(crate) const LOADER: &str = "etc/table-loader";

/// Bytes of one command, however few it needs.
const COMMAND_BYTES: usize = 128;
/// Bytes of a file's name in a command, with its zeros.
const NAME_BYTES: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// The FACS asks for it, which is the first.
const ALIGNMENT: u32 = 64;
/// Anywhere, and where a guest looks for the RSDP: in the last 64 KiB below 1 MiB.
const ZONE_HIGH: u8 = 1;
const ZONE_RSDP: u8 = 2;

/// Offsets in any table's header, and in the FADT, the XSDT and the RSDP.
const CHECKSUM: usize = 9;
const FADT_FACS: usize = 36;
const FADT_DSDT: usize = 40;
const FADT_DSDT_64: usize = 140;
const XSDT_ENTRIES: usize = 36;
const RSDP_XSDT: usize = 24;
const RSDP_CHECKSUM: usize = 8;
const RSDP_CHECKSUM_EXTENDED: usize = 32;
/// What the first checksum of the RSDP is over.
const RSDP_FIRST_BYTES: usize = 20;

/// What firmware is handed.
pub(crate) struct Handed {
    /// All tables but the RSDP; pointers are offsets into them until they are placed.
    pub tables: Vec<u8>,
    /// The RSDP.
    pub(crate) rsdp: Vec<u8>,
    /// The commands.
    pub loader: Vec<u8>,
}

/// The tables for these devices (in slot order) and this number of processors.
pub(crate) fn build(devices: &[MmioDevice], vcpu_count: u8) -> Handed {
    let mut tables = Vec::new();
    let at = lay_out(&mut tables, 0, devices, vcpu_count, true);
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM_ID, at.xsdt).to_aml_bytes(&mut rsdp);

    let mut commands = Commands(Vec::new());
    commands.allocate(TABLES, ZONE_HIGH);
    commands.allocate(RSDP, ZONE_RSDP);
    let (fadt, xsdt) = (at.fadt as usize, at.xsdt as usize);
    commands.add_pointer(TABLES, fadt + FADT_FACS, 4);
    commands.add_pointer(TABLES, fadt + FADT_DSDT, 4);
    commands.add_pointer(TABLES, fadt + FADT_DSDT_64, 8);
    commands.add_table_checksum(&tables, fadt);
    commands.add_table_checksum(&tables, at.madt as usize);
    for entry in 0..at.entries {
        commands.add_pointer(TABLES, xsdt + XSDT_ENTRIES + 8 * entry, 8);
    }
    commands.add_table_checksum(&tables, xsdt);
    commands.add_pointer(RSDP, RSDP_XSDT, 8);
    commands.add_checksum(RSDP, RSDP_CHECKSUM, 0, RSDP_FIRST_BYTES);
    commands.add_checksum(RSDP, RSDP_CHECKSUM_EXTENDED, 0, rsdp.len());
    Handed {
        tables,
        rsdp,
        loader: commands.0,
    }
}

struct Commands(Vec<u8>);

impl Commands {
    fn add(&mut self, command: u32, body: &[&[u8]]) {
        let end = self.0.len() + COMMAND_BYTES;
        self.0.extend(command.to_le_bytes());
        self.0.extend(body.concat());
        self.0.resize(end, 0);
    }

    /// Room for a file, and its content there.
    fn allocate(&mut self, file: &str, zone: u8) {
        self.add(ALLOCATE, &[&name(file), &ALIGNMENT.to_le_bytes(), &[zone]]);
    }

    /// Adds the tables' address to a pointer of so many bytes.
    fn add_pointer(&mut self, file: &str, offset: usize, bytes: u8) {
        let offset = (offset as u32).to_le_bytes();
        self.add(ADD_POINTER, &[&name(file), &name(TABLES), &offset, &[bytes]]);
    }

    fn add_checksum(&mut self, file: &str, offset: usize, start: usize, bytes: usize) {
        let [offset, start, bytes] = [offset, start, bytes].map(|number| (number as u32).to_le_bytes());
        self.add(ADD_CHECKSUM, &[&name(file), &offset, &start, &bytes]);
    }

    /// The checksum of a whole table, whose length is in its header.
    fn add_table_checksum(&mut self, tables: &[u8], start: usize) {
        let length: [u8; 4] = std::array::from_fn(|index| tables[start + 4 + index]);
        self.add_checksum(
            TABLES,
            start + CHECKSUM,
            start,
            u32::from_le_bytes(length) as usize,
        );
    }
}

fn name(file: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    bytes[..file.len()].copy_from_slice(file.as_bytes());
    bytes
}

#[cfg(test)]
#[path = "handed_test.rs"]
mod tests;
