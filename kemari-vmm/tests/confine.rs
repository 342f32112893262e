//! What ends a thread that makes a call which is on no list, in a process of its own:
//! this program starts itself anew.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::{io, ptr, thread};

use kemari_vmm::confine::{self, Breach, COMMON, Calls, call};

/// Set in the process that is to be confined.
const CONFINED: &str = "CONFINED";

const ALL: Calls = Calls {
    of: "the process",
    parts: &[
        COMMON,
        &[
            call(libc::SYS_getppid, "a thread may, another may not"),
            call(libc::SYS_setsockopt, "the same"),
        ],
    ],
};
const LESS: Calls = Calls {
    of: "a thread",
    parts: &[COMMON],
};

/// Runs the test of this name in a process of its own, and returns how that ended. `None`: this is the
/// process, and it is confined.
fn ended(test: &str) -> Option<Output> {
    if std::env::var_os(CONFINED).is_none() {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args(["--exact", test]).env(CONFINED, "");
        return Some(command.output().expect("it is started"));
    }
    // SAFETY: the call takes a right away from this thread, by value.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    confine::process(&ALL, Breach::Kill).expect("this kernel has seccomp");
    None
}

/// A test was run, and has passed: under another name there is none, which is no failure either.
fn has_passed(ended: &Output) {
    let was_run = String::from_utf8_lossy(&ended.stdout).contains("1 passed");
    assert!(ended.status.success() && was_run, "{ended:?}");
}

fn is_killed(ended: &Output) {
    assert_eq!(ended.status.signal(), Some(libc::SIGSYS), "{ended:?}");
}

fn ask() -> i32 {
    // SAFETY: the call has no arguments and no effect.
    unsafe { libc::getppid() }
}

#[test]
fn a_call_that_is_on_the_list_is_made() {
    if let Some(ended) = ended("a_call_that_is_on_the_list_is_made") {
        return has_passed(&ended);
    }
    assert!(ask() > 0);
    let other = thread::spawn(ask);
    assert!(other.join().expect("it does not panic") > 0);
}

#[test]
fn a_thread_has_a_shorter_list_than_its_process() {
    if let Some(ended) = ended("a_thread_has_a_shorter_list_than_its_process") {
        return is_killed(&ended);
    }
    assert!(ask() > 0);
    let shorter = thread::spawn(|| {
        confine::thread(&LESS);
        ask()
    });
    unreachable!("it went on: {:?}", shorter.join());
}

fn made(result: libc::c_long) -> bool {
    result >= 0
}

fn is_unknown(result: libc::c_long) -> bool {
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS)
}

/// Opens a file as C libraries did once.
fn open(flags: libc::c_int) -> libc::c_long {
    // SAFETY: the name is a terminated string, and the kernel only reads it.
    unsafe { libc::syscall(libc::SYS_open, c"/dev/null".as_ptr(), flags) }
}

#[test]
fn calls_that_do_the_same_are_made_and_newer_ones_are_unknown() {
    if let Some(ended) = ended("calls_that_do_the_same_are_made_and_newer_ones_are_unknown") {
        return has_passed(&ended);
    }
    /// The newest that this version of the C library's headers knows.
    const NEWER: libc::c_long = libc::SYS_mseal;
    let mut room = [0_u8; 256];
    let mut at_once = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let none = ptr::null_mut::<libc::c_void>();
    let null = c"/dev/null".as_ptr();
    assert!(made(open(libc::O_RDONLY)));
    // SAFETY: all of them read at most a terminated string, and write at most a stat into the room
    // and the time that is left.
    unsafe {
        assert!(made(libc::syscall(libc::SYS_stat, null, room.as_mut_ptr())));
        assert!(made(libc::syscall(
            libc::SYS_select,
            0,
            none,
            none,
            none,
            &raw mut at_once
        )));
        assert!(made(libc::syscall(libc::SYS_time, none)));
        for number in [NEWER, NEWER + 100, libc::SYS_clone3, libc::SYS_openat2] {
            assert!(is_unknown(libc::syscall(number, none, 0, 0, 0)), "{number}");
        }
    }
}

#[test]
fn a_file_is_opened_only_to_be_read() {
    if let Some(ended) = ended("a_file_is_opened_only_to_be_read") {
        return is_killed(&ended);
    }
    assert!(made(open(libc::O_RDONLY)));
    unreachable!("it was opened: {}", open(libc::O_WRONLY));
}

#[test]
fn new_code_and_new_processes_are_refused() {
    if let Some(ended) = ended("new_code_and_new_processes_are_refused") {
        return is_killed(&ended);
    }
    // SAFETY: a mapping of its own, at a place that the kernel chooses.
    let code = unsafe {
        libc::mmap(
            ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    // An answer, and no end: the C library tries it for plug-ins.
    if code == libc::MAP_FAILED {
        let _ = Command::new("/bin/true").status();
    }
}

/// Sets an option of a socket to 1.
fn set_option(socket: &UdpSocket, level: libc::c_int, option: libc::c_int) -> libc::c_long {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int at the pointer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result.into()
}

/// Nobody sends packets in another host's name.
#[test]
fn headers_of_packets_are_the_kernels() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    if let Some(ended) = ended("headers_of_packets_are_the_kernels") {
        return has_passed(&ended);
    }
    for (level, option) in [
        (libc::IPPROTO_IP, libc::IP_HDRINCL),
        (libc::IPPROTO_IPV6, libc::IPV6_HDRINCL),
        (libc::IPPROTO_RAW, libc::IPV6_HDRINCL),
        (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
        (libc::IPPROTO_IP, libc::IP_FREEBIND),
    ] {
        assert!(is_unknown(set_option(&socket, level, option)), "{level} {option}");
    }
    // Other levels give these numbers to other options.
    assert!(made(set_option(&socket, libc::IPPROTO_IP, libc::IP_TTL)));
    for (level, option) in [
        (libc::IPPROTO_TCP, libc::IP_HDRINCL),
        (libc::SOL_SOCKET, libc::IP_HDRINCL),
        (libc::IPPROTO_IP, libc::IPV6_HDRINCL),
    ] {
        assert!(
            !is_unknown(set_option(&socket, level, option)),
            "{level} {option}"
        );
    }
}

#[test]
fn who_may_set_no_option_may_set_none_that_is_refused_to_all() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    if let Some(ended) = ended("who_may_set_no_option_may_set_none_that_is_refused_to_all") {
        return is_killed(&ended);
    }
    let shorter = thread::spawn(move || {
        confine::thread(&LESS);
        set_option(&socket, libc::IPPROTO_IP, libc::IP_TTL)
    });
    unreachable!("it went on: {:?}", shorter.join());
}

/// Two signals that come at once are taken by two threads, and what a handler does is not on every list.
#[test]
fn a_thread_with_a_list_takes_no_signal_that_is_meant_for_the_process() {
    let blocked = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("Linux");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        u64::from_str_radix(mask.expect("its mask").trim(), 16).expect("hexadecimal")
    };
    let before = blocked();
    confine::thread(&LESS);
    let bit = |signal: i32| 1 << (signal - 1);
    let meant = bit(libc::SIGTERM) | bit(libc::SIGINT) | bit(libc::SIGHUP);
    assert_eq!(blocked(), before | meant, "{before:x} before");
}
