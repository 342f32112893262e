//! Calls that threads of several kinds make.

use super::{Call, INT, call, call_if, ioctl};
use crate::virtio::tap::{TUNGETIFF, TUNSETOFFLOAD};

const ACCESS_MODE: u64 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
const TO_READ: u64 = libc::O_RDONLY as u64;
/// Kinds of ioctl (<linux/kvm.h>, <linux/userfaultfd.h>): the second byte of its number.
const IOCTL_KIND: u64 = 0xff00;
const KVM: u64 = 0xae00;
const USERFAULTFD: u64 = 0xaa00;

/// PR_GET_AUXV of <linux/prctl.h>.
const AUXILIARY: libc::c_int = 0x4155_5856;
/// What a thread has in common with its process, and a process of its own would not.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;

const fn prctl(option: libc::c_int, why: &'static str) -> Call {
    call_if(libc::SYS_prctl, 0, INT, option as u64, why)
}

/// Every thread's: memory, locks, clocks, signals, its beginning and its end; files to be read.
pub const COMMON: &[Call] = &[
    call(libc::SYS_futex, "locks, condition variables, ends of threads"),
    call(libc::SYS_mmap, "memory; not for new code"),
    call(libc::SYS_munmap, "memory"),
    call(libc::SYS_mremap, "memory that grows"),
    call(
        libc::SYS_mprotect,
        "memory: stacks' guards, the allocator's arenas; not for new code",
    ),
    call(libc::SYS_madvise, "memory that is given back"),
    call(libc::SYS_brk, "memory"),
    prctl(
        libc::PR_SET_VMA,
        "names of mappings, if the C library is to give some",
    ),
    call(libc::SYS_exit, "the end of a thread"),
    call(libc::SYS_exit_group, "the end of the process, by a panic for one"),
    call(libc::SYS_rt_sigreturn, "the end of a signal's handler"),
    call(
        libc::SYS_rt_sigprocmask,
        "signals that are held up: KVM's requests, new threads, aborts",
    ),
    call(libc::SYS_rt_sigaction, "the abort's own"),
    call(
        libc::SYS_sigaltstack,
        "the stack on which an overflow is told, begin and end of a thread",
    ),
    call(libc::SYS_rseq, "the C library's, at the beginning of a thread"),
    call(libc::SYS_set_robust_list, "the same"),
    call(libc::SYS_arch_prctl, "the same: registers of the thread"),
    call(
        libc::SYS_sched_getaffinity,
        "the stack's place, at the beginning of a thread; the number of processors",
    ),
    call(libc::SYS_getrlimit, "the size of a stack, and of other things"),
    call_if(libc::SYS_prlimit64, 2, u64::MAX, 0, "the same: none is set"),
    call(libc::SYS_sysinfo, "memory of this host; the C library's, to sort"),
    call(libc::SYS_sched_yield, "locks that are waited for actively"),
    call(libc::SYS_restart_syscall, "a wait that a stop signal has cut"),
    call(libc::SYS_clock_gettime, "clocks, where the vDSO has none"),
    call(libc::SYS_clock_nanosleep, "pauses"),
    call(libc::SYS_getrandom, "keys of hash tables, TLS"),
    call(libc::SYS_getpid, "signals to threads of the own process"),
    call(libc::SYS_gettid, "names of threads, aborts"),
    call(libc::SYS_tgkill, "vCPUs are called out of the guest; aborts"),
    prctl(AUXILIARY, "where the vDSO lies"),
    prctl(libc::PR_SET_NAME, "the thread's name"),
    prctl(libc::PR_GET_NAME, "the thread's name, told at a breach"),
    call(libc::SYS_read, "open files: events, pipes, packets"),
    call(
        libc::SYS_write,
        "open files: events, packets, the last words of a panic",
    ),
    call(libc::SYS_close, "open files"),
    call(
        libc::SYS_fcntl,
        "open files: locks of images, copies, whether it is one (the standard library's, before it closes)",
    ),
    ioctl(libc::FIONBIO, "files and sockets that never wait"),
    call(libc::SYS_poll, "waits"),
    call(libc::SYS_epoll_wait, "waits"),
    call_if(
        libc::SYS_openat,
        2,
        ACCESS_MODE,
        TO_READ,
        "the allocator reads the number of processors and how much may be promised; random numbers",
    ),
    call_if(libc::SYS_open, 1, ACCESS_MODE, TO_READ, "the same"),
    call(libc::SYS_fstat, "sizes of files that are read"),
    call(libc::SYS_lseek, "the same; holes of images, the size of a device"),
    call_if(
        libc::SYS_clone,
        0,
        THREAD,
        THREAD,
        "a thread for queues that wait; never a process",
    ),
    call(libc::SYS_seccomp, "a thread that takes a list of its own"),
    prctl(libc::PR_SET_NO_NEW_PRIVS, "the same"),
];

/// Whoever finishes or takes a request of a device: it interrupts, sends packets, wakes others.
pub const DEVICES: &[Call] = &[
    call_if(
        libc::SYS_ioctl,
        1,
        IOCTL_KIND,
        KVM,
        "KVM: the guest, interrupts, dirty pages",
    ),
    ioctl(TUNSETOFFLOAD, "TAPs: offloads"),
    ioctl(TUNGETIFF, "TAPs: whether it is there"),
];

/// Whoever gives a copy of memory its pages.
pub const FAULTS: &[Call] = &[call_if(
    libc::SYS_ioctl,
    1,
    IOCTL_KIND,
    USERFAULTFD,
    "page faults are answered",
)];

/// Whoever has a ring of io_uring.
pub const RINGS: &[Call] = &[
    call(libc::SYS_io_uring_setup, "a ring"),
    call(
        libc::SYS_io_uring_register,
        "what the ring may be used for: no more than files that are open",
    ),
    call(libc::SYS_io_uring_enter, "a ring"),
];

/// Whoever works with files that are open.
pub const OPEN_FILES: &[Call] = &[
    call(
        libc::SYS_pread64,
        "images, straight into guest memory; records, pages that were touched",
    ),
    call(libc::SYS_pwrite64, "images, straight from guest memory; records"),
    call(libc::SYS_fallocate, "discards, zeros"),
    call(libc::SYS_fdatasync, "flushes"),
    call(libc::SYS_fsync, "flushes"),
    call(libc::SYS_fstatfs, "the file system of an image"),
    call(libc::SYS_fadvise64, "what will not be read again"),
    call(libc::SYS_ftruncate, "images and records that grow"),
];

/// Whoever speaks over a connection that stands.
pub const STREAMS: &[Call] = &[
    call(libc::SYS_recvfrom, "connections"),
    call(libc::SYS_sendto, "connections"),
    call(libc::SYS_setsockopt, "time limits of connections"),
    call(libc::SYS_getsockopt, "errors of connections"),
    call(libc::SYS_shutdown, "the end of a connection"),
    call(libc::SYS_epoll_ctl, "connections that are waited for"),
];
