use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

use kemari_sync::wire::{Goodbye, encode};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn pair() -> (Connection, Connection) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    (
        Connection::dial(client, &Security::Plaintext, "b").unwrap(),
        Connection::accept(accepted, &Security::Plaintext).unwrap(),
    )
}

fn goodbye() -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&Message::Goodbye(Goodbye::Stopped), &mut bytes);
    bytes
}

/// The other end is there and says nothing, so that nothing else tells that the connection is of no use.
#[test]
fn that_nothing_can_be_sent_any_more_is_told_once_all_was_read() {
    let (mut here, mut there) = pair();
    there.send(goodbye());
    here.transport.socket().shutdown(Shutdown::Write).unwrap();
    here.send(goodbye());
    // What was said is there.
    here.transport.socket().set_nonblocking(false).unwrap();
    assert_eq!(here.transport.socket().peek(&mut [0]).unwrap(), 1);
    here.transport.socket().set_nonblocking(true).unwrap();
    assert!(matches!(here.receive(|_, _| Ok(Some(()))), Ok(Some(()))));
    let end = here.receive(|_, _| Ok(Some(())));
    let is_of_sending =
        matches!(&end, Err(LinkError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe);
    assert!(is_of_sending, "{end:?}");
}

#[test]
fn what_waits_for_who_is_refused_is_sent_before_the_end() {
    let (mut here, mut there) = pair();
    here.outgoing.push_back(goodbye().into());
    here.refuse();
    let until = Instant::now() + LIMIT;
    let mut heard = 0;
    let end = loop {
        assert!(Instant::now() < until, "it is not closed");
        match there.receive(|_, _| Ok(Some(()))) {
            Ok(found) => heard += found.iter().count(),
            Err(error) => break error,
        }
    };
    assert_eq!(heard, 1);
    assert!(matches!(end, LinkError::Closed), "{end:?}");
}

#[test]
fn what_is_cut_is_the_end_of_what_is_to_be_sent_yet() {
    let mut outgoing = Outgoing::after(vec![1, 2, 3, 4, 5], 2);
    outgoing.truncate(2);
    assert_eq!(outgoing.rest(), [3, 4]);
}
