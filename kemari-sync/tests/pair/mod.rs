//! A primary on `a` and a secondary on `b`: what each is, the record before they are a pair,
//! and what reaches them.

use std::collections::VecDeque;

use kemari_sync::wire::{Commit, Message};
use kemari_sync::{
    CopyLimits, Epoch, Incarnation, Mode, OnSecondaryLoss, Phase, Primary, PrimaryAction, PrimaryConfig,
    PrimaryEvent, Record, Reign, Secondary, SecondaryAction, SecondaryConfig, SecondaryEvent, Timing,
};

/// The id of the store at first.
pub(crate) const STORE: u128 = 9;

pub(crate) fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.to_owned(),
        nonce,
    }
}

pub(crate) fn alone() -> Record {
    Record {
        vm: "vm".to_owned(),
        store: STORE,
        term: 1,
        base: 1,
        owner: host("a", 1),
        peer: None,
        phase: Phase::Acting,
        work: Default::default(),
    }
}

pub(crate) fn primary(mode: Mode) -> Primary {
    let config = PrimaryConfig {
        me: host("a", 1),
        config_digest: 7,
        mode,
        timing: Timing::default(),
        copy: CopyLimits::default(),
        on_secondary_loss: OnSecondaryLoss::Continue,
        protect: true,
        sources: Vec::new(),
    };
    let reign = Reign {
        record: alone(),
        last_epoch: 0,
    };
    Primary::new(config, reign, 0)
}

pub(crate) fn secondary(fence_ms_max: Option<u64>) -> Secondary {
    let config = SecondaryConfig {
        me: host("b", 2),
        vm: "vm".to_owned(),
        config_digest: 7,
        timing: Timing::default(),
        fence_ms_max,
        staging_pages_max: 100,
    };
    Secondary::new(config, 0)
}

/// Both, and what is about to reach them.
pub(crate) struct Sides {
    pub a: Primary,
    pub b: Secondary,
    pub now_ms: u64,
    pub to_a: VecDeque<PrimaryEvent>,
    pub to_b: VecDeque<SecondaryEvent>,
}

/// What a side wants done.
pub(crate) enum Wanted {
    ByA(Vec<PrimaryAction>),
    ByB(Vec<SecondaryAction>),
}

impl Sides {
    /// They are being connected.
    pub(crate) fn new(a: Primary, b: Secondary) -> Self {
        Self {
            a,
            b,
            now_ms: 0,
            to_a: VecDeque::from([PrimaryEvent::PeerConnected { session: 1 }]),
            to_b: VecDeque::new(),
        }
    }

    /// One event reaches the side that it is for; `None`: there is none.
    pub(crate) fn step(&mut self) -> Option<Wanted> {
        if let Some(event) = self.to_a.pop_front() {
            let mut actions = Vec::new();
            self.a.handle(self.now_ms, event, &mut actions);
            return Some(Wanted::ByA(actions));
        }
        let event = self.to_b.pop_front()?;
        let mut actions = Vec::new();
        self.b.handle(self.now_ms, event, &mut actions);
        Some(Wanted::ByB(actions))
    }
}

/// A capture is taken.
pub(crate) fn captured(epoch: Epoch) -> PrimaryEvent {
    PrimaryEvent::Captured {
        epoch,
        pages: 1,
        bytes: 1,
        stop: false,
    }
}

/// What ends its sync.
pub(crate) fn commit(epoch: Epoch, stop: bool) -> Message {
    Message::Commit(Commit {
        epoch,
        pages: 1,
        states: 1,
        digest: 5,
        stop,
    })
}
