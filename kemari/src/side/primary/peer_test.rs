//! Sessions of a primary, one after the other, and what is heard in them.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use kemari_sync::wire::{CommitId, encode};

use super::super::rig::{connected, until};
use super::*;
use crate::config::Config;
use crate::link::Security;

/// Longer than it takes to find out that something is there.
const SHORT_MS: u64 = 50;
const LONG_MS: u64 = 10_000;

/// Nobody yet.
fn peer() -> Peer {
    let config = Config::parse(include_str!("../../../../docs/example.toml"), "test").expect("the example");
    let connector = Connector::new(&config, "a", Some(Security::Plaintext));
    Peer::new(connector, Waiter::new().expect("something to wait at"))
}

fn begin(peer: &mut Peer) -> (SessionId, [TcpStream; 2]) {
    let (connected, ends) = connected();
    (peer.begin(connected).expect("it can be waited for"), ends)
}

fn frame() -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&Message::Ack(CommitId { term: 1, epoch: 1 }), &mut bytes);
    bytes
}

/// Reads from the main connection until something has come of it: how many messages.
fn receive(peer: &mut Peer, clock: Clock) -> Result<usize, LinkError> {
    let mut outcome = Ok(0);
    until("something comes", || {
        let mut told = 0;
        let result = peer.receive(Channel::Main, clock, |_, _| Ok(false), |_, _| told += 1);
        outcome = result.map(|()| told);
        !matches!(outcome, Ok(0))
    });
    outcome
}

#[test]
fn every_session_has_a_number_of_its_own_and_what_is_for_one_that_has_ended_reaches_no_other() {
    let mut peer = peer();
    let (first, _first_ends) = begin(&mut peer);
    assert!(peer.end(first).is_some() && peer.end(first).is_none());
    let (second, _second_ends) = begin(&mut peer);
    assert_ne!(first, second);
    assert!(peer.end(first).is_none(), "that one is over");
    let mut reached = Vec::new();
    for session in [first, second] {
        peer.on_link(session, |session| reached.push(session.id));
    }
    assert_eq!(reached, [second]);
}

#[test]
fn a_secondary_was_heard_when_its_last_message_came() {
    let mut peer = peer();
    let clock = Clock::start();
    assert_eq!(peer.silent_ms(clock.now_ms()), None);
    let (_, [mut main, _heartbeat]) = begin(&mut peer);
    until("some time is over", || clock.now_ms() > 0);
    peer.heard_ms = Some(0);
    let before_ms = clock.now_ms();
    main.write_all(&frame()).expect("a connection");
    assert!(matches!(receive(&mut peer, clock), Ok(1)));
    assert!(peer.heard_ms >= Some(before_ms));
}

#[test]
fn a_frame_that_was_changed_on_its_way_ends_the_session_and_nothing_of_it_is_heard() {
    let mut peer = peer();
    let clock = Clock::start();
    let (_, [mut main, _heartbeat]) = begin(&mut peer);
    let mut bytes = frame();
    *bytes.last_mut().expect("a frame") ^= 1;
    main.write_all(&bytes).expect("a connection");
    assert!(receive(&mut peer, clock).is_err());
    assert_eq!(peer.silent_ms(clock.now_ms()), None);
}

#[test]
fn while_a_vcpu_looks_for_an_ack_heartbeats_wake_the_loop_and_the_ack_does_not() {
    let mut peer = peer();
    let (_, [mut main, mut heartbeat]) = begin(&mut peer);
    let wait = |peer: &Peer, limit_ms| {
        let begun = Instant::now();
        peer.waiter().wait(Some(limit_ms));
        begun.elapsed() >= Duration::from_millis(limit_ms)
    };
    main.write_all(&frame()).expect("a connection");
    peer.watch(true);
    assert!(!wait(&peer, LONG_MS));
    peer.watch(false);
    assert!(wait(&peer, SHORT_MS), "another thread reads it");
    heartbeat.write_all(&frame()).expect("a connection");
    assert!(!wait(&peer, LONG_MS));
}
