//! Recognising and loading kernels, good ones and garbage.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use linux_loader::bootparam::{boot_params, setup_header};
use linux_loader::loader::elf::start_info::hvm_start_info;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::*;
use crate::arch::layout::abi;

const MIB: u64 = 1 << 20;

fn memory(bytes: u64) -> Memory {
    Memory::from_ranges(&layout::memory_regions(bytes)).expect("memory")
}

/// A file that is removed with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(bytes: &[u8]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kemari-boot-{}-{number}", std::process::id()));
        fs::write(&path, bytes).expect("temporary file");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn open(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Result<Kernel, BootError> {
    let kernel = Scratch::new(kernel);
    let initrd = initrd.map(Scratch::new);
    Kernel::open(&BootConfig {
        kernel: kernel.0.clone(),
        initrd: initrd.as_ref().map(|initrd| initrd.0.clone()),
        cmdline: cmdline.into(),
    })
}

/// The smallest firmware: a far jump where a processor begins.
fn firmware(bytes: usize) -> Vec<u8> {
    let mut file = vec![0x90; bytes];
    file[0] = 7;
    file[bytes - 16..bytes - 11].copy_from_slice(&[0xea, 0x5b, 0xe0, 0, 0xf0]);
    file
}

fn open_firmware(bytes: &[u8]) -> Result<Kernel, BootError> {
    Kernel::open_firmware(&Scratch::new(bytes).0)
}

#[test]
fn firmware_lies_below_4_gib_and_its_end_below_1_mib() {
    let memory = memory(64 * MIB);
    for bytes in [64 << 10, 128 << 10, 256 << 10] {
        let file = firmware(bytes);
        let firmware = open_firmware(&file).expect("firmware");
        assert_eq!(firmware.rom(), Some(&file[..]));
        let entry = firmware.load(&memory, &[], 1, 1_000_000).expect("it fits");
        assert_eq!(entry, Entry::ResetVector);
        let mut low = vec![0; bytes.min(128 << 10)];
        let start = GuestAddress(MIB - low.len() as u64);
        memory.read_slice(&mut low, start).expect("memory below 1 MiB");
        assert!(low == file[bytes - low.len()..], "{bytes}");
    }
    let mut other = firmware(128 << 10);
    other[9] = 1;
    let digests = [firmware(128 << 10), firmware(64 << 10), other]
        .map(|file| open_firmware(&file).expect("firmware").digest());
    assert!(
        digests[0] != digests[1] && digests[0] != digests[2],
        "{digests:x?}"
    );
    let kernel = open(&bzimage(&header()), None, "").expect("a kernel");
    assert!(kernel.rom().is_none() && kernel.firmware_items(&memory, &[], 1).is_none());
}

#[test]
fn what_is_no_firmware_is_refused_with_a_reason() {
    let mut without_jump = firmware(64 << 10);
    without_jump[(64 << 10) - 16] = 0;
    for (bytes, reason) in [
        (Vec::new(), "pieces"),
        (firmware((64 << 10) + 512), "pieces"),
        (without_jump, "no jump"),
        (vec![0; 128 << 10], "no jump"),
        (firmware(320 << 10), "UEFI"),
    ] {
        let error = open_firmware(&bytes).map(drop).expect_err(reason).to_string();
        assert!(error.contains(reason) && error.contains("SeaBIOS"), "{error}");
    }
    let missing = Kernel::open_firmware(Path::new("/nonexistent")).map(drop);
    assert!(matches!(missing, Err(BootError::Read { .. })));
    assert!(matches!(
        Kernel::open_firmware(Path::new("/")).map(drop),
        Err(BootError::NotAFile { .. })
    ));
}

#[test]
fn firmware_is_told_of_memory_processors_disks_and_console() {
    let memory = memory(4096 * MIB);
    let devices: Vec<MmioDevice> = [2, 1, 2]
        .into_iter()
        .enumerate()
        .map(|(slot, device_id)| {
            let (base, gsi) = layout::virtio_mmio(slot);
            MmioDevice { base, gsi, device_id }
        })
        .collect();
    let items = super::firmware::items(&memory, &devices, 3);
    let file = |name| items.get(name).expect(name);
    assert_eq!(file("etc/boot-cpus"), [3, 0]);
    assert_eq!(file("etc/sercon-port"), [0xf8, 3]);
    assert_eq!(
        file("bootorder"),
        b"/virtio-mmio@00000000d0000000/disk@0,0\n/virtio-mmio@00000000d0002000/disk@0,0\0"
    );
    let map: Vec<(u64, u64, u8)> = file("etc/e820")
        .chunks(20)
        .map(|range| {
            let number = |at: usize| u64::from_le_bytes(range[at..at + 8].try_into().unwrap());
            (number(0), number(8), range[16])
        })
        .collect();
    let (low, high) = (3072 * MIB, 1024 * MIB);
    assert_eq!(map, [(0, low, 1), (1 << 32, high, 1), (0xfffb_c000, 0x4000, 2)]);
    for name in ["etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"] {
        assert!(!file(name).is_empty(), "{name}");
    }
}

fn refused(kernel: &[u8]) -> &'static str {
    match open(kernel, None, "").map(|_| ()) {
        Err(error @ BootError::NotAKernel { .. }) => {
            assert!(error.to_string().contains("bzImage"), "{error}");
            let BootError::NotAKernel { reason, .. } = error else {
                unreachable!()
            };
            reason
        }
        other => panic!("{other:?}"),
    }
}

