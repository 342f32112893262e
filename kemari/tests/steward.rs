//! The steward as its side has it: a process of its own, at the other end of two sockets.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// Longest wait for a process that has only to go on.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// Bits of <linux/capability.h>.
const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_NET_ADMIN: u64 = 1 << 12;

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// A length, and no fence, TAP, disk or hook.
const NO_ORDERS: &[u8] = &[4, 0, 0, 0, 0, 0, 0, 0];
/// Whether a fence could be started, under the number 1; there is none, so nothing is in its way.
const LOOK: &[u8] = &[2, 0, 0, 0, 1, 1];
const LOOKED: &[u8] = &[3, 0, 0, 0, 1, 1, 0];

/// A steward, and its side's ends of both sockets.
struct Steward {
    process: Child,
    line: UnixStream,
    openings: OwnedFd,
}

impl Steward {
    /// One that has its orders, and has given up what they do not take.
    fn with(orders: &[u8]) -> Self {
        let (mut line, its) = UnixStream::pair().expect("a socket");
        let (openings, its_openings) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket");
        let process = Command::new(env!("CARGO_BIN_EXE_kemari"))
            .arg("steward")
            .stdin(OwnedFd::from(its))
            .stdout(its_openings)
            .spawn()
            .expect("it is started");
        let limit = Some(WAIT_MAX);
        line.set_read_timeout(limit).expect("a socket");
        let timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&openings, timeout, limit).expect("a socket");
        line.write_all(&[orders, LOOK].concat()).expect("it listens");
        let mut answer = [0; LOOKED.len()];
        line.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, LOOKED);
        Self {
            process,
            line,
            openings,
        }
    }

    /// What the kernel tells of the process.
    fn told(&self, what: &str) -> String {
        let path = format!("/proc/{}/{what}", self.process.id());
        fs::read_to_string(path).expect("it lives")
    }

    /// Says what is no request where it listens to be asked for fences.
    fn end_line(&mut self) {
        self.line.write_all(&[0xff; 4]).expect("it listens");
    }

    /// Where it is asked for what is to be opened.
    fn end_openings(&mut self) {
        send(&self.openings, &[0xff; 8], SendFlags::NOSIGNAL).expect("it listens");
    }

    /// Waits until the other end of the socket is gone.
    fn line_has_ended(&mut self) {
        let read = self.line.read(&mut [0; 8]).expect("its end is seen");
        assert_eq!(read, 0);
    }

    /// The same.
    fn openings_have_ended(&mut self) {
        let (read, _) = recv(&self.openings, &mut [0; 8][..], RecvFlags::empty()).expect("its end is seen");
        assert_eq!(read, 0);
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn half_a_steward_that_has_ended_is_noticed() {
    let mut steward = Steward::with(NO_ORDERS);
    steward.end_openings();
    steward.openings_have_ended();
    steward.line.write_all(LOOK).expect("the other half listens");
    steward
        .line
        .read_exact(&mut [0; LOOKED.len()])
        .expect("the other half serves");

    let mut steward = Steward::with(NO_ORDERS);
    steward.end_line();
    steward.line_has_ended();
    steward.end_openings();
    steward.openings_have_ended();
    let status = steward.process.wait().expect("it was started");
    assert!(status.success(), "both halves have ended: {status}");
}

#[test]
fn each_socket_is_held_once_and_by_no_program_that_is_started() {
    let steward = Steward::with(NO_ORDERS);
    let open = fs::read_dir(format!("/proc/{}/fd", steward.process.id())).expect("it lives");
    let sockets: Vec<_> = open
        .map(|entry| entry.expect("it lives"))
        .filter(|entry| {
            let target = fs::read_link(entry.path());
            target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        })
        .map(|entry| entry.file_name().into_string().expect("a number"))
        .filter(|number| number != "2")
        .collect();
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    for number in sockets {
        let told = steward.told(&format!("fdinfo/{number}"));
        let flags = told.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.expect("flags").trim(), 8).expect("a number");
        assert_ne!(flags & libc::O_CLOEXEC, 0, "{number}: {told}");
    }
}

/// Orders without fences and TAPs, for one disk with a path of less than 128 bytes that is written to.
fn orders_for_disk(path: &Path) -> Vec<u8> {
    let path = path.to_str().expect("a path of a test");
    let id = "blk0";
    let mut body = vec![0, 0, 1, id.len() as u8];
    body.extend(id.as_bytes());
    body.push(path.len() as u8);
    body.extend(path.as_bytes());
    // To be written to; and no hooks.
    body.extend([0, 0]);
    let length = u32::try_from(body.len()).expect("it is short");
    [&length.to_le_bytes()[..], &body].concat()
}

/// A name for a block device, whether there is such a device or not.
fn make_device(path: &Path, owner: u32) {
    let made = Command::new("mknod")
        .arg(path)
        .args(["-m", "600", "b", "7", "9999"])
        .status();
    assert!(made.expect("mknod is there").success());
    std::os::unix::fs::chown(path, Some(owner), Some(owner)).expect("this is root");
}

#[test]
fn a_capability_to_open_devices_stays_only_for_a_device_that_takes_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name| directory.path().join(name);
    make_device(&path("roots"), 0);
    make_device(&path("nobodys"), NOBODY);
    fs::write(path("file"), "no device").expect("a file");
    std::os::unix::fs::chown(path("file"), Some(NOBODY), None).expect("this is root");
    for (name, capabilities) in [
        ("roots", CAP_NET_ADMIN),
        ("nobodys", CAP_NET_ADMIN | CAP_DAC_OVERRIDE),
        ("file", CAP_NET_ADMIN),
        ("missing", CAP_NET_ADMIN),
    ] {
        let steward = Steward::with(&orders_for_disk(&path(name)));
        let status = steward.told("status");
        for set in ["CapPrm", "CapEff"] {
            let line = format!("{set}:\t{capabilities:016x}\n");
            assert!(status.contains(&line), "{name}: it lacks {line:?}: {status}");
        }
    }
}
