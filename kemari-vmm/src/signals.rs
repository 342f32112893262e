//! Signals, where KVM must not see one, and where a thread may not take one.
//!
//! A few of KVM's requests give up when a signal is pending, some of them with something half done. The
//! threads that call them are signalled often: a vCPU's thread to come out of the guest, the main thread to
//! end.

use std::ptr;

/// No signal comes to this thread until it is dropped; then those that waited come.
pub(crate) struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        // SAFETY: both sets are written before they are read,
        // and the call changes nothing but this thread's mask.
        unsafe {
            let mut all = std::mem::zeroed();
            let mut before = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the mask is the one that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Those by which a process is told to end: of several that come at once each may be taken by another thread.
const MEANT_FOR_THE_PROCESS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The calling thread, and those that are made from it, take no signal that is meant for the whole process.
pub(crate) fn leave_to_others() {
    // SAFETY: the set is written before it is read, and the call changes nothing but this thread's mask.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in MEANT_FOR_THE_PROCESS {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
}
