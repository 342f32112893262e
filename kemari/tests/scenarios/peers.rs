//! Whoever else comes to the secondary's port: rubbish, half-open connections, other versions, other VMs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use kemari::control::Role;
use kemari::link::{PREFACE_BYTES, Preface, Purpose};
use kemari_sync::Incarnation;
use kemari_sync::wire::{
    FrameHeader, HEADER_BYTES, Heartbeat, Hello, MAGIC, Message, PROTOCOL_VERSION, decode, encode,
};
use lab::{Netns, replication_address};

use crate::support::{Host, LINK_PORT, PATIENCE, Plan, play};

/// Connections that are opened and say nothing.
const MUTE: usize = 5;
/// Whole sessions that say nothing: more than a secondary keeps.
const MUTE_SESSIONS: usize = 4;
/// Heartbeats of a stranger: more than are judged together.
const HEARTBEATS: usize = 25;

#[test]
fn bad_peers_are_refused_and_the_right_pair_is_unaffected() {
    play(&Plan::default(), |scene| {
        scene.secondary(Host::B)?;
        scene.await_status("listening", Host::B, |status| status.role == Role::Secondary)?;
        let netns = scene.net.host(Host::A.number()).netns().clone();
        let _mute = molest(&netns)?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let before = scene.await_protected(Host::A)?;
        let clients = scene.clients()?;
        let _mute = molest(&netns)?;
        let reason = greet(&netns, hello("scene", PROTOCOL_VERSION))?;
        ensure!(reason.contains("the configurations differ"), "{reason}");
        clients.go_on()?;
        let after = scene.await_protected(Host::A)?;
        ensure!(
            after.term == before.term,
            "the pair parted: term {} after {}",
            after.term,
            before.term
        );
        ensure!(after.counters.syncs_failed == 0, "{after}");
        ensure!(
            scene.log(Host::B).contains("is no Kemari of this version"),
            "the rubbish was not reported"
        );
        scene.kill(Host::A)?;
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn sessions_that_say_nothing_keep_nobody_out_and_a_strangers_words_are_not_the_primarys() {
    play(&Plan::default(), |scene| {
        scene.secondary(Host::B)?;
        scene.await_status("listening", Host::B, |status| status.role == Role::Secondary)?;
        let netns = scene.net.host(Host::A.number()).netns().clone();
        let _mute = (0..MUTE_SESSIONS)
            .map(|_| Stranger::connect(&netns))
            .collect::<Result<Vec<_>>>()?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        let mut bytes = Vec::new();
        let heartbeat = Heartbeat {
            sequence: 1,
            epoch: 0,
            trouble: None,
            readiness: None,
            wall_clock_ms: u64::MAX >> 1,
            mtus: Vec::new(),
        };
        encode(&Message::Heartbeat(heartbeat), &mut bytes);
        for _ in 0..HEARTBEATS {
            let said = Stranger::connect(&netns)?.say(&bytes);
            ensure!(said.is_err(), "a stranger's heartbeat was answered");
        }
        let clients = scene.clients()?;
        clients.go_on()?;
        scene.await_protected(Host::A)?;
        let log = scene.log(Host::B);
        ensure!(
            !log.contains("wall clock is"),
            "a stranger's clock was taken for the primary's"
        );
        scene.kill(Host::A)?;
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn a_primary_with_another_configuration_is_told_so_and_runs_alone() {
    play(&Plan::default(), |scene| {
        let other = Plan {
            memory_mib: 96,
            ..Plan::default()
        };
        scene.write_config("other.toml", &other)?;
        scene.start(Host::B, &["secondary"], "other.toml", &[])?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        scene.await_log(Host::A, "the secondary refused: the configurations differ")?;
        let clients = scene.clients()?;
        scene.await_alone(Host::A)?;
        scene.kill(Host::B)?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        clients.go_on()?;
        clients.finish()
    });
}

/// Everything that is not even a greeting of the right kind. The result keeps mute connections open.
fn molest(netns: &Netns) -> Result<Vec<TcpStream>> {
    let open = || -> Result<TcpStream> { Ok(netns.run(|| TcpStream::connect(secondary()))??) };
    open()?.write_all(b"GET / HTTP/1.1\r\nHost: kemari\r\n\r\n and more bytes than a greeting has")?;
    open()?.write_all(&[0xa5; 4096])?;
    // Half of a greeting, then nothing; and half of a session.
    let mut half = open()?;
    half.write_all(
        &Preface {
            purpose: Purpose::Main,
            session_nonce: 1,
        }
        .encode()[..20],
    )?;
    let mut kept = (0..MUTE).map(|_| open()).collect::<Result<Vec<_>>>()?;
    kept.push(half);
    // A whole session whose first frame is rubbish.
    ensure!(
        Stranger::connect(netns)?.say(&[0x5a; 64]).is_err(),
        "rubbish was answered"
    );
    for (hello, why) in [
        (
            hello("another", PROTOCOL_VERSION),
            "this secondary is for VM scene",
        ),
        (
            hello("scene", PROTOCOL_VERSION + 1),
            "run the same version of Kemari on both hosts",
        ),
    ] {
        let reason = greet(netns, hello)?;
        ensure!(reason.contains(why), "`{reason}` does not say `{why}`");
    }
    Ok(kept)
}

fn secondary() -> SocketAddr {
    (replication_address(Host::B.number()), LINK_PORT).into()
}

/// A greeting of somebody with another configuration.
fn hello(vm: &str, protocol: u32) -> Hello {
    Hello {
        protocol,
        vm: vm.to_owned(),
        config_digest: 1,
        incarnation: Incarnation {
            host: "stranger".into(),
            nonce: 99,
        },
        session: 1,
        term: 1,
        peer: None,
        last: None,
    }
}

/// Somebody at the secondary's port, past the program's own code for connections.
struct Stranger {
    main: TcpStream,
    _heartbeat: TcpStream,
    received: Vec<u8>,
}

impl Stranger {
    /// Opens both connections of a new session.
    fn connect(netns: &Netns) -> Result<Self> {
        static NONCE: AtomicU64 = AtomicU64::new(1000);
        let session_nonce = u128::from(NONCE.fetch_add(1, Ordering::Relaxed));
        let open = |purpose| -> Result<TcpStream> {
            let mut stream = netns.run(|| TcpStream::connect(secondary()))??;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(
                &Preface {
                    purpose,
                    session_nonce,
                }
                .encode(),
            )?;
            Ok(stream)
        };
        Ok(Self {
            main: open(Purpose::Main)?,
            _heartbeat: open(Purpose::Heartbeat)?,
            received: Vec::new(),
        })
    }

    /// Says something and waits for an answer. The end of the connection is an error.
    fn say(&mut self, bytes: &[u8]) -> Result<Message> {
        self.main.write_all(bytes)?;
        loop {
            if let Some(message) = self.message()? {
                return Ok(message);
            }
            let mut part = [0; 1024];
            let count = self
                .main
                .read(&mut part)
                .context("the secondary did not answer")?;
            ensure!(count > 0, "the secondary ended the session");
            self.received.extend_from_slice(&part[..count]);
        }
    }

    /// The first message received, behind the echo of the greeting if there is one.
    fn message(&self) -> Result<Option<Message>> {
        let greeted = self
            .received
            .first_chunk()
            .is_some_and(|bytes| Preface::decode(bytes).is_ok());
        let rest = &self.received[if greeted { PREFACE_BYTES } else { 0 }..];
        if !rest.starts_with(&MAGIC.to_le_bytes()) {
            return Ok(None);
        }
        let Some((header, body)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::parse(header)?;
        let Some(body) = body.get(..header.length) else {
            return Ok(None);
        };
        header.check(body)?;
        Ok(Some(decode(header.kind, body)?))
    }
}

/// Greets the secondary, and returns why it refuses.
fn greet(netns: &Netns, hello: Hello) -> Result<String> {
    let mut bytes = Vec::new();
    encode(&Message::Hello(hello), &mut bytes);
    match Stranger::connect(netns)?.say(&bytes)? {
        Message::Refuse(reason) => Ok(reason),
        other => bail!("it was not refused, but answered with {:?}", other.kind()),
    }
}
