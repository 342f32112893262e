//! A firmware that does what it is told, and a guest that looks for its tables afterwards.

use super::*;
use crate::arch::layout;

const TABLES_AT: u64 = 0x7fe_0040;

struct Firmware {
    tables: Vec<u8>,
    rsdp: Vec<u8>,
    /// Which files it has placed.
    placed: Vec<String>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn number(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

impl Firmware {
    fn run(handed: Handed) -> Self {
        let mut firmware = Self {
            tables: handed.tables,
            rsdp: handed.rsdp,
            placed: Vec::new(),
        };
        assert_eq!(handed.loader.len() % COMMAND_BYTES, 0);
        for command in handed.loader.chunks(COMMAND_BYTES) {
            firmware.obey(number(&command[..4]) as u32, &command[4..]);
        }
        firmware
    }

    fn obey(&mut self, command: u32, body: &[u8]) {
        let name = text(&body[..NAME_BYTES]);
        let rest = &body[NAME_BYTES..];
        if command == ALLOCATE {
            assert_eq!(number(&rest[..4]), 64, "alignment");
            assert_eq!(rest[4], if name == RSDP { ZONE_RSDP } else { ZONE_HIGH });
            return self.placed.push(name);
        }
        assert!(self.placed.contains(&name), "{name} is not placed yet");
        let file = if name == RSDP {
            &mut self.rsdp
        } else {
            &mut self.tables
        };
        if command == ADD_POINTER {
            assert_eq!(text(&rest[..NAME_BYTES]), TABLES);
            let rest = &rest[NAME_BYTES..];
            let (offset, bytes) = (number(&rest[..4]), usize::from(rest[4]));
            let pointer = number(&file[offset..offset + bytes]) as u64 + TABLES_AT;
            file[offset..offset + bytes].copy_from_slice(&pointer.to_le_bytes()[..bytes]);
        } else {
            assert_eq!(command, ADD_CHECKSUM);
            let [offset, start, bytes] = [0, 4, 8].map(|at| number(&rest[at..at + 4]));
            let wrong = sum(&file[start..start + bytes]);
            file[offset] = file[offset].wrapping_sub(wrong);
        }
    }

    /// A table by its address, with its checksum checked.
    fn table(&self, address: usize, signature: &[u8; 4]) -> &[u8] {
        let bytes = &self.tables[address - TABLES_AT as usize..];
        let bytes = &bytes[..number(&bytes[4..8])];
        assert_eq!((&bytes[..4], sum(bytes)), (&signature[..], 0));
        bytes
    }
}

#[test]
fn a_guest_finds_its_tables_wherever_firmware_has_put_them() {
    let (base, gsi) = layout::virtio_mmio(0);
    let devices = [MmioDevice {
        base,
        gsi,
        device_id: 2,
    }];
    let firmware = Firmware::run(build(&devices, 2));
    let rsdp = &firmware.rsdp;
    assert_eq!((&rsdp[..8], rsdp.len()), (&b"RSD PTR "[..], 36));
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    let xsdt = firmware.table(number(&rsdp[24..32]), b"XSDT");
    let fadt = firmware.table(number(&xsdt[36..44]), b"FACP");
    let madt = firmware.table(number(&xsdt[44..52]), b"APIC");
    assert_eq!((xsdt.len(), madt.len()), (52, 72));
    // Firmware knows the one, Linux the other.
    assert_eq!(number(&fadt[40..44]), number(&fadt[140..148]));
    let facs = number(&fadt[36..40]);
    assert_eq!((facs % 64, number(&fadt[132..140])), (0, 0));
    assert_eq!(firmware.tables[facs - TABLES_AT as usize..][..4], *b"FACS");
    let dsdt = firmware.table(number(&fadt[40..44]), b"DSDT");
    // Fixed registers, their line, and the 8259s: it is not hardware-reduced.
    assert_eq!(
        (number(&fadt[46..48]), number(&fadt[112..116]) & 1 << 20),
        (21, 0)
    );
    assert_eq!((number(&fadt[56..60]), fadt[88]), (0x620, 4));
    assert_eq!((number(&fadt[64..68]), fadt[89]), (0x624, 2));
    assert_eq!((fadt[244..268].to_vec(), madt[40]), (vec![0; 24], 1));
    assert!(dsdt.windows(8).any(|window| window == b"LNRO0005"));
}
