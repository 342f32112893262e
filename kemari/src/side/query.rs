//! One question to a host: what do you hold of this VM?

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kemari_sync::PeerWord;
use kemari_sync::wire::{About, CommitId, Message, Welcome};

use super::wait::wait;
use crate::link::{LinkError, Preface, Purpose, Security, connect, decode};

/// Longest time for the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the secondary on `host`, at `address`.
pub fn ask_peer(security: &Security, host: &str, address: SocketAddr) -> PeerWord {
    match ask(security, host, address, false).map(|answer| answer.holds) {
        Ok(Some(last)) => PeerWord::Holds(format!("epoch {} of term {}", last.epoch, last.term)),
        Ok(None) => PeerWord::HoldsNothing,
        Err(error) => PeerWord::Silent(format!("{:#}", anyhow::Error::from(error))),
    }
}

/// What a secondary answers to a question.
pub struct PeerAnswer {
    /// What it holds of the VM.
    pub holds: Option<CommitId>,
    /// What its host is like; `None`: it does not say.
    pub about: Option<About>,
}

/// Asks the secondary on `host`, at `address`, what it holds and what its host is like.
pub fn question(security: &Security, host: &str, address: SocketAddr) -> Result<PeerAnswer, LinkError> {
    ask(security, host, address, true)
}

fn ask(security: &Security, host: &str, address: SocketAddr, is_long: bool) -> Result<PeerAnswer, LinkError> {
    let mut connection = connect(
        security,
        host,
        address,
        &Preface {
            purpose: Purpose::Query,
            session_nonce: 0,
        },
    )?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut welcome: Option<Welcome> = None;
    while Instant::now() < deadline {
        let answer = connection.receive(|header, body| {
            header.check(body)?;
            Ok(Some(decode(header.kind, body)?))
        });
        match (answer, &welcome) {
            (Ok(Some(Message::Welcome(said))), None) if is_long => welcome = Some(said),
            (Ok(Some(Message::Welcome(said))), None) => return Ok(answered(&said, None)),
            (Ok(Some(Message::About(about))), Some(said)) => return Ok(answered(said, Some(about))),
            (Ok(Some(other)), _) => {
                return Err(LinkError::Refused(format!("it answered with {:?}", other.kind())));
            }
            (Ok(None), _) => wait(&[], [&connection], Some(100)),
            // It has said what it holds, and no more.
            (Err(_), Some(said)) => return Ok(answered(said, None)),
            (Err(error), None) => return Err(error),
        }
    }
    match welcome {
        Some(said) => Ok(answered(&said, None)),
        None => Err(LinkError::Refused("no answer came".into())),
    }
}

fn answered(welcome: &Welcome, about: Option<About>) -> PeerAnswer {
    PeerAnswer {
        holds: welcome.last,
        about,
    }
}