fn header() -> setup_header {
    setup_header {
        setup_sects: 1,
        header: 0x5372_6448,
        version: 0x020f,
        loadflags: 1,
        xloadflags: 1,
        relocatable_kernel: 1,
        kernel_alignment: 2 << 20,
        pref_address: 16 << 20,
        init_size: 8 << 20,
        initrd_addr_max: 0x7fff_ffff,
        cmdline_size: 2047,
        syssize: 4096 / 16,
        ..Default::default()
    }
}

fn bzimage(header: &setup_header) -> Vec<u8> {
    let mut file = vec![0; 1024 + 4096];
    file[0x1f1..0x1f1 + 123].copy_from_slice(header.as_slice());
    file[1024..].fill(0x90);
    file
}

fn read<T: ByteValued>(memory: &Memory, address: u64) -> T {
    memory.read_obj(GuestAddress(address)).expect("inside the memory")
}

#[test]
fn garbage_is_refused_with_a_reason() {
    assert!(refused(b"").contains("neither"));
    assert!(refused(&[0xff; 4096]).contains("neither"));
    assert!(refused(b"#!/bin/sh\n").contains("neither"));
    assert!(refused(b"\x7fELF").contains("cut off"));
    assert!(
        refused(&bzimage(&setup_header {
            version: 0x0208,
            ..header()
        }))
        .contains("older")
    );
    assert!(
        refused(&bzimage(&setup_header {
            xloadflags: 0,
            ..header()
        }))
        .contains("32-bit")
    );
    let whole = bzimage(&header());
    assert!(refused(&whole[..0x210]).contains("cut off"));
    assert!(refused(&whole[..1024 + 512]).contains("cut off"));
}

#[test]
fn garbage_elf_files_are_refused_with_a_reason() {
    let good = test_elf::elf(&[0x90; 64], &test_elf::bare_note());
    assert!(refused(&test_elf::elf(&[0x90; 64], &[])).contains("without a PVH entry"));
    assert!(refused(&good[..good.len() - 1]).contains("cut off"));
    assert!(refused(&good[..100]).contains("cut off"));
    let patched = |offset: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    };
    assert!(refused(&patched(18, &[40, 0])).contains("another processor"));
    assert!(refused(&patched(16, &[3, 0])).contains("not statically linked"));
    assert!(refused(&patched(56, &[0xff, 0xff])).contains("program headers"));
    // The entry outside, the physical address below 1 MiB, sizes that overflow,
    // a note longer than its segment.
    assert!(refused(&patched(24, &u64::MAX.to_le_bytes())).contains("entry"));
    assert!(refused(&patched(64 + 24, &0u64.to_le_bytes())).contains("below 1 MiB"));
    assert!(refused(&patched(64 + 40, &u64::MAX.to_le_bytes())).contains("impossible sizes"));
    assert!(refused(&patched(64 + 2 * 56, &u32::MAX.to_le_bytes())).contains("notes"));
}

