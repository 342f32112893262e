//! Whoever else comes to the secondary's port: rubbish, half-open connections, other versions, other VMs.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kemari::link::{Connection, LinkError, Preface, Purpose, connect};
use kemari_sync::Incarnation;
use kemari_sync::wire::{Hello, Message, PROTOCOL_VERSION, decode, encode};
use lab::{Netns, replication_address};

use crate::support::{Host, LINK_PORT, PATIENCE, Plan, play};

/// Connections that are opened and say nothing.
const MUTE: usize = 5;

#[test]
fn bad_peers_are_refused_and_the_right_pair_is_unaffected() {
    play(&Plan::default(), |scene| {
        scene.secondary(Host::B)?;
        scene.await_status("listening", Host::B, |_| true)?;
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
    let (main, _heartbeat) = session(netns)?;
    let mut main = Greeting(main);
    ensure!(main.say(vec![0x5a; 64]).is_err(), "rubbish was answered");
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
        term: 1,
        peer: None,
        last: None,
    }
}

/// Both connections of a new session.
fn session(netns: &Netns) -> Result<(Connection, Connection)> {
    static NONCE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1000);
    let session_nonce = u128::from(NONCE.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let open = |purpose| {
        netns.run(|| {
            connect(
                secondary(),
                &Preface {
                    purpose,
                    session_nonce,
                },
            )
        })
    };
    Ok((open(Purpose::Main)??, open(Purpose::Heartbeat)??))
}

/// Greets the secondary, and returns why it refuses.
fn greet(netns: &Netns, hello: Hello) -> Result<String> {
    let (main, _heartbeat) = session(netns)?;
    let mut bytes = Vec::new();
    encode(&Message::Hello(hello), &mut bytes);
    match Greeting(main).say(bytes)? {
        Message::Refuse(reason) => Ok(reason),
        other => bail!("it was not refused, but answered with {:?}", other.kind()),
    }
}

struct Greeting(Connection);

impl Greeting {
    /// Says something and waits for an answer. The end of the connection is an error.
    fn say(&mut self, bytes: Vec<u8>) -> Result<Message> {
        self.0.send(bytes)?;
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let answer = self.0.receive(|header, body| {
                header.check(body)?;
                Ok::<_, LinkError>(Some(decode(header.kind, body)?))
            });
            match answer.context("the secondary ended the session")? {
                Some(message) => return Ok(message),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        bail!("the secondary did not answer")
    }
}
