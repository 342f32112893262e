//! Page faults that this process answers itself (Documentation/admin-guide/mm/userfaultfd.rst). Numbers and
//! structures of <linux/userfaultfd.h>.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{Memory, PAGE_BYTES};

const API: u64 = 0xaa;
const REGISTER_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;

const NEW: libc::c_ulong = 0xaa00;
const SET_API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const UNREGISTER: libc::c_ulong = 0x8010_aa01;
const WAKE: libc::c_ulong = 0x8010_aa02;
const COPY: libc::c_ulong = 0xc028_aa03;
const ZEROPAGE: libc::c_ulong = 0xc020_aa04;

#[repr(C)]
struct ApiRequest {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    bytes: u64,
}

#[repr(C)]
struct RegisterRequest {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyRequest {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct ZeroRequest {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// One message: what happened, and where.
#[repr(C)]
struct Message {
    kind: u8,
    _reserved: [u8; 7],
    _flags: u64,
    address: u64,
    _thread: u64,
}

/// Who may open it may answer page faults of the kernel.
static DEVICE: OnceLock<File> = OnceLock::new();

/// Opens it now, for drills later on, when this process may not open it any more. Older kernels have none.
pub fn hold() {
    if let Ok(device) = open_device() {
        // There is one for the process.
        let _ = DEVICE.set(device);
    }
}

fn open_device() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/userfaultfd")
}

fn descriptor_of(device: &File, flags: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the argument is passed by value.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), NEW, flags) })
}

/// Where the kernel tells of the page faults in some memory, and waits for their pages.
///
/// When it is closed, the kernel makes pages of zeros again, also for who waits.
pub(crate) struct Faults(File);

impl Faults {
    /// Needs CAP_SYS_PTRACE or access to /dev/userfaultfd: KVM's page faults are the kernel's.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let fd = match DEVICE.get() {
            Some(device) => descriptor_of(device, flags)?,
            None => {
                // SAFETY: no memory is passed.
                let asked = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
                match checked(asked as libc::c_int) {
                    Ok(fd) => fd,
                    Err(error) => descriptor_of(&open_device().map_err(|_| error)?, flags)?,
                }
            }
        };
        // SAFETY: the descriptor was just made, and nobody else has it.
        let faults = Self(unsafe { File::from_raw_fd(fd) });
        let mut request = ApiRequest {
            api: API,
            features: 0,
            ioctls: 0,
        };
        faults.ask(SET_API, &mut request)?;
        Ok(faults)
    }

    /// Takes the page faults of pages of this memory that nobody has touched.
    pub(crate) fn take(&self, memory: &Memory) -> io::Result<()> {
        memory.iter().try_for_each(|region| {
            let mut request = RegisterRequest {
                range: Range {
                    start: region.as_ptr() as u64,
                    bytes: region.len(),
                },
                mode: REGISTER_MISSING,
                ioctls: 0,
            };
            self.ask(REGISTER, &mut request)
        })
    }

    /// Leaves the page faults in this memory to the kernel again, which makes pages of zeros,
    /// also for who waits.
    pub(crate) fn leave(&self, memory: &Memory) -> io::Result<()> {
        memory.iter().try_for_each(|region| {
            let mut range = Range {
                start: region.as_ptr() as u64,
                bytes: region.len(),
            };
            self.ask(UNREGISTER, &mut range)?;
            // The kernel wakes waiting threads before it unregisters: one that came in between waits still.
            self.ask(WAKE, &mut range)
        })
    }

    /// The address of the next page fault, if one waits.
    pub(crate) fn next(&self) -> io::Result<Option<u64>> {
        let mut bytes = [0; size_of::<Message>()];
        match (&self.0).read(&mut bytes) {
            Ok(count) if count == bytes.len() => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: a message consists of integers: any bytes are one.
        let message: Message = unsafe { std::mem::transmute(bytes) };
        Ok((message.kind == EVENT_PAGEFAULT).then_some(message.address))
    }

    /// Gives the page at this address its content, and wakes who waits for it.
    /// A page that is there already stays.
    pub(crate) fn fill(&self, address: u64, content: &[u8; PAGE_BYTES]) -> io::Result<()> {
        let mut request = CopyRequest {
            to: address,
            from: content.as_ptr() as u64,
            bytes: PAGE_BYTES as u64,
            mode: 0,
            copied: 0,
        };
        self.until_there(address, || self.ask(COPY, &mut request))
    }

    /// The same with zeros. That takes no memory before somebody writes there.
    pub(crate) fn fill_zero(&self, address: u64) -> io::Result<()> {
        let mut request = ZeroRequest {
            range: page_at(address),
            mode: 0,
            zeroed: 0,
        };
        self.until_there(address, || self.ask(ZEROPAGE, &mut request))
    }

    fn until_there(&self, address: u64, mut fill: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        loop {
            match fill().map_err(|error| (error.raw_os_error(), error)) {
                // The process's mappings are about to change.
                Err((Some(libc::EAGAIN), _)) => std::thread::yield_now(),
                Err((Some(libc::EEXIST), _)) => return self.wake(address),
                result => return result.map_err(|(_, error)| error),
            }
        }
    }

    /// Wakes who waits for the page at this address, which is there.
    pub(crate) fn wake(&self, address: u64) -> io::Result<()> {
        self.ask(WAKE, &mut page_at(address))
    }

    fn ask<T>(&self, number: libc::c_ulong, request: &mut T) -> io::Result<()> {
        // SAFETY: the kernel reads and writes one structure of the request's type at the pointer, and fills,
        // takes or leaves only ranges that are mapped for a guest's memory, whose bytes nobody has a Rust
        // reference to.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), number, std::ptr::from_mut(request)) }).map(drop)
    }
}

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn page_at(address: u64) -> Range {
    Range {
        start: address,
        bytes: PAGE_BYTES as u64,
    }
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