#[test]
fn every_prefix_and_every_flipped_byte_is_survived() {
    let memory = memory(4 * MIB);
    let notes = [
        test_elf::note(b"Xen\0", 18, &0x10_0000u32.to_le_bytes()),
        test_elf::note(b"GNU\0", 3, b"abc"),
    ];
    for good in [test_elf::elf(&[0x90; 16], &notes.concat()), bzimage(&header())] {
        for length in 0..good.len() {
            let _ = recognise(Path::new("kernel"), &good[..length]);
        }
        for position in 0..good.len().min(0x280) {
            let mut file = good.clone();
            file[position] ^= 0xff;
            if let Ok(image) = recognise(Path::new("kernel"), &file) {
                let kernel = Kernel {
                    path: "kernel".into(),
                    image,
                    bytes: file,
                    initrd: None,
                    cmdline: String::new(),
                };
                let _ = kernel.load(&memory, &[], 1, 1);
            }
        }
    }
}

#[test]
fn missing_files_devices_and_long_command_lines_are_refused() {
    let config = BootConfig {
        kernel: "/nonexistent/vmlinuz".into(),
        initrd: None,
        cmdline: String::new(),
    };
    let error = Kernel::open(&config)
        .map(|_| ())
        .expect_err("missing")
        .to_string();
    assert!(error.contains("/nonexistent/vmlinuz"), "{error}");
    let zero = BootConfig {
        kernel: "/dev/zero".into(),
        ..config
    };
    assert!(matches!(Kernel::open(&zero), Err(BootError::NotAFile { .. })));
    let file = bzimage(&header());
    assert!(matches!(
        open(&file, None, &"x".repeat(2048)),
        Err(BootError::CmdlineTooLong { .. })
    ));
    assert!(open(&file, None, &"x".repeat(2047)).is_ok());
    assert!(matches!(open(&file, None, "a\0b"), Err(BootError::CmdlineZero)));
    let bare = test_elf::elf(&[0x90], &test_elf::bare_note());
    assert!(matches!(
        open(&bare, Some(b"initrd"), ""),
        Err(BootError::BareInitrd { .. })
    ));
}

#[test]
fn a_digest_tells_kernel_initrd_and_command_line_apart() {
    let file = bzimage(&header());
    let digest =
        |initrd: Option<&[u8]>, cmdline: &str| open(&file, initrd, cmdline).expect("kernel").digest();
    assert_eq!(digest(Some(b"abc"), "quiet"), digest(Some(b"abc"), "quiet"));
    let all = [
        digest(None, ""),
        digest(Some(b"a"), ""),
        digest(None, "a"),
        digest(Some(b"a\0"), ""),
        digest(None, "b"),
    ];
    for (index, one) in all.iter().enumerate() {
        assert!(!all[index + 1..].contains(one));
    }
}

