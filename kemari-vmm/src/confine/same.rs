//! Calls that do the same: which of them a C library makes is a matter of its version, of how it is linked,
//! of the kernel. So whoever may make one of them may make all. A list names one, and means its whole line.

use libc::c_long;

/// A line each. Whose arguments say more than those of others is in none, and stands on lists by itself.
pub(super) const SAME: &[&[c_long]] = &[
    // Files that are open.
    &[libc::SYS_read, libc::SYS_readv],
    &[libc::SYS_write, libc::SYS_writev],
    &[libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2],
    &[libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2],
    &[libc::SYS_dup, libc::SYS_dup2, libc::SYS_dup3],
    &[libc::SYS_pipe, libc::SYS_pipe2],
    &[libc::SYS_eventfd, libc::SYS_eventfd2],
    // Files by their names. What only lists of all files have is by file, too: chmod, getdents.
    &[libc::SYS_open, libc::SYS_openat],
    &[
        libc::SYS_stat,
        libc::SYS_fstat,
        libc::SYS_lstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
    ],
    &[libc::SYS_access, libc::SYS_faccessat, libc::SYS_faccessat2],
    &[libc::SYS_readlink, libc::SYS_readlinkat],
    &[libc::SYS_unlink, libc::SYS_unlinkat, libc::SYS_rmdir],
    &[libc::SYS_rename, libc::SYS_renameat, libc::SYS_renameat2],
    &[libc::SYS_link, libc::SYS_linkat],
    &[libc::SYS_mkdir, libc::SYS_mkdirat],
    &[libc::SYS_chmod, libc::SYS_fchmod, libc::SYS_fchmodat],
    &[libc::SYS_getdents, libc::SYS_getdents64],
    // Waits and clocks.
    &[
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_select,
        libc::SYS_pselect6,
    ],
    &[
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
    ],
    &[libc::SYS_epoll_create, libc::SYS_epoll_create1],
    &[libc::SYS_nanosleep, libc::SYS_clock_nanosleep],
    &[libc::SYS_time, libc::SYS_gettimeofday, libc::SYS_clock_gettime],
    // Connections.
    &[libc::SYS_accept, libc::SYS_accept4],
    &[libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_recvmmsg],
    &[libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg],
    // The process itself.
    &[libc::SYS_mlock, libc::SYS_mlock2],
    &[libc::SYS_tkill, libc::SYS_tgkill],
    &[
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
    ],
];

/// The call, and all that do the same.
pub(super) fn as_one(number: &c_long) -> &[c_long] {
    let line = SAME.iter().find(|line| line.contains(number));
    line.map_or(std::slice::from_ref(number), |line| *line)
}
