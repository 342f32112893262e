//! One question to a host: what do you hold of this VM?

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kemari_sync::PeerWord;
use kemari_sync::wire::{Message, decode};

use super::wait::wait;
use crate::link::{LinkError, Preface, Purpose, Security, connect};

/// Longest time for the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the secondary on `host`, at `address`.
pub fn ask_peer(security: &Security, host: &str, address: SocketAddr) -> PeerWord {
    match ask(security, host, address) {
        Ok(Some(last)) => PeerWord::Holds(format!("epoch {} of term {}", last.epoch, last.term)),
        Ok(None) => PeerWord::HoldsNothing,
        Err(error) => PeerWord::Silent(format!("{:#}", anyhow::Error::from(error))),
    }
}

fn ask(
    security: &Security,
    host: &str,
    address: SocketAddr,
) -> Result<Option<kemari_sync::wire::CommitId>, LinkError> {
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
    while Instant::now() < deadline {
        let answer = connection.receive(|header, body| {
            header.check(body)?;
            match decode(header.kind, body)? {
                Message::Welcome(welcome) => Ok(Some(welcome.last)),
                other => Err(LinkError::Refused(format!("it answered with {:?}", other.kind()))),
            }
        })?;
        if let Some(last) = answer {
            return Ok(last);
        }
        wait(&[], [&connection], 100);
    }
    Err(LinkError::Refused("no answer came".into()))
}
