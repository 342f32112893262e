//! A primary on `a` and a secondary on `b`: what each is, and the record before they are a pair.

use kemari_sync::{
    CopyLimits, Incarnation, Mode, OnSecondaryLoss, Phase, Primary, PrimaryConfig, Record, Reign, Secondary,
    SecondaryConfig, Timing,
};

/// The id of the store at first.
pub const STORE: u128 = 9;

pub fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.to_owned(),
        nonce,
    }
}

pub fn alone() -> Record {
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

pub fn primary(mode: Mode) -> Primary {
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

pub fn secondary(fence_ms_max: Option<u64>) -> Secondary {
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
