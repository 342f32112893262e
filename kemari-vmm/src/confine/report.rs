//! Breaches in a test's process: told, so that none goes unnoticed where the process was to die anyway.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::IntoRawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use super::BREACH_STATUS;

/// Where breaches are written to.
static FILE: AtomicI32 = AtomicI32::new(-1);

/// From now on a breach is written into `file`, as `system call N by the thread NAME`, and ends the process.
pub(crate) fn to(file: File) -> io::Result<()> {
    FILE.store(file.into_raw_fd(), Ordering::SeqCst);
    // SAFETY: an action of zeros is a valid one, and what the handler does is allowed in a handler.
    let result = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_breach as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_breach(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// Where `si_syscall` lies, in ints: behind three ints, one that aligns, and an address (sigaction(2)).
    const NUMBER_AT: usize = 6;
    // SAFETY: the kernel gives a siginfo_t of 128 bytes to a handler that asked for it.
    let number = unsafe { info.cast::<libc::c_int>().add(NUMBER_AT).read() };
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes, the last of them zero.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut line = [0u8; 96];
    let mut left = &mut line[..];
    // Nothing of this allocates; all of it fits.
    let _ = write!(left, "system call {number} by the thread ");
    let _ = left.write_all(name);
    let _ = left.write_all(b"\n");
    let length = 96 - left.len();
    // SAFETY: the bytes are there, and the descriptor is this module's; _exit ends all threads.
    unsafe {
        libc::write(FILE.load(Ordering::SeqCst), line.as_ptr().cast(), length);
        libc::_exit(BREACH_STATUS);
    }
}