#[test]
fn a_bzimage_is_loaded_with_its_initrd_on_top() {
    let memory = memory(3072 * MIB + 512 * MIB);
    let initrd = vec![7; 5000];
    let kernel = open(&bzimage(&header()), Some(&initrd), "console=ttyS0").expect("kernel");
    assert!(!kernel.is_bare());
    let entry = kernel.load(&memory, &[], 1, 1).expect("loaded");
    let Entry::Linux64 {
        rip,
        boot_params: address,
    } = entry
    else {
        panic!("{entry:?}")
    };
    assert_eq!(rip, 16 * MIB + 0x200);
    assert_eq!(read::<u64>(&memory, 16 * MIB), 0x9090_9090_9090_9090);
    let params: boot_params = read(&memory, address);
    let header = params.hdr;
    assert_eq!({ header.header }, 0x5372_6448);
    assert_eq!({ header.type_of_loader }, 0xff);
    assert_eq!({ params.acpi_rsdp_addr }, layout::ACPI_TABLES);
    assert_eq!(
        read::<u64>(&memory, layout::ACPI_TABLES).to_le_bytes(),
        *b"RSD PTR "
    );
    // A jump to the reset vector of a PC's BIOS resets the machine: mov dx, 0x600; mov al, 6; out dx, al.
    assert_eq!(
        read::<[u8; 6]>(&memory, 0xf_fff0),
        [0xba, 0x00, 0x06, 0xb0, 0x06, 0xee]
    );
    let mut cmdline = [0; 14];
    memory
        .read_slice(&mut cmdline, GuestAddress(header.cmd_line_ptr.into()))
        .expect("command line");
    assert_eq!(&cmdline, b"console=ttyS0\0");

    // As high as the kernel allows: just below 2 GiB.
    let initrd_address = u64::from(header.ramdisk_image);
    assert_eq!(initrd_address, 0x8000_0000 - 0x2000);
    assert_eq!({ header.ramdisk_size }, 5000);
    assert_eq!(read::<u64>(&memory, initrd_address), 0x0707_0707_0707_0707);

    let map: Vec<_> = (0..usize::from(params.e820_entries))
        .map(|index| {
            let entry = params.e820_table[index];
            ({ entry.addr }, { entry.size }, { entry.r#type })
        })
        .collect();
    assert_eq!(
        map,
        [
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x6_0400, 2),
            (MIB, 3071 * MIB, 1),
            (layout::HIGH_MEMORY_START, 512 * MIB, 1)
        ]
    );
}

#[test]
fn a_kernel_goes_lower_in_a_small_guest_and_is_refused_in_a_smaller_one() {
    let kernel = open(&bzimage(&header()), None, "").expect("kernel");
    let entry = kernel.load(&memory(12 * MIB), &[], 1, 1).expect("loaded");
    assert_eq!(
        entry,
        Entry::Linux64 {
            rip: 2 * MIB + 0x200,
            boot_params: layout::BOOT_PARAMS
        }
    );
    let error = kernel.load(&memory(8 * MIB), &[], 1, 1).expect_err("too small");
    let source = std::error::Error::source(&error).expect("source").to_string();
    assert!(source.contains("more memory"), "{source}");
    let initrd = vec![0; 30 << 20];
    let kernel = open(&bzimage(&header()), Some(&initrd), "").expect("kernel");
    assert!(kernel.load(&memory(32 * MIB), &[], 1, 1).is_err());
    assert!(kernel.load(&memory(64 * MIB), &[], 1, 1).is_ok());
}

#[test]
fn a_pvh_kernel_is_loaded_with_its_start_info() {
    let memory = memory(64 * MIB);
    let notes = [
        test_elf::note(b"GNU\0", 3, b"12345"),
        test_elf::note(b"Xen\0", 18, &0x10_0010u32.to_le_bytes()),
    ];
    let file = test_elf::elf(&[0x90; 64], &notes.concat());
    let kernel = open(&file, Some(&[1; 100]), "quiet").expect("kernel");
    let entry = kernel.load(&memory, &[], 2, 1).expect("loaded");
    let Entry::Pvh { rip, start_info } = entry else {
        panic!("{entry:?}")
    };
    assert_eq!(rip, 0x10_0010);
    let info: hvm_start_info = read(&memory, start_info);
    assert_eq!((info.magic, info.version, info.nr_modules), (0x336e_c578, 1, 1));
    assert_eq!(
        (info.rsdp_paddr, info.cmdline_paddr),
        (layout::ACPI_TABLES, layout::CMDLINE)
    );
    assert_eq!(
        read::<[u64; 2]>(&memory, info.modlist_paddr),
        [64 * MIB - 0x1000, 100]
    );
    assert_eq!(info.memmap_entries, 3);
    assert_eq!(
        read::<[u64; 3]>(&memory, info.memmap_paddr + 48),
        [MIB, 63 * MIB, 1]
    );
}

#[test]
fn a_bare_guest_finds_what_its_contract_says_after_another_guest_too() {
    let memory = memory(64 * MIB);
    // What a former guest left.
    memory
        .write_slice(&vec![0xaa; 2 << 20], GuestAddress(0))
        .expect("inside the memory");
    let file = test_elf::elf(&[0x90; 64], &test_elf::bare_note());
    let kernel = open(&file, None, "name=value").expect("kernel");
    assert!(kernel.is_bare());
    let devices = [MmioDevice {
        base: 0xd000_0000,
        gsi: 5,
        device_id: 2,
    }];
    let entry = kernel.load(&memory, &devices, 1, 2_500_000).expect("loaded");
    assert_eq!(
        entry,
        Entry::Bare {
            rip: test_elf::ADDRESS
        }
    );

    let mut info = [0; size_of::<abi::BootInfo>()];
    memory
        .read_slice(&mut info, GuestAddress(abi::BOOT_INFO))
        .expect("inside the memory");
    assert_eq!(&info[..8], b"KEMARI02");
    assert_eq!(info[8..16], (64 * MIB).to_le_bytes());
    assert_eq!(info[16..24], [0; 8]);
    assert_eq!(info[24..28], 2_500_000u32.to_le_bytes());
    assert_eq!(
        info[std::mem::offset_of!(abi::BootInfo, devices)..][..8],
        0xd000_0000u64.to_le_bytes()
    );
    assert_eq!(
        &info[std::mem::offset_of!(abi::BootInfo, cmdline)..][..11],
        b"name=value\0"
    );
    look_at_tables(&memory);
    // Code, and zeros behind it.
    assert_eq!(read::<[u8; 2]>(&memory, test_elf::ADDRESS + 63), [0x90, 0]);
    assert_eq!(
        read::<u8>(&memory, test_elf::ADDRESS + 63 + test_elf::BSS_BYTES),
        0
    );
    assert_eq!(
        read::<u8>(&memory, test_elf::ADDRESS + 64 + test_elf::BSS_BYTES),
        0xaa
    );
}

/// The tables by which a bare guest is entered.
fn look_at_tables(memory: &Memory) {
    assert_eq!(read::<u64>(memory, abi::GDT + 0x30), 0x00af_fb00_0000_ffff);
    assert_eq!(read::<u64>(memory, abi::GDT + 0x40), 0x0000_8b00_3000_2068);
    assert_eq!(read::<[u64; 2]>(memory, abi::IDT), [0, 0]);
    assert_eq!(read::<u64>(memory, abi::TSS + 4), abi::RING0_STACK_TOP);
    assert_eq!(
        read::<[u8; 8]>(memory, abi::TSS + 0x66),
        [0x68, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(read::<[u8; 2]>(memory, abi::TSS + 0x68 + 8191), [0, 0xff]);
    // The page tables map an address to itself: here the I/O APIC's, by the directory of the fourth GiB.
    assert_eq!(
        read::<u64>(memory, abi::PAGE_TABLES),
        (abi::PAGE_TABLES + 0x1000) | 0x27
    );
    assert_eq!(
        read::<[u64; 2]>(memory, abi::PAGE_TABLES + 0x1000 + 24),
        [(abi::PAGE_TABLES + 0x5000) | 0x27, 0]
    );
    assert_eq!(
        read::<u64>(memory, abi::PAGE_TABLES + 0x5000 + 8 * 502),
        0xfec0_0000 | 0xe7
    );
}

#[test]
fn further_vcpus_of_a_bare_guest_have_task_states_of_their_own_and_high_memory_is_mapped() {
    let memory = memory(5120 * MIB);
    memory
        .write_slice(&vec![0xaa; 1 << 20], GuestAddress(0))
        .expect("inside the memory");
    let kernel = open(&test_elf::elf(&[0x90], &test_elf::bare_note()), None, "").expect("kernel");
    kernel.load(&memory, &[], 3, 1).expect("loaded");
    let stacks = [0, 1, 2, 3].map(|vcpu| read::<u64>(&memory, crate::arch::entry::task(vcpu).0 + 4));
    assert_eq!(
        stacks,
        [abi::RING0_STACK_TOP, 0x1_3ff0, 0x1_7ff0, 0],
        "the fourth vCPU does not exist"
    );
    assert_eq!(read::<[u8; 2]>(&memory, 0x1_4000 + 0x68 + 8191), [0, 0xff]);

    // Memory ends at 6 GiB, behind the hole of one.
    let high = std::mem::offset_of!(abi::BootInfo, high_memory_bytes) as u64;
    assert_eq!(read::<u64>(&memory, abi::BOOT_INFO + high), 2 << 30);
    let pointers = read::<[u64; 3]>(&memory, abi::PAGE_TABLES + 0x1000 + 8 * 4);
    assert_eq!(pointers, [0x3_0027, 0x3_1027, 0]);
    assert_eq!(
        read::<u64>(&memory, 0x3_1000 + 8 * 511),
        (6 << 30) - (2 << 20) + 0xe7
    );
}

#[test]
fn too_many_devices_are_refused() {
    let device = MmioDevice {
        base: 0xd000_0000,
        gsi: 5,
        device_id: 2,
    };
    let kernel = open(&test_elf::elf(&[0x90], &test_elf::bare_note()), None, "").expect("kernel");
    let result = kernel.load(&memory(64 * MIB), &[device; 17], 1, 1);
    assert!(matches!(result, Err(BootError::TooManyDevices { count: 17 })));
}
