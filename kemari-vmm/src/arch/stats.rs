//! What KVM counts of a vCPU (Documentation/virt/kvm/api.rst, "KVM_GET_STATS_FD").
//! Reading it disturbs nobody.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;

const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
const HEADER_BYTES: usize = 24;
/// Bytes of a descriptor before its name.
const DESCRIPTOR_BYTES: usize = 16;
/// More than any KVM has.
const DESCRIPTORS_MAX: u32 = 4096;
const NAME_BYTES_MAX: u32 = 256;

/// How often something has happened to a vCPU since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuCounts {
    /// It came out of the guest: it was in there.
    pub exits: u64,
    /// It was interrupted, or woken from a halt.
    pub interrupts: u64,
}

/// Where KVM counts what happens to one vCPU.
pub(crate) struct VcpuStats {
    file: File,
    exits_at: u64,
    interrupts_at: Vec<u64>,
}

impl VcpuStats {
    /// Asks KVM for the counters. The vCPU must not be in the guest, or this waits for it.
    ///
    /// # Errors
    /// If this KVM does not count (before Linux 5.14), or other things.
    pub(crate) fn open(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let (name_bytes, count) = (word(&header, 4), word(&header, 8));
        let (descriptors_at, data_at) = (u64::from(word(&header, 16)), u64::from(word(&header, 20)));
        if name_bytes > NAME_BYTES_MAX || count > DESCRIPTORS_MAX {
            return Err(io::Error::other("KVM's statistics have another form"));
        }
        let (mut exits_at, mut interrupts_at) = (None, Vec::new());
        let mut descriptor = vec![0; DESCRIPTOR_BYTES + name_bytes as usize];
        let step = descriptor.len() as u64;
        for index in 0..u64::from(count) {
            file.read_exact_at(&mut descriptor, descriptors_at + index * step)?;
            let place = data_at + u64::from(word(&descriptor, 8));
            let name = &descriptor[DESCRIPTOR_BYTES..];
            match name.split(|byte| *byte == 0).next() {
                Some(b"exits") => exits_at = Some(place),
                // Where the processor delivers interrupts by itself KVM counts none,
                // but it wakes the vCPU for them.
                Some(b"irq_injections" | b"halt_wakeup") => interrupts_at.push(place),
                _ => {}
            }
        }
        Ok(Self {
            file,
            exits_at: exits_at.ok_or_else(|| io::Error::other("KVM does not count exits"))?,
            interrupts_at,
        })
    }

    /// Reads the counters.
    pub(crate) fn read(&self) -> io::Result<VcpuCounts> {
        let interrupts = self.interrupts_at.iter().map(|place| self.counter(*place));
        Ok(VcpuCounts {
            exits: self.counter(self.exits_at)?,
            interrupts: interrupts.sum::<io::Result<u64>>()?,
        })
    }

    fn counter(&self, place: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, place)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
