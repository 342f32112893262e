//! A secondary for tests, step by step: a standby VM with one replicated disk, nobody connected, and no loop.

use kemari_sync::wire::{Begin, Hello, PROTOCOL_VERSION, SyncTally};
use kemari_sync::{SessionId, Timing};

use super::super::arbiter_thread::ArbiterThread;
use super::super::assembly;
use super::super::life::first_status;
use super::super::primary::Seat;
pub use super::super::testing::until;
use super::super::testing::{self, IMAGE_BYTES, LIMIT};
use super::disks::StandbyDisks;
use super::trial::Trial;
use super::*;
use crate::arbiter::NoArbiter;
use crate::replica::Image;
use crate::replica::testing::Scratch;

pub const BUILD: BuildId = 7;
pub const SESSION: SessionId = 3;

/// See the module.
pub struct Rig {
    pub side: SecondarySide,
    pub image: Arc<Image>,
    _scratch: Scratch,
}

impl Rig {
    /// A secondary whose standby VM holds the state of a machine that has just booted.
    pub fn new() -> Self {
        let scratch = Scratch::new(IMAGE_BYTES);
        let path = scratch.path();
        let text = include_str!("../../../../docs/example.toml")
            .replace("shared = true", "")
            .replace("cache = \"direct\"", "")
            .replace(
                "/dev/disk/by-id/shared-lun-1",
                path.to_str().expect("a path in words"),
            );
        let mut config = Config::parse(&text, "test").expect("the example");
        let host = config.hosts.get_mut("b").expect("a host of the example");
        host.listen = "127.0.0.1:0".parse().expect("an address");
        let config = Arc::new(config);
        let image = scratch.image();
        image.start(1, false).expect("a new image");
        let spec = testing::spec();
        let arbiter = ArbiterThread::start(Box::new(NoArbiter::default())).expect("a thread");
        let mut side = SecondarySide::new(Setup {
            board: Board::new(first_status(&config, "b"), LIMIT),
            host: "b".into(),
            spec: spec.clone(),
            mechanism: SecondaryConfig {
                me: Incarnation {
                    host: "b".into(),
                    nonce: 2,
                },
                vm: config.vm.clone(),
                config_digest: 7,
                timing: Timing::default(),
                fence_ms_max: None,
                staging_pages_max: 0,
            },
            mailbox: Mailbox::new().expect("a mailbox"),
            arbiter: arbiter.asker(|_, _| {}),
            clock: Clock::start(),
            security: Security::Plaintext,
            overwrite_disks: None,
            images_in_use: InUse::default(),
            not_booted: None,
            idle_ms_max: None,
            config: config.clone(),
        })
        .expect("a secondary");
        let reports = side.mailbox.clone();
        let report = move |index, report| reports.post(Input::Replica(BUILD, index, report));
        let replicas = assembly::replicas(&config, "b", vec![image.clone()], report).expect("a replica");
        let seat = Seat::make(&config, "b", spec).expect("a machine");
        seat.machine.boot().expect("it boots");
        let mut states = Vec::new();
        seat.machine.freeze().save_state(&mut states).expect("a state");
        side.berth = Berth::Following(Box::new(Standby {
            seat,
            states,
            trial: Trial::default(),
            restoration: Default::default(),
            build: BUILD,
            session: SESSION,
            disks: StandbyDisks::new(&config, replicas),
            opened: Opened::default(),
            copy: None,
            trackers: Vec::new(),
        }));
        Self {
            side,
            image,
            _scratch: scratch,
        }
    }

    /// The core holds a commit of a primary that lives, and for all that it knows the standby VM does.
    pub fn hold(&mut self) {
        let (session, commit) = (SESSION, SyncTally::default().commit(1, false));
        let primary = Incarnation {
            host: "a".into(),
            nonce: 1,
        };
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            vm: self.side.config.vm.clone(),
            config_digest: 7,
            incarnation: primary,
            session: 1,
            term: 1,
            peer: None,
            last: None,
        };
        let begin = Begin {
            epoch: 1,
            base: None,
            term: 2,
            store: 1,
            primary: 1,
            secondary: 2,
        };
        let said = |message| SecondaryEvent::Message { session, message };
        let (epoch, offers) = (1, Ok(Vec::new()));
        for event in [
            said(Message::Hello(hello)),
            said(Message::Prepare),
            SecondaryEvent::Prepared {
                session,
                result: offers,
            },
            said(Message::Begin(begin)),
            said(Message::Commit(commit)),
            SecondaryEvent::Checked {
                epoch,
                result: Ok(()),
            },
            SecondaryEvent::Applied { epoch },
        ] {
            self.side
                .core
                .handle(self.side.clock.now_ms(), event, &mut Vec::new());
        }
        assert!(self.side.core.holds().is_some());
    }

    /// The standby VM takes the copy of this session.
    pub fn copy_for(&mut self, session: SessionId) {
        let mut standby = self.side.berth.take_standby().expect("a standby VM");
        standby.session = session;
        self.side.berth = Berth::Copying(standby);
    }

    pub fn standby(&mut self) -> &mut Standby {
        self.side.berth.standby_mut().expect("a standby VM")
    }

    /// Whether the core would be told something of this kind. What else it would be told is gone.
    pub fn tells(&mut self, is_meant: impl Fn(&SecondaryEvent) -> bool) -> bool {
        let events: Vec<_> = self.side.events.drain(..).collect();
        events.iter().any(is_meant)
    }

    /// Takes what other threads have told the loop until one of them says something of this kind, and hands
    /// that over.
    pub fn await_input(&mut self, is_meant: impl Fn(&Input) -> bool) {
        let mut found = None;
        until("another thread tells the loop", || {
            found = self.side.mailbox.take().into_iter().find(&is_meant);
            found.is_some()
        });
        self.side.on_input(found.expect("it was found"));
    }
}
