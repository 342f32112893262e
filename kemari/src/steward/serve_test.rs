use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::thread;

use super::protocol::{send, send_packet};
use super::*;

/// Orders for one card, whose TAP is this.
fn orders(tap: &str) -> Orders {
    Orders {
        taps: [("net0".to_owned(), tap.to_owned())].into(),
        ..Orders::default()
    }
}

fn sockets() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket")
}

fn asking(socket: OwnedFd) -> Openings {
    Openings { socket, last: 0 }
}

/// Has a steward of these orders, and its side's end.
fn with_steward(orders: Orders, test: impl FnOnce(&mut Openings)) {
    let (own, its) = sockets();
    thread::scope(|threads| {
        threads.spawn(move || serve::open_for(its, &orders));
        test(&mut asking(own));
    });
}

/// This thread, and those that it starts, get a network of their own with a TAP.
fn make_tap(name: &str) {
    // SAFETY: the call has no arguments in memory.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    let arguments = ["tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"];
    let made = Command::new("ip").args(arguments).status().expect("ip is there");
    assert!(made.success());
}

fn tap(card: &str) -> Opening {
    Opening::Tap(card.to_owned())
}

#[test]
fn a_tap_is_given_by_the_name_of_its_card_and_is_the_sides_alone() {
    make_tap("tap0");
    with_steward(orders("tap0"), |openings| {
        for _ in 0..3 {
            let opened = openings.ask(tap("net0"), OPEN_MAX).expect("an answer");
            let descriptor = opened.expect("it is opened");
            let held = TapDevice::attached("tap0", descriptor.into()).expect("a TAP");
            assert!(held.is_there());
            let refusal = openings.ask(tap("net0"), OPEN_MAX).expect("an answer");
            let busy = refusal.expect_err("it is in use");
            assert!(
                matches!(busy, Refusal::Tap(_, errno) if errno == libc::EBUSY),
                "{busy:?}"
            );
        }
    });
}

#[test]
fn what_the_configuration_does_not_name_is_refused_whatever_it_is_called() {
    make_tap("tap0");
    with_steward(orders("tap0"), |openings| {
        for name in ["net1", "tap0", "", "../net0", "/dev/net/tun", "net0\0"] {
            let refusal = openings.ask(tap(name), OPEN_MAX).expect("an answer");
            assert_eq!(refusal.expect_err("it is unknown"), Refusal::Unknown, "{name:?}");
        }
    });
    with_steward(orders("tap1"), |openings| {
        let refusal = openings.ask(tap("net0"), OPEN_MAX).expect("an answer");
        assert_eq!(refusal.expect_err("there is no such device"), Refusal::NoTap);
    });
    let answer = serve::answer(
        &orders("tap0"),
        &mut hooks::Runner::default(),
        Request::Fence {
            peer: "c".to_owned(),
            until_ns: u64::MAX,
        },
    );
    assert!(matches!(answer, Answer::Fenced(Err(why)) if why.contains("no host `c`")));
}

#[test]
fn only_block_devices_of_the_configuration_are_opened_and_never_to_be_written_if_they_are_read_alone() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let image = |path: &Path, read_only| protocol::Image {
        path: path.to_owned(),
        read_only,
    };
    let orders = Orders {
        disks: [
            ("blk0".to_owned(), image(file.path(), false)),
            ("blk1".to_owned(), image(file.path(), true)),
            ("blk2".to_owned(), image(Path::new("/dev/null"), false)),
            ("blk3".to_owned(), image(Path::new("/no/such/device"), false)),
        ]
        .into(),
        ..Orders::default()
    };
    with_steward(orders, |openings| {
        let mut refusal = |disk: &str, write| {
            let how = OpenImage {
                write,
                ..OpenImage::default()
            };
            let opened = openings.ask(Opening::disk(disk.to_owned(), how), OPEN_MAX);
            opened.expect("an answer").expect_err("it is not opened")
        };
        let path = file.path().display().to_string();
        for (disk, write, expected) in [
            ("blk0", true, Refusal::Disk(libc::ENOTBLK)),
            ("blk1", false, Refusal::Disk(libc::ENOTBLK)),
            ("blk1", true, Refusal::Disk(libc::EROFS)),
            ("blk2", false, Refusal::Disk(libc::ENOTBLK)),
            ("blk3", false, Refusal::Disk(libc::ENOENT)),
            ("blk4", false, Refusal::Unknown),
            (&path, false, Refusal::Unknown),
            ("../blk0", false, Refusal::Unknown),
        ] {
            assert_eq!(refusal(disk, write), expected, "{disk}");
        }
    });
}

#[test]
fn what_is_no_request_ends_the_service_and_nothing_else() {
    let too_long = vec![0_u8; 600];
    for rubbish in [&b"\xff"[..], b"\x01\x07\x04net0", &too_long] {
        with_steward(orders("tap0"), |openings| {
            rustix::net::send(&openings.socket, rubbish, rustix::net::SendFlags::NOSIGNAL)
                .expect("it listens");
            openings.ask(tap("net0"), OPEN_MAX).expect_err("it has ended");
        });
    }
    // On the other socket, lengths and messages that are none.
    let mut message = Vec::new();
    send(&mut message, &(1_u64, Request::Look)).expect("memory");
    assert!(receive::<(u64, Request)>(&mut &message[..]).is_ok());
    for cut in 0..message.len() {
        assert!(receive::<(u64, Request)>(&mut &message[..cut]).is_err(), "{cut}");
    }
    assert!(receive::<(u64, Request)>(&mut &[0xff; 64][..]).is_err());
}

