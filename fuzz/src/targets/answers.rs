//! A secondary's frames, with good headers and checksums: what the primary's mechanism makes of any of them,
//! at any time.
//!
//! See [`Side::step`] for what the tape says.

use kemari_sync::wire::{
    BlockFrame, CommitId, FrameHeader, FrameKind, HEADER_BYTES, Heartbeat, Message, PROOF_BYTES, Welcome,
    encode, seal,
};
use kemari_sync::{
    CopyLimits, Mode, OnSecondaryLoss, Pace, Primary, PrimaryAction, PrimaryConfig, PrimaryEvent, Readiness,
    Reign, SessionId, Timing, Trouble,
};

use super::support::store::{Store, host, record};
use super::support::tape::Tape;

/// Steps of one input at most.
const STEPS_MAX: usize = 200;
/// Longest body of a frame, in bytes.
const BODY_BYTES_MAX: usize = 8 << 10;

/// A primary without a host.
struct Side {
    core: Primary,
    now_ms: u64,
    session: Option<SessionId>,
    next_session: SessionId,
    store: Store,
    /// What was sent last.
    sent: CommitId,
    over: bool,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape::new(bytes);
    let mut side = Side::new(tape.u8());
    for _ in 0..STEPS_MAX {
        if tape.is_empty() || side.over {
            break;
        }
        side.step(&mut tape);
    }
}

impl Side {
    fn new(how: u8) -> Self {
        let config = PrimaryConfig {
            me: host("a", 1),
            config_digest: 7,
            mode: [Mode::Lockstep, Mode::Pipelined, Mode::Interval][usize::from(how % 3)],
            timing: Timing::default(),
            copy: CopyLimits {
                converged_pages: 10,
                rounds_max: 3,
            },
            on_secondary_loss: match how & 0x80 {
                0 => OnSecondaryLoss::Continue,
                _ => OnSecondaryLoss::Stop,
            },
            protect: true,
            sources: Vec::new(),
        };
        let reign = Reign {
            record: record(1, None),
            last_epoch: 0,
        };
        Self {
            core: Primary::new(config, reign, 0),
            now_ms: 0,
            session: None,
            next_session: 1,
            store: Store(record(1, None)),
            sent: CommitId { term: 0, epoch: 0 },
            over: false,
        }
    }

    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.u8() % 8 {
            0 | 1 => {
                let (kind, length) = (u16::from(tape.u8() % 27), usize::from(tape.u16()));
                if let Some(kind) = FrameKind::from_wire(kind) {
                    let body = tape.bytes(length.min(BODY_BYTES_MAX).min(kind.body_bytes_max()));
                    self.frame(kind, body);
                }
            }
            // Too long for a tape.
            2 => self.hear(Message::Proof { bytes: PROOF_BYTES }),
            3 => self.hear(Message::Ack(self.sent)),
            4 => self.connect(),
            5 => self.lose("it closed the connection"),
            6 => {
                self.now_ms += u64::from(tape.u16());
                self.feed(PrimaryEvent::Tick);
            }
            _ => self.happen(tape.u8()),
        }
    }

    /// What happens on this host meanwhile.
    fn happen(&mut self, what: u8) {
        let reason = || "so".to_owned();
        self.feed(match what % 12 {
            0 | 1 => PrimaryEvent::OutputPending,
            2 => PrimaryEvent::DirtyLimit,
            3 => PrimaryEvent::DirtyAhead,
            4 => PrimaryEvent::GuestWaits(what & 0x80 != 0),
            5 => PrimaryEvent::OperatorSwitchover,
            6 => PrimaryEvent::OperatorUnprotect,
            7 => PrimaryEvent::OperatorProtect,
            8 => PrimaryEvent::HostFailing { reason: reason() },
            9 => PrimaryEvent::OperatorStop,
            10 => PrimaryEvent::OperatorPace(Pace {
                mode: Mode::Interval,
                interval_ms: 10,
                max_interval_ms: 100,
            }),
            _ => PrimaryEvent::Health {
                trouble: (what & 0x80 != 0).then(|| Trouble::Disk(reason())),
            },
        });
    }

    fn connect(&mut self) {
        if self.session.is_none() && self.core.wants_peer() {
            let session = self.next_session;
            self.next_session += 1;
            self.session = Some(session);
            self.feed(PrimaryEvent::PeerConnected { session });
        }
    }

    fn lose(&mut self, why: &str) {
        if let Some(session) = self.session.take() {
            let reason = why.into();
            self.feed(PrimaryEvent::PeerClosed { session, reason });
        }
    }

    /// A frame as it comes out of a connection.
    fn frame(&mut self, kind: FrameKind, body: &[u8]) {
        let mut bytes = Vec::new();
        seal(kind, body, &mut bytes);
        let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().expect("a header");
        let header = FrameHeader::parse(header).expect("a good header");
        header.check(body).expect("a good checksum");
        match kind {
            FrameKind::DiskMap | FrameKind::DiskWanted | FrameKind::DiskStored => {
                if BlockFrame::parse(kind, body).is_err() {
                    self.lose("this is nothing about blocks");
                }
            }
            _ => match kemari::link::decode(kind, body) {
                Ok(message) => self.hear(message),
                Err(_) => self.lose("this is no message"),
            },
        }
    }

    fn hear(&mut self, message: Message) {
        if let Some(session) = self.session {
            self.feed(PrimaryEvent::Message { session, message });
        }
    }

    fn feed(&mut self, event: PrimaryEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop().filter(|_| !self.over) {
            let mut actions = Vec::new();
            self.core.handle(self.now_ms, event, &mut actions);
            // Their answers come in their order.
            let answers: Vec<PrimaryEvent> = actions
                .into_iter()
                .filter_map(|action| self.carry_out(action))
                .collect();
            events.extend(answers.into_iter().rev());
        }
    }

    fn carry_out(&mut self, action: PrimaryAction) -> Option<PrimaryEvent> {
        let done = Ok(());
        Some(match action {
            PrimaryAction::Send { message, .. } => {
                encode(&message, &mut Vec::new());
                return None;
            }
            PrimaryAction::MarkSources { session, .. } => PrimaryEvent::SourcesMarked {
                session,
                result: done,
            },
            PrimaryAction::CopyDisks { session, .. } => PrimaryEvent::DisksCopied {
                session,
                result: done,
            },
            PrimaryAction::CopyRound { session, .. } => PrimaryEvent::CopyRoundSent {
                session,
                dirty_pages: 5,
            },
            PrimaryAction::Capture { epoch, .. } => PrimaryEvent::Captured {
                epoch,
                pages: 5,
                bytes: 100,
                stop: false,
            },
            PrimaryAction::Transmit { begin, .. } => {
                let (term, epoch) = (begin.term, begin.epoch);
                self.sent = CommitId { term, epoch };
                PrimaryEvent::Transmitted { epoch }
            }
            PrimaryAction::Ask { ask, request } => {
                let answer = self.store.ask(request);
                PrimaryEvent::Arbiter { ask, answer }
            }
            PrimaryAction::Drain => PrimaryEvent::Drained,
            PrimaryAction::CloseDisks => PrimaryEvent::DisksClosed { result: done },
            PrimaryAction::CloseSession { session, .. } => {
                self.session = self.session.filter(|open| *open != session);
                return None;
            }
            PrimaryAction::Exit { .. } => {
                self.over = true;
                return None;
            }
            _ => return None,
        })
    }
}

