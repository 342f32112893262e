//! Linux's bzImage (the kernel's Documentation/arch/x86/boot.rst).

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

/// Where the setup header begins in the file.
const HEADER_OFFSET: usize = 0x1f1;
/// Where its signature lies.
const SIGNATURE: std::ops::Range<usize> = 0x202..0x206;
/// `loadflags`: the kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry point, 0x200 behind the load address.
const XLF_KERNEL_64: u16 = 1;
/// First version of the protocol that has `xloadflags` (Linux 3.8).
const VERSION_MIN: u16 = 0x020c;
/// Length of a sector, in which the real-mode part is counted.
const SECTOR_BYTES: usize = 512;
/// The alignment that any relocatable 64-bit kernel needs.
const ALIGNMENT_MIN: u64 = 2 << 20;

/// A bzImage that was checked.
pub(crate) struct BzImage {
    /// The setup header, as in the file.
    pub header: setup_header,
    /// Where the part that is loaded begins in the file.
    pub payload_offset: usize,
}

/// Whether the file claims to be a bzImage.
pub(crate) fn is_one(bytes: &[u8]) -> bool {
    bytes.get(SIGNATURE) == Some(b"HdrS")
}

impl BzImage {
    /// Checks the file. The error says what was found instead of a kernel.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut header = setup_header::default();
        let length = header.as_slice().len();
        // An old kernel's header is shorter than the structure; then code follows, and the version says so.
        let source = bytes
            .get(HEADER_OFFSET..HEADER_OFFSET + length)
            .ok_or("its setup header is cut off")?;
        header.as_mut_slice().copy_from_slice(source);
        if header.version < VERSION_MIN || header.loadflags & LOADED_HIGH == 0 {
            return Err("it is a bzImage of a Linux older than 3.8");
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err("it is a bzImage without a 64-bit entry (a 32-bit Linux)");
        }
        let sectors = if header.setup_sects == 0 {
            4
        } else {
            usize::from(header.setup_sects)
        };
        let payload_offset = (sectors + 1) * SECTOR_BYTES;
        let payload_bytes = header.syssize as usize * 16;
        // `syssize` counts in 16 bytes, rounded up.
        if bytes.len() <= payload_offset || bytes.len() + 16 < payload_offset + payload_bytes {
            return Err("the bzImage is cut off");
        }
        Ok(Self {
            header,
            payload_offset,
        })
    }

    /// Longest command line that this kernel takes, in bytes without the terminating zero.
    pub(crate) fn cmdline_bytes_max(&self) -> usize {
        self.header.cmdline_size as usize
    }

    /// Where to load the kernel so that it and the memory it needs while it unpacks itself lie in
    /// `start..end`: where it prefers, else at the lowest place that suits it.
    pub(crate) fn load_address(&self, start: u64, end: u64) -> Option<u64> {
        let bytes = u64::from(self.header.init_size);
        let fits =
            |address: u64| address >= start && address.checked_add(bytes).is_some_and(|last| last <= end);
        let preferred = self.header.pref_address;
        if fits(preferred) {
            return Some(preferred);
        }
        let alignment = u64::from(self.header.kernel_alignment).max(ALIGNMENT_MIN);
        let lowest = start.checked_next_multiple_of(alignment)?;
        (self.header.relocatable_kernel != 0 && fits(lowest)).then_some(lowest)
    }
}
