//! A primary for tests, step by step: a machine with the bare guest and one replicated disk, an arbiter that
//! is only asked, and no loop.

use std::convert::Infallible;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use kemari_sync::wire::{CommitId, Heartbeat, Message, Welcome};
use kemari_sync::{
    Arbiter, ArbiterAnswer, ArbiterRequest, CopyLimits, DiskOffer, Incarnation, OnSecondaryLoss, Phase,
    Readiness, Record, SessionId, Term, Timing,
};
use kemari_vmm::disk::DiskConfig;
use kemari_vmm::event::{Event, Interest, Tap};
use kemari_vmm::memory;

use super::super::arbiter_thread::ArbiterThread;
use super::super::assembly;
use super::super::life::first_status;
pub use super::super::testing::until;
use super::super::testing::{self, IMAGE_BYTES, LIMIT};
use super::connect::Connected;
use super::*;
use crate::link::Connection;
use crate::replica::Image;
use crate::replica::testing::Scratch;

/// The term that the image knows when the primary begins, and the one after it, which the primary rules.
pub const OLD_TERM: Term = 1;
pub const TERM: Term = 2;
/// The session of [`Rig::protect`].
const SESSION: SessionId = 1;

/// See the module.
pub struct Rig {
    pub side: PrimarySide,
    /// What the arbiter was asked for.
    pub asked: Receiver<ArbiterRequest>,
    pub tracker: Arc<Tracker>,
    _scratch: Scratch,
    _directory: tempfile::TempDir,
}

/// Counts what the guest kicks.
#[derive(Default)]
struct Kicks(AtomicU64);

impl Tap for Kicks {
    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Asked(Sender<ArbiterRequest>);

impl Arbiter for Asked {
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        // The test may be over.
        let _ = self.0.send(request.clone());
        ArbiterAnswer::Unavailable("it is only asked".into())
    }
}

/// The record of a VM that `a` runs alone.
pub fn record(term: Term) -> Record {
    crate::arbiter::testing::record(term, Phase::Acting)
}

/// What the world says to an action of the core while a pair begins.
fn answered(action: PrimaryAction, store: &mut Record) -> Option<PrimaryEvent> {
    let session = SESSION;
    let says = |message| Some(PrimaryEvent::Message { session, message });
    match action {
        PrimaryAction::Send { message, .. } => match message {
            Message::Hello(_) => says(Message::Welcome(Welcome {
                incarnation: peer(),
                last: None,
            })),
            Message::Proof { bytes } => says(Message::Proof { bytes }),
            Message::Prepare => says(Message::Ready {
                staging_pages_max: 1000,
                disks: vec![DiskOffer {
                    disk: "blk0".into(),
                    bytes: IMAGE_BYTES,
                    word: None,
                    overwrite: false,
                }],
            }),
            Message::CopyDisks(_) => says(Message::DisksReady),
            _ => None,
        },
        PrimaryAction::MarkSources { .. } => Some(PrimaryEvent::SourcesMarked {
            session,
            result: Ok(()),
        }),
        PrimaryAction::CopyDisks { .. } => Some(PrimaryEvent::DisksCopied {
            session,
            result: Ok(()),
        }),
        PrimaryAction::CopyRound { .. } => Some(PrimaryEvent::CopyRoundSent {
            session,
            dirty_pages: 0,
        }),
        PrimaryAction::Capture { epoch, .. } => Some(PrimaryEvent::Captured {
            epoch,
            pages: 0,
            bytes: 0,
            stop: false,
        }),
        PrimaryAction::Transmit { begin, .. } => says(Message::Ack(CommitId {
            term: begin.term,
            epoch: begin.epoch,
        })),
        PrimaryAction::Ask { ask, request } => {
            let answer = match request {
                ArbiterRequest::Swap { new, .. } => {
                    *store = new;
                    ArbiterAnswer::Swapped
                }
                _ => ArbiterAnswer::Record(Some(store.clone())),
            };
            Some(PrimaryEvent::Arbiter { ask, answer })
        }
        _ => None,
    }
}

fn peer() -> Incarnation {
    Incarnation {
        host: "b".into(),
        nonce: 2,
    }
}

