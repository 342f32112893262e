//! What the process as a whole asks of the kernel: the loop of its side, and the threads without a list of their own
//! (helpers, and those that help at the beginning and the end).

use kemari_vmm::confine::{COMMON, Call, Calls, DEVICES, OPEN_FILES, RINGS, STREAMS, call, call_if};

/// All of an int.
const INT: u64 = u32::MAX as u64;
/// The second byte of an ioctl's number: page faults that are answered here (<linux/userfaultfd.h>).
const IOCTL_KIND: u64 = 0xff00;
const USERFAULTFD: u64 = 0xaa00;
/// BLKGETSIZE64, BLKSSZGET (<linux/fs.h>).
const BLOCK_BYTES: u64 = 0x8008_1272;
const BLOCK_SECTOR: u64 = 0x1268;

/// Whoever opens, makes and removes files. Which ones, Landlock says.
pub const FILES: &[Call] = &[
    call(
        libc::SYS_openat,
        "images, records, the arbiter's directory, certificates, consoles, devices",
    ),
    call(libc::SYS_unlink, "files of the arbiter and of sockets"),
    call(libc::SYS_unlinkat, "the same"),
    call(libc::SYS_rename, "files that are replaced in one step"),
    call(libc::SYS_renameat, "the same"),
    call(libc::SYS_renameat2, "the same"),
    call(libc::SYS_link, "the arbiter's records"),
    call(libc::SYS_linkat, "the same"),
    call(
        libc::SYS_mkdir,
        "directories of the state and of the control socket",
    ),
    call(libc::SYS_mkdirat, "the same"),
    call(libc::SYS_getdents64, "the arbiter's directory"),
    call(libc::SYS_stat, "sizes, which file it is"),
    call(libc::SYS_lstat, "the same"),
    call(libc::SYS_statfs, "the file system of a path"),
    call(libc::SYS_access, "whether it may be used"),
    call(libc::SYS_faccessat, "the same"),
    call(libc::SYS_faccessat2, "the same"),
    call(libc::SYS_readlink, "names of files"),
    call(libc::SYS_readlinkat, "the same"),
    call(libc::SYS_chmod, "the control socket is its user's alone"),
    call(libc::SYS_fchmod, "the same"),
    call(libc::SYS_fchmodat, "the same"),
    call(libc::SYS_getcwd, "relative names"),
    call(libc::SYS_flock, "one process a host and VM; images"),
    call(libc::SYS_umask, "what is made is its user's alone"),
];

/// Whoever makes connections, or takes them.
pub const SOCKETS: &[Call] = &[
    call_if(
        libc::SYS_socket,
        0,
        INT,
        libc::AF_UNIX as u64,
        "the control socket",
    ),
    call_if(
        libc::SYS_socket,
        0,
        INT,
        libc::AF_INET as u64,
        "the link, the arbiter, names",
    ),
    call_if(libc::SYS_socket, 0, INT, libc::AF_INET6 as u64, "the same"),
    call_if(
        libc::SYS_socket,
        0,
        INT,
        libc::AF_NETLINK as u64,
        "TAPs, bridges and uplinks",
    ),
    call(libc::SYS_connect, "the link, the arbiter"),
    call(libc::SYS_bind, "the link, the control socket, netlink"),
    call(libc::SYS_listen, "the link, the control socket"),
    call(libc::SYS_accept4, "the link, the control socket"),
    call(libc::SYS_getsockname, "own addresses"),
    call(libc::SYS_getpeername, "addresses of others"),
    call(libc::SYS_sendmmsg, "names: the C library's questions"),
    call(libc::SYS_recvmmsg, "the same"),
    call(libc::SYS_epoll_create1, "waits"),
    call(libc::SYS_eventfd2, "events"),
    call(libc::SYS_getuid, "names: the C library's"),
    call(libc::SYS_geteuid, "the same"),
    call(libc::SYS_uname, "the same"),
];

/// TAPs and cards are looked at and opened.
pub const CARDS: &[Call] = &[
    call_if(libc::SYS_ioctl, 1, INT, libc::SIOCGIFFLAGS, "whether a TAP runs"),
    call_if(
        libc::SYS_ioctl,
        1,
        INT,
        libc::SIOCGIFINDEX,
        "whether there is a TAP of that name",
    ),
];

/// Disks that are block devices are looked at.
pub const BLOCK_DEVICES: &[Call] = &[
    call_if(libc::SYS_ioctl, 1, INT, BLOCK_BYTES, "the size of a block device"),
    call_if(libc::SYS_ioctl, 1, INT, BLOCK_SECTOR, "its blocks"),
];

/// What is left: the process's own affairs.
const OWN: &[Call] = &[
    call_if(
        libc::SYS_ioctl,
        1,
        INT,
        libc::TCGETS,
        "whether it is a terminal, and how it is set",
    ),
    call_if(
        libc::SYS_ioctl,
        1,
        INT,
        libc::TCSETS,
        "the terminal that is a console",
    ),
    call_if(libc::SYS_ioctl, 1, INT, libc::TCSETSW, "the same"),
    call_if(libc::SYS_ioctl, 1, INT, libc::TCSETSF, "the same"),
    call_if(libc::SYS_ioctl, 1, INT, libc::TIOCGWINSZ, "the same"),
    call_if(
        libc::SYS_ioctl,
        1,
        IOCTL_KIND,
        USERFAULTFD,
        "the memory of a drill",
    ),
    call(libc::SYS_userfaultfd, "the memory of a drill"),
    call(libc::SYS_mlock, "guest memory stays in this host's"),
    call(libc::SYS_mlock2, "the same"),
    call(libc::SYS_munlock, "memory that is given back"),
    call(libc::SYS_msync, "the trace"),
    call(libc::SYS_getpriority, "vCPUs of a drill are of low priority"),
    call(libc::SYS_setpriority, "the same"),
    call(libc::SYS_sched_setattr, "the loop's turns come soon"),
    call(libc::SYS_sched_getattr, "the same"),
    call(libc::SYS_prlimit64, "limits of the process; stacks of threads"),
    call(libc::SYS_getrlimit, "the same"),
    call(libc::SYS_setrlimit, "the same"),
    call(libc::SYS_sysinfo, "memory of this host"),
    call(libc::SYS_dup, "copies of descriptors"),
    call(libc::SYS_dup3, "the same"),
    call(libc::SYS_pipe2, "pipes between threads"),
    call(libc::SYS_socketpair, "signals on their way to a thread"),
    call(libc::SYS_select, "waits of the C library"),
    call(libc::SYS_pselect6, "the same"),
];

/// The process.
pub const PROCESS: Calls = Calls {
    of: "the process",
    parts: &[
        COMMON,
        DEVICES,
        OPEN_FILES,
        STREAMS,
        FILES,
        SOCKETS,
        CARDS,
        RINGS,
        BLOCK_DEVICES,
        OWN,
    ],
};
