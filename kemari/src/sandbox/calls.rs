//! What the process as a whole asks of the kernel: the loop of its side, and the threads without a list of
//! their own (helpers, and those that help at the beginning and the end).

use kemari_vmm::confine::{
    COMMON, Call, Calls, DEVICES, FAULTS, OPEN_FILES, RINGS, STREAMS, call, ioctl, socket,
};

/// BLKGETSIZE64, BLKSSZGET (<linux/fs.h>).
const BLOCK_BYTES: libc::c_ulong = 0x8008_1272;
const BLOCK_SECTOR: libc::c_ulong = 0x1268;

/// Whoever opens, makes and removes files. Which ones, Landlock says.
pub const FILES: &[Call] = &[
    call(
        libc::SYS_openat,
        "images, records, the arbiter's directory, certificates, consoles, devices",
    ),
    call(libc::SYS_unlink, "files of the arbiter and of sockets"),
    call(libc::SYS_rename, "files that are replaced in one step"),
    call(libc::SYS_link, "the arbiter's records"),
    call(
        libc::SYS_mkdir,
        "directories of the state and of the control socket",
    ),
    call(libc::SYS_getdents64, "the arbiter's directory"),
    call(libc::SYS_statfs, "the file system of a path"),
    call(libc::SYS_access, "whether it may be used"),
    call(libc::SYS_readlink, "names of files"),
    call(libc::SYS_chmod, "the control socket is its user's alone"),
    call(libc::SYS_getcwd, "relative names"),
    call(libc::SYS_flock, "one process a host and VM; images"),
    call(libc::SYS_umask, "what is made is its user's alone"),
];

/// Whoever makes connections, or takes them.
pub(crate) const SOCKETS: &[Call] = &[
    socket(libc::AF_UNIX, "the control socket"),
    socket(libc::AF_INET, "the link, the arbiter, names"),
    socket(libc::AF_INET6, "the same"),
    socket(libc::AF_NETLINK, "TAPs, bridges and uplinks"),
    call(libc::SYS_connect, "the link, the arbiter"),
    call(libc::SYS_bind, "the link, the control socket, netlink"),
    call(libc::SYS_listen, "the link, the control socket"),
    call(libc::SYS_accept4, "the link, the control socket"),
    call(libc::SYS_getsockname, "own addresses"),
    call(libc::SYS_getpeername, "addresses of others"),
    call(libc::SYS_epoll_create1, "waits"),
    call(libc::SYS_eventfd2, "events"),
    ioctl(libc::FIONREAD, "names: how long the answer to the C library is"),
    ioctl(
        libc::SIOCGIFINDEX,
        "whether there is a TAP of that name; the cards of addresses",
    ),
    call(libc::SYS_getuid, "names: the C library's"),
    call(libc::SYS_uname, "the same"),
];

/// TAPs and cards are looked at and opened.
pub(crate) const CARDS: &[Call] = &[ioctl(libc::SIOCGIFFLAGS, "whether a TAP runs")];

/// Whoever asks the steward for something that is to be opened.
pub(crate) const ASKING: &[Call] = &[
    call(libc::SYS_sendto, "what is asked for"),
    call(libc::SYS_recvfrom, "what was opened"),
    call(libc::SYS_setsockopt, "for how long it is waited for"),
];

/// Disks that are block devices are looked at.
pub(crate) const BLOCK_DEVICES: &[Call] = &[
    ioctl(BLOCK_BYTES, "the size of a block device"),
    ioctl(BLOCK_SECTOR, "its blocks"),
];

/// What is left: the process's own affairs.
const OWN: &[Call] = &[
    ioctl(libc::TCGETS, "whether it is a terminal, and how it is set"),
    ioctl(libc::TCSETS, "the terminal that is a console"),
    ioctl(libc::TCSETSW, "the same"),
    ioctl(libc::TCSETSF, "the same"),
    ioctl(libc::TCGETS2, "the same, with any speed"),
    ioctl(libc::TCSETS2, "the same"),
    ioctl(libc::TCSETSW2, "the same"),
    ioctl(libc::TCSETSF2, "the same"),
    ioctl(libc::TIOCGWINSZ, "the same"),
    call(libc::SYS_userfaultfd, "the memory of a drill"),
    call(libc::SYS_mlock, "guest memory stays in this host's"),
    call(libc::SYS_munlock, "memory that is given back"),
    call(libc::SYS_msync, "the trace"),
    call(libc::SYS_getpriority, "vCPUs of a drill are of low priority"),
    call(libc::SYS_setpriority, "the same"),
    call(libc::SYS_sched_setattr, "the loop's turns come soon"),
    call(libc::SYS_sched_getattr, "the same"),
    call(libc::SYS_prlimit64, "limits of the process"),
    call(libc::SYS_setrlimit, "the same"),
    call(libc::SYS_dup, "copies of descriptors"),
    call(libc::SYS_pipe2, "pipes between threads"),
    call(libc::SYS_socketpair, "signals on their way to a thread"),
];

/// The process.
pub(crate) const PROCESS: Calls = Calls {
    of: "the process",
    parts: &[
        COMMON,
        DEVICES,
        FAULTS,
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