impl Rig {
    /// A primary that runs its VM alone, in a term that the image does not know yet. Its guest stands still.
    pub fn new() -> Self {
        Self::with(|image| image.start(OLD_TERM, false).expect("a new image"))
    }

    /// The same, where nothing can be recorded of the image.
    pub fn without_record() -> Self {
        Self::with(|_| {})
    }

    fn with(begin: impl FnOnce(&Image)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let text = include_str!("../../../../docs/example.toml")
            .replace("shared = true", "flush = \"both\"")
            .replace("cache = \"direct\"", "");
        let config = Arc::new(Config::parse(&text, "test").expect("the example"));
        let scratch = Scratch::new(IMAGE_BYTES);
        let image = scratch.image();
        begin(&image);
        let spec = testing::spec();
        let seat = Seat::make(&config, "a", spec).expect("a machine");
        let trackers =
            assembly::watch_disks(&seat.machine, &config, &[image]).expect("a disk that is watched");
        let tracker = trackers[0].clone();
        let disk = DiskConfig::new(scratch.path());
        seat.machine.attach_disk("blk0", &disk).expect("an image");
        seat.machine.boot().expect("it boots");
        let (sender, asked) = channel();
        let arbiter = ArbiterThread::start(Box::new(Asked(sender))).expect("a thread");
        let record = record(TERM);
        let mechanism = PrimaryConfig {
            me: record.owner.clone(),
            config_digest: 7,
            mode: config.protection.mode.into(),
            timing: Timing::default(),
            copy: CopyLimits::default(),
            on_secondary_loss: OnSecondaryLoss::Continue,
            protect: false,
            sources: tracker.image().source().into_iter().collect(),
        };
        let side = PrimarySide::new(Setup {
            board: Board::new(first_status(&config, "a"), LIMIT),
            config,
            host: "a".into(),
            mechanism,
            reign: Reign {
                record,
                last_epoch: 0,
            },
            seat,
            arbiter: arbiter.asker(|_, _| {}),
            clock: Clock::start(),
            trace: Arc::new(Trace::create(&directory.path().join("control"))),
            trackers,
            security: Some(Security::Plaintext),
        });
        Self {
            side,
            asked,
            tracker,
            _scratch: scratch,
            _directory: directory,
        }
    }

    /// Takes the events that wait for the core.
    pub fn events(&mut self) -> Vec<PrimaryEvent> {
        self.side.events.drain(..).collect()
    }

    /// Whether the core would be told something of this kind. What else it would be told is gone.
    pub fn tells(&mut self, is_meant: impl Fn(&PrimaryEvent) -> bool) -> bool {
        self.events().iter().any(is_meant)
    }

    /// These pages are found dirty.
    pub fn find(&mut self, pages: impl IntoIterator<Item = u64>) {
        let Ok(()) = self.side.owed.debt.find::<Infallible>(|found| {
            found.extend(pages);
            Ok(())
        });
    }

    /// Takes the pages that are owed and not captured, in order.
    pub fn take_owed(&mut self) -> Vec<u64> {
        self.side.owed.debt.of_next_sync();
        self.side.owed.debt.take_round()
    }

    /// So many dirty pages ask for a sync.
    pub fn limit_dirty_pages(&mut self, pages: u32) {
        let mut pace = self.side.demand.pace();
        pace.max_dirty_pages = pages;
        self.side.demand.set_pace(pace);
    }

    /// Captures a sync, with output held from there on.
    pub fn capture(&mut self, epoch: Epoch) {
        self.side.capture(epoch, true, None);
    }

    /// Whether a sync that waits for its ack has this page.
    pub fn captured(&self, page: u64) -> bool {
        assert!(self.side.capture.is_some(), "a capture");
        let debt = &self.side.owed.debt;
        debt.captured().contains(&page) || debt.captured_ahead().any(|ahead| ahead == page)
    }

    /// Writes to a page of the guest, as the VMM does it.
    pub fn write(&self, page: u64) {
        memory::write_in_page(self.side.machine.memory(), page, 0, b"written").expect("a page of the guest");
    }

