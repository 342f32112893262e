//! Live floating-point state across a wait or an exit: every SSE, AVX and x87 register holds a pattern that
//! changes each time, and is compared afterwards. A machine that loses or mixes up such state is noticed.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{cpu, pattern};

/// Bytes of an XSAVE image in standard format with x87, SSE and AVX (Intel SDM volume 1, section 13.4).
const IMAGE_BYTES: usize = 832;
/// Register sets in the image: x87, SSE and AVX.
const SETS: u32 = 7;
/// Round to nearest, all exceptions masked: what compiled code expects in MXCSR.
const MXCSR_DEFAULT: u32 = 0x1f80;

/// Comparisons that failed, and comparisons made.
static MISMATCHES: AtomicU64 = AtomicU64::new(0);
static COMPARISONS: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);

#[repr(C, align(64))]
struct Image([u8; IMAGE_BYTES]);

/// Byte ranges of the image that must come back as they were: control and tag words, MXCSR, the ten bytes of
/// each x87 register, the SSE registers, the upper halves of the AVX registers. The rest is reserved, or
/// depends on the vendor (last x87 instruction).
fn compared() -> impl Iterator<Item = core::ops::Range<usize>> {
    let stack = (0..8).map(|i| 32 + 16 * i..42 + 16 * i);
    [0..5, 24..28, 160..416, 576..832].into_iter().chain(stack)
}

impl Image {
    fn patterned(seed: u64) -> Image {
        let mut image = Image([0; IMAGE_BYTES]);
        let mut put =
            |offset: usize, bytes: &[u8]| image.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        let rounding = seed & 3;
        put(0, &(0x037f | (rounding as u16) << 10).to_le_bytes());
        // All eight x87 registers hold something (abridged tag word), and the stack's top is 0.
        put(4, &[0xff]);
        put(24, &(MXCSR_DEFAULT | (rounding as u32) << 13).to_le_bytes());
        put(512, &u64::from(SETS).to_le_bytes());
        for i in 0..8 {
            // A normal number: the integer bit of the significand set, any exponent near the middle.
            let word = pattern::mix(seed ^ i as u64);
            put(32 + 16 * i, &(word | 1 << 63).to_le_bytes());
            put(40 + 16 * i, &(0x3fff ^ (word as u16 & 0xff)).to_le_bytes());
        }
        for i in 0..32 {
            let word = pattern::mix(seed ^ (0x100 + i as u64)).to_le_bytes();
            put(160 + 8 * i, &word);
            put(
                576 + 8 * i,
                &pattern::mix(seed ^ (0x200 + i as u64)).to_le_bytes(),
            );
        }
        image
    }
}

/// The XSAVE instructions and the three register sets exist, as abi.rs promises.
pub fn assert_present() {
    assert!(
        cpu::xcr0() & SETS == SETS,
        "XCR0 lacks x87, SSE or AVX: {:#x}",
        cpu::xcr0()
    );
}

/// Fills the registers, runs a ring-0 stub (see [`cpu::ring0`]), and compares.
///
/// # Safety
/// As for [`cpu::ring0`].
pub unsafe fn guarded_ring0(stub: u64) {
    guarded(|expected, found| {
        // SAFETY: the caller's promise; both images are valid, 64-byte aligned,
        // and the clobbers name what is loaded.
        unsafe {
            asm!(
                "xrstor64 [{expected}]",
                "int3",
                "mov eax, 7",
                "xor edx, edx",
                "xsave64 [{found}]",
                "fninit",
                "vzeroupper",
                "ldmxcsr [{mxcsr}]",
                expected = in(reg) expected,
                found = in(reg) found,
                mxcsr = in(reg) &MXCSR_DEFAULT,
                inout("eax") SETS => _,
                inout("edx") 0 => _,
                inout("r10") stub => _,
                clobber_abi("sysv64"),
            );
        }
    });
}

/// Fills the registers, writes to an I/O port, and compares.
pub fn guarded_outb(port: u16, value: u8) {
    guarded(|expected, found| {
        // SAFETY: as above, and as for `cpu::outb`.
        unsafe {
            asm!(
                "xrstor64 [{expected}]",
                "mov edx, r8d",
                "mov eax, r9d",
                "out dx, al",
                "mov eax, 7",
                "xor edx, edx",
                "xsave64 [{found}]",
                "fninit",
                "vzeroupper",
                "ldmxcsr [{mxcsr}]",
                expected = in(reg) expected,
                found = in(reg) found,
                mxcsr = in(reg) &MXCSR_DEFAULT,
                inout("eax") SETS => _,
                inout("edx") 0 => _,
                inout("r8d") u32::from(port) => _,
                inout("r9d") u32::from(value) => _,
                clobber_abi("sysv64"),
            );
        }
    });
}

/// Computes for a while with all registers filled, so that interrupts and pauses meet them:
/// spins for `spins` rounds.
pub fn guarded_spin(spins: u64) {
    guarded(|expected, found| {
        // SAFETY: as above; the loop touches one register.
        unsafe {
            asm!(
                "xrstor64 [{expected}]",
                "2:",
                "dec r8",
                "jnz 2b",
                "mov eax, 7",
                "xor edx, edx",
                "xsave64 [{found}]",
                "fninit",
                "vzeroupper",
                "ldmxcsr [{mxcsr}]",
                expected = in(reg) expected,
                found = in(reg) found,
                mxcsr = in(reg) &MXCSR_DEFAULT,
                inout("eax") SETS => _,
                inout("edx") 0 => _,
                inout("r8") spins.max(1) => _,
                clobber_abi("sysv64"),
            );
        }
    });
}

fn guarded(run: impl FnOnce(*const Image, *mut Image)) {
    let expected = Image::patterned(pattern::mix(SEED.fetch_add(1, Ordering::Relaxed)));
    // XSAVE does not write the reserved header bytes, and wants them 0.
    let mut found = Image([0; IMAGE_BYTES]);
    run(&expected, &mut found);
    COMPARISONS.fetch_add(1, Ordering::Relaxed);
    if compared().any(|range| expected.0[range.clone()] != found.0[range]) {
        MISMATCHES.fetch_add(1, Ordering::Relaxed);
    }
}

/// Comparisons made, and those that failed.
pub fn counts() -> (u64, u64) {
    (
        COMPARISONS.load(Ordering::Relaxed),
        MISMATCHES.load(Ordering::Relaxed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_keep_their_patterns_over_a_spin_and_a_lost_one_is_seen() {
        guarded_spin(1000);
        assert_eq!(counts().1, 0);
        guarded(|expected, found| {
            // SAFETY: both images are valid here.
            unsafe {
                (*found).0 = (*expected).0;
                (*found).0[600] ^= 1;
            }
        });
        assert_eq!(counts().1, 1);
    }
}