/// A message on the tape.
fn said(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = encode(message, &mut bytes);
    let body = &bytes[HEADER_BYTES..];
    let head = [&[0, header.kind as u8][..], &(body.len() as u16).to_le_bytes()].concat();
    [head, body.to_vec()].concat()
}

/// A pair that is made, works, and ends in each way.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let welcome = Message::Welcome(Welcome {
        incarnation: host("b", 2),
        last: None,
    });
    let ready = Message::Ready {
        staging_pages_max: 1_000,
        disks: Vec::new(),
    };
    let heartbeat = Message::Heartbeat(Heartbeat {
        sequence: 1,
        epoch: 1,
        trouble: None,
        readiness: Some(Readiness {
            reasons: Vec::new(),
            age_ms: 0,
        }),
        wall_clock_ms: 0,
        mtus: vec![1500],
    });
    let paired = [
        vec![0, 4],
        said(&welcome),
        vec![2],
        said(&ready),
        vec![3],
        said(&heartbeat),
        vec![7, 0, 3, 7, 2, 3],
    ]
    .concat();
    let silence = [6, 0xff, 0xff, 6, 0xff, 0xff, 6, 0xff, 0xff];
    let ends = [5u8, 6, 8, 9].map(|what| [&paired[..], &[7, what, 3, 6, 100, 0, 3]].concat());
    let rejoined = [&paired[..], &[7, 0, 5, 4], &said(&welcome), &silence].concat();
    let commit = CommitId { term: 2, epoch: 1 };
    let let_go = [&paired[..], &[7, 9, 3], &said(&Message::LetGo(commit))].concat();
    let mut seeds = vec![rejoined, let_go, [&paired[..], &silence].concat()];
    seeds.extend(ends);
    seeds
}