    /// Lets the guest run until it kicks all the time, and stops it:
    /// nothing that it has asked for before is missing then.
    pub fn boot(&self) {
        let machine = &self.side.machine;
        let kicks = Arc::new(Kicks::default());
        let channels = machine.channels();
        let channel = channels
            .iter()
            .find(|channel| channel.name() == "test")
            .expect("it can kick");
        let tap = channel
            .attach(Interest::Out, kicks.clone())
            .expect("room for a tap");
        machine.resume();
        until("the guest kicks", || kicks.0.load(Ordering::SeqCst) > 0);
        machine.pause();
        channel.detach(tap);
    }

    /// Lets the guest run until it has made output that is held, and stops it.
    pub fn make_output(&self) {
        self.side.machine.resume();
        until("the guest makes output", || self.side.machine.output_held());
        self.side.machine.pause();
    }

    /// Takes what other threads have told the loop until one of them says something of this kind,
    /// and hands that over.
    pub fn await_input(&mut self, is_meant: impl Fn(&Input) -> bool) {
        let mut found = None;
        until("another thread tells the loop", || {
            found = self.side.mailbox.take().into_iter().find(&is_meant);
            found.is_some()
        });
        self.side.on_input(found.expect("it was found"));
    }

    /// A recorded pair, as far as the core knows: all others that it speaks with are played here, and
    /// machine, disks and link know nothing of it.
    pub fn protect(&mut self) {
        let mut store = self.side.core.record().clone();
        let mut events = VecDeque::from([
            PrimaryEvent::OperatorProtect,
            PrimaryEvent::PeerConnected { session: SESSION },
        ]);
        let (now_ms, mut actions) = (self.side.clock.now_ms(), Vec::new());
        while let Some(event) = events.pop_front() {
            self.side.core.handle(now_ms, event, &mut actions);
            let follows = actions.drain(..);
            events.extend(follows.filter_map(|action| answered(action, &mut store)));
        }
        let status = self.side.core.status(now_ms);
        assert_eq!(status.protection, kemari_sync::Protection::Protected);
    }

    /// The secondary of [`Rig::protect`] says what would keep it from taking over.
    pub fn hear_readiness(&mut self, reasons: &[&str]) {
        let heartbeat = Heartbeat {
            sequence: 1,
            epoch: 1,
            trouble: None,
            readiness: Some(Readiness::found(
                reasons.iter().map(|reason| (*reason).to_owned()),
            )),
            wall_clock_ms: 0,
            mtus: Vec::new(),
        };
        let event = PrimaryEvent::Message {
            session: SESSION,
            message: Message::Heartbeat(heartbeat),
        };
        self.side
            .core
            .handle(self.side.clock.now_ms(), event, &mut Vec::new());
    }

    /// Takes turns until an order was answered.
    pub fn await_answer(&mut self, answer: &Receiver<Result<String, String>>) -> Result<String, String> {
        let mut answered = None;
        until("the order is answered", || {
            self.side.begin_orders();
            answered = answer.try_recv().ok();
            answered.is_some()
        });
        answered.expect("it was answered")
    }

    /// A session with a secondary, which says nothing, whether or not the core wants one. Returns its ends of
    /// the connections.
    pub fn force_connect(&mut self) -> [TcpStream; 2] {
        let (connected, ends) = connected();
        self.side.peer.begin(connected).expect("it can be waited for");
        ends
    }

    /// What the record of the image says of terms: the last one, and the next that may have begun.
    pub fn terms(&self) -> (Term, Term) {
        let word = self.tracker.image().offer().word.expect("the image has a record");
        (word.term, word.next_term)
    }
}

/// Two connections to a secondary, and its ends of them.
pub fn connected() -> (Connected, [TcpStream; 2]) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let [(main, one), (heartbeat, other)] = [(); 2].map(|()| {
        let ours = TcpStream::connect(address).expect("a connection");
        let ours = Connection::dial(ours, &Security::Plaintext, "b").expect("a connection");
        (ours, listener.accept().expect("a connection").0)
    });
    let connected = Connected {
        host: "b".into(),
        main,
        heartbeat,
    };
    (connected, [one, other])
}