#[test]
fn an_answer_that_came_too_late_is_let_go_and_none_is_waited_for_long() {
    let (own, its) = sockets();
    let mut openings = asking(own);
    let limit = Duration::from_millis(20);
    let silent = openings.ask(tap("net0"), limit).expect_err("nobody answers");
    assert_eq!(silent.kind(), io::ErrorKind::WouldBlock);
    // The end of this pipe that is on its way shows whether it is held.
    let (reader, writer) = io::pipe().expect("a pipe");
    let opened: Result<(), Refusal> = Ok(());
    send_packet(&its, &(1_u64, &opened), Some(writer.as_fd())).expect("it is sent");
    drop(writer);
    openings.ask(tap("net0"), limit).expect_err("nobody answers");
    let mut ends = [PollFd::new(&reader, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut ends, Some(&at_once)), Ok(1), "the writer is gone");
}

#[test]
fn a_tap_that_came_too_late_is_not_in_the_way_of_the_next_try() {
    make_tap("tap0");
    let (own, its) = sockets();
    let late = kemari_vmm::virtio::tap::attach("tap0").expect("it is free");
    let opened: Result<(), Refusal> = Ok(());
    send_packet(&its, &(0_u64, &opened), Some(late.as_fd())).expect("it is sent");
    drop(late);
    let orders = orders("tap0");
    thread::scope(|threads| {
        threads.spawn(move || serve::open_for(its, &orders));
        let answer = asking(own).ask(tap("net0"), OPEN_MAX).expect("an answer");
        answer.expect("it is free again");
    });
}

fn line() -> (Line, UnixStream) {
    let (socket, its) = UnixStream::pair().expect("a socket");
    (Line::new(socket), its)
}

#[test]
fn what_was_sent_is_known_from_what_was_not_and_a_late_answer_is_none_to_the_next_question() {
    let (mut line, its) = line();
    let limit = Duration::from_millis(20);
    let silence = line.ask(Request::Hooks, limit).expect_err("nobody answers");
    assert!(silence.was_sent, "{silence:?}");
    let said = |number: u64, what: &str| (number, Answer::Looked(Err(what.to_owned())));
    send(&mut &its, &said(1, "late")).expect("it is sent");
    send(&mut &its, &said(2, "in time")).expect("it is sent");
    let answer = line.ask(Request::Look, OPEN_MAX).expect("an answer");
    assert!(
        matches!(&answer, Answer::Looked(Err(what)) if what == "in time"),
        "{answer:?}"
    );
    drop(its);
    let silence = line.ask(Request::Hooks, limit).expect_err("it is gone");
    assert!(!silence.was_sent, "{silence:?}");
}

#[test]
fn behind_a_part_of_a_request_nothing_is_sent() {
    let (mut line, its) = line();
    let limit = Duration::from_millis(20);
    // One that no buffer takes as a whole.
    let long = Request::Fence {
        peer: "b".repeat(4 << 20),
        until_ns: 0,
    };
    let silence = line.ask(long, limit).expect_err("nobody reads");
    assert!(
        !silence.was_sent && silence.reason.contains("cut off"),
        "{silence:?}"
    );
    its.set_read_timeout(Some(OPEN_MAX)).expect("a socket");
    std::io::copy(&mut &its, &mut std::io::sink()).expect("what has come, and the end");
    line.ask(Request::Look, limit).expect_err("it has ended");
    let (openings, _its_openings) = sockets();
    let steward = Steward::with(line.socket, openings).expect("descriptors");
    assert!(steward.has_ended());

    // Of one that finds no room at all nothing is sent, and room may come.
    let (mut line, its) = self::line();
    line.socket.set_nonblocking(true).expect("a socket");
    while (&line.socket).write(&[0; 4096]).is_ok() {}
    while (&line.socket).write(&[0]).is_ok() {}
    line.socket.set_nonblocking(false).expect("a socket");
    let silence = line.ask(Request::Look, limit).expect_err("nobody reads");
    assert!(
        !silence.was_sent && !silence.reason.contains("cut off"),
        "{silence:?}"
    );
    its.set_nonblocking(true).expect("a socket");
    while matches!((&its).read(&mut [0; 4096]), Ok(1..)) {}
    let silence = line.ask(Request::Look, limit).expect_err("nobody answers");
    assert!(silence.was_sent, "{silence:?}");
}

#[test]
fn a_steward_that_has_ended_is_noticed() {
    for number in 0..2 {
        let (socket, its) = UnixStream::pair().expect("a socket");
        let (openings, its_openings) = sockets();
        let steward = Steward::with(socket, openings).expect("descriptors");
        assert!(!steward.has_ended());
        let mut ends = [OwnedFd::from(its), its_openings].map(Some);
        ends[number] = None;
        assert!(steward.has_ended(), "by its socket {number}");
    }
}
