use super::*;

fn devices(count: usize) -> Vec<MmioDevice> {
    (0..count)
        .map(|slot| {
            let (base, gsi) = layout::virtio_mmio(slot);
            MmioDevice {
                base,
                gsi,
                device_id: 1,
            }
        })
        .collect()
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// The table at a guest physical address, by the length in its header, with its checksum checked.
fn table<'a>(tables: &'a Tables, address: u64, signature: &[u8; 4]) -> &'a [u8] {
    let start = (address - layout::ACPI_TABLES) as usize;
    let bytes = &tables.bytes[start..];
    let bytes = &bytes[..u32_at(bytes, 4) as usize];
    assert_eq!(&bytes[..4], signature);
    assert!(sums_to_zero(bytes), "{signature:?}");
    assert_eq!(address % 16, 0);
    bytes
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn tables_are_found_from_the_rsdp() {
    let tables = build(&devices(3), 2);
    let rsdp = &tables.bytes[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert!(sums_to_zero(&rsdp[..20]) && sums_to_zero(rsdp));
    assert_eq!(rsdp[15], 2);
    let xsdt = table(&tables, u64_at(rsdp, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);

    let fadt = table(&tables, u64_at(xsdt, 36), b"FACP");
    assert_eq!(fadt.len(), 276);
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b10_1100);
    let flags = u32_at(fadt, 112);
    assert_ne!(flags & (1 << 20), 0, "hardware-reduced");
    assert_ne!(flags & (1 << 10), 0, "reset register supported");
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!(u64_at(fadt, 120), 0x600);
    assert_eq!(fadt[128], 0x06);
    assert_eq!(u64_at(fadt, 244 + 4), 0x604);
    assert_eq!(u64_at(fadt, 256 + 4), 0x605);

    let dsdt = table(&tables, u64_at(fadt, 140), b"DSDT");
    assert!(contains(dsdt, b"_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
    assert!(contains(dsdt, b"COM1"));

    let madt = table(&tables, u64_at(xsdt, 44), b"APIC");
    assert_eq!(u32_at(madt, 36), 0xfee0_0000);
    assert_eq!(&madt[44..52], &[0, 8, 0, 0, 1, 0, 0, 0]);
    assert_eq!(&madt[52..60], &[0, 8, 1, 1, 1, 0, 0, 0]);
    assert_eq!(&madt[60..72], &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(madt.len(), 72);
}

#[test]
fn every_device_has_its_registers_and_its_line() {
    let tables = build(&devices(layout::VIRTIO_MMIO_DEVICES_MAX), 1);
    assert!(tables.bytes.len() as u64 <= layout::RESET_VECTOR - layout::ACPI_TABLES);
    for slot in 0..layout::VIRTIO_MMIO_DEVICES_MAX {
        let (base, gsi) = layout::virtio_mmio(slot);
        let name = format!("VR{slot:02}");
        let at = tables
            .bytes
            .windows(4)
            .position(|window| window == name.as_bytes())
            .expect("device");
        let device = &tables.bytes[at..at + 80];
        assert!(contains(device, b"\x0dLNRO0005\0"));
        let mut registers = vec![0x86, 9, 0, 1];
        registers.extend((base as u32).to_le_bytes());
        registers.extend(0x1000u32.to_le_bytes());
        assert!(contains(device, &registers));
        // Consumer, edge, active high, exclusive; one line.
        let mut line = vec![0x89, 6, 0, 0b0011, 1];
        line.extend(gsi.to_le_bytes());
        assert!(contains(device, &line));
    }
}
