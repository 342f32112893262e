//! Connecting to a secondary.

use std::net::SocketAddr;
use std::sync::Arc;

use kemari_sync::PrimaryEvent;

use super::super::mailbox::Mailbox;
use super::{Input, PrimarySide};
use crate::config::Config;
use crate::link::{self, Connection, Preface, Purpose, Security, way};
use crate::threads::helpers;

/// Pause between two attempts, in milliseconds.
const RETRY_MS: u64 = 250;
/// Pause after a session that ended before the VM was protected: the next one may end for the same reason.
const FUTILE_RETRY_MS: u64 = 1000;

/// Both connections of a new session.
pub struct Connected {
    pub host: String,
    pub main: Connection,
    pub heartbeat: Connection,
}

/// Tries the other hosts in turn; a helper makes each attempt.
pub struct Connector {
    /// Without it there are no peers.
    security: Option<Security>,
    peers: Vec<(String, SocketAddr)>,
    attempts: usize,
    trying: bool,
    next_ms: u64,
    wanted: bool,
    /// Why the last attempt failed.
    trouble: Option<String>,
    /// Whether it is to be looked how large the packets are that arrive:
    /// not while a broken pair is joined again.
    looks_at_way: bool,
    /// What the last look has found in the way.
    narrow: Option<String>,
}

impl Connector {
    pub fn new(config: &Config, host: &str, security: Option<Security>) -> Self {
        let peers = config
            .peers(host)
            .map(|(name, peer)| (name.to_owned(), peer.listen.address()))
            .collect();
        Self {
            security,
            peers,
            attempts: 0,
            trying: false,
            next_ms: 0,
            wanted: false,
            trouble: None,
            looks_at_way: true,
            narrow: None,
        }
    }

    /// Whether a secondary is wanted now.
    pub fn want(&mut self, wanted: bool) {
        self.wanted = wanted && self.refuses().is_none();
    }

    /// Begins an attempt.
    pub fn attempt(&mut self, mailbox: &Arc<Mailbox<Input>>) {
        let Some(security) = self.security.clone() else {
            return;
        };
        let (host, address) = self.peers[self.attempts % self.peers.len()].clone();
        self.attempts += 1;
        self.trying = true;
        let (mailbox, looks_at_way) = (mailbox.clone(), self.looks_at_way);
        helpers::run("connect", move || {
            let outcome = connect(&security, host.clone(), address);
            let looks_at_way = looks_at_way && outcome.is_ok();
            mailbox.post(Input::Connected(outcome));
            if looks_at_way {
                let narrow = way::narrow(address).map(|narrow| narrow.sentence(&host));
                mailbox.post(Input::Way(narrow));
            }
        });
    }

    /// It was looked how large the packets are that arrive.
    pub fn on_way(&mut self, narrow: Option<String>) {
        if let Some(narrow) = narrow
            .as_ref()
            .filter(|narrow| self.narrow.as_ref() != Some(narrow))
        {
            tracing::warn!("{narrow}");
        }
        self.narrow = narrow;
    }

    /// Why large packets do not arrive.
    pub fn narrow(&self) -> Option<&str> {
        self.narrow.as_deref()
    }

    /// Why there is no secondary although one is wanted.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref().filter(|_| self.wanted)
    }

    /// Why there is nobody to connect to; `None` if there is somebody.
    pub fn refuses(&self) -> Option<&'static str> {
        match self.security {
            None => Some(
                "the configuration names neither `certificates` nor `plaintext = true`, so there is no link \
                 to protect it over",
            ),
            Some(_) if self.peers.is_empty() => Some("the configuration names no other host"),
            Some(_) => None,
        }
    }

    /// An attempt is over. One that failed is told, once and again when the reason changes: attempts go on as
    /// long as a secondary is wanted.
    fn end_attempt(&mut self, outcome: Result<Connected, String>, now_ms: u64) -> Option<Connected> {
        self.trying = false;
        self.next_ms = now_ms + RETRY_MS;
        let reason = match outcome {
            Ok(connected) => return Some(connected),
            Err(reason) => reason,
        };
        if self.trouble.as_ref() != Some(&reason) {
            tracing::warn!("{reason}");
        }
        self.trouble = Some(reason);
        None
    }

    /// A session has begun.
    pub fn note_session(&mut self) {
        self.trouble = None;
    }

    /// A session has ended. A pair that is broken is to be joined again at once, all else can wait.
    pub fn note_session_end(&mut self, is_pair: bool, now_ms: u64) {
        self.looks_at_way = !is_pair;
        if !is_pair {
            self.next_ms = now_ms + FUTILE_RETRY_MS;
        }
    }

    /// When the next attempt is due.
    pub fn due_ms(&self) -> Option<u64> {
        (self.wanted && !self.trying).then_some(self.next_ms)
    }
}

fn connect(security: &Security, host: String, address: SocketAddr) -> Result<Connected, String> {
    let session_nonce = rand::random();
    let open = |purpose| {
        link::connect(
            security,
            &host,
            address,
            &Preface {
                purpose,
                session_nonce,
            },
        )
        .map_err(|error| {
            format!(
                "no session with the secondary on {host} at {address}: {:#}",
                anyhow::Error::from(error)
            )
        })
    };
    let (main, heartbeat) = (open(Purpose::Main)?, open(Purpose::Heartbeat)?);
    Ok(Connected {
        host,
        main,
        heartbeat,
    })
}

impl PrimarySide {
    /// An attempt is over: a session begins, if one is wanted and there is none yet.
    pub(super) fn on_connected(&mut self, outcome: Result<Connected, String>) {
        let connected = self.peer.connector.end_attempt(outcome, self.clock.now_ms());
        let is_wanted = self.core.wants_peer() && self.peer.session().is_none();
        let Some(connected) = connected.filter(|_| is_wanted) else {
            return;
        };
        tracing::info!("connected to the secondary on {}", connected.host);
        self.board.note_peer(&connected.host, &connected.main);
        match self.peer.begin(connected) {
            Ok(session) => self.events.push_back(PrimaryEvent::PeerConnected { session }),
            Err(error) => tracing::error!("the link cannot be used: {error:#}"),
        }
    }
}

#[cfg(test)]
#[path = "connect_test.rs"]
mod tests;
