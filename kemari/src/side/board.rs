//! What a side shows to the control socket, and how commands reach its loop.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kemari_vmm::event::{
    Direction as EventDirection, Event, EventChannel, Interest, MeasuringTap, Tap, TapId,
};
use kemari_vmm::machine::Machine;

use super::certificates::Certificates;
use super::readiness::{Findings, Mtus};
use crate::arbiter::{ArbiterWatch, Known};
use crate::control::{
    Bucket, COMMAND_TIMEOUT_MS, Command, Control, Direction, Status, TapLine, TapRequest, TapSink,
    TapStatistics,
};
use crate::link::Connection;

/// Longest time that a command waits for the loop's answer.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

// The client is there to hear it.
const _: () = assert!(COMMAND_TIMEOUT.as_millis() < COMMAND_TIMEOUT_MS as u128);
/// How often a tap's client is told what was seen.
const TAP_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Events of a tap that wait for its client; further ones are counted only.
const TAP_EVENTS_MAX: usize = 4096;

/// A command on its way to the loop.
pub struct Order {
    pub command: Command,
    pub answer: SyncSender<Result<String, String>>,
}

struct Shown {
    status: Status,
    at: Instant,
    machine: Option<Arc<Machine>>,
    orders: Option<Box<dyn Fn(Order) + Send + Sync>>,
}

/// Between a side's loop and the control socket.
pub struct Board {
    still_max: Duration,
    shown: Mutex<Shown>,
    findings: Arc<Findings>,
    mtus: Arc<Mtus>,
    arbiter: OnceLock<ArbiterWatch>,
    certificates: OnceLock<Certificates>,
}

impl Board {
    /// `still_max`: a loop that has said nothing for longer may have been given up by the other side.
    pub fn new(status: Status, still_max: Duration) -> Arc<Self> {
        Arc::new(Self {
            still_max,
            shown: Mutex::new(Shown {
                status,
                at: Instant::now(),
                machine: None,
                orders: None,
            }),
            findings: Findings::new(),
            mtus: Arc::default(),
            arbiter: OnceLock::new(),
            certificates: OnceLock::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where everybody notes what would keep this host from taking over.
    pub fn findings(&self) -> &Arc<Findings> {
        &self.findings
    }

    /// What the guest's TAPs take, on both hosts.
    pub fn mtus(&self) -> &Arc<Mtus> {
        &self.mtus
    }

    /// Shows what this watch of the arbiter finds, from now on.
    pub fn watch_arbiter(&self, watch: ArbiterWatch) {
        // There is one for the life of the process.
        let _ = self.arbiter.set(watch);
    }

    /// Shows what this watch of the certificates finds, from now on.
    pub fn watch_certificates(&self, watch: Certificates) {
        // There is one for the life of the process.
        let _ = self.certificates.set(watch);
    }

    /// The side on that host has connected, or was connected to.
    pub fn note_peer(&self, host: &str, connection: &Connection) {
        if let (Some(watch), Some(ends_s)) = (self.certificates.get(), connection.peer_ends_s()) {
            watch.note_peer(host, ends_s);
        }
    }

    /// Says under which record this side lives: its store, and the term of its last commit.
    pub fn lives_under(&self, record: Option<(u128, kemari_sync::Term)>) {
        if let Some(watch) = self.arbiter.get() {
            watch.expect(record.map(|(store, term)| Known { store, term }));
        }
    }

    /// What would keep this side from a new term, as it was found last.
    pub fn arbiter_trouble(&self) -> Option<String> {
        self.arbiter.get()?.report().trouble
    }

    /// Has the arbiter looked at at once: the number of that look. `None`: nobody watches it.
    pub fn look_at_arbiter(&self) -> Option<u64> {
        self.arbiter.get().map(ArbiterWatch::look)
    }

    /// Whether that look is over.
    pub fn has_looked_at_arbiter(&self, look: u64) -> bool {
        self.arbiter.get().is_none_or(|watch| watch.has_looked(look))
    }

    /// The operator says that the arbiter's store is the right one although it went back:
    /// for all that ask it from here.
    pub fn trust_arbiter(&self) {
        if let Some(watch) = self.arbiter.get() {
            watch.forget();
        }
    }

    /// Shows how things stand.
    pub fn show(&self, change: impl FnOnce(&mut Status)) {
        let mut shown = self.lock();
        change(&mut shown.status);
        shown.at = Instant::now();
    }

    /// Says which machine may be tapped.
    pub fn show_machine(&self, machine: Option<Arc<Machine>>) {
        self.lock().machine = machine;
    }

    /// Says where commands go.
    pub fn take_orders(&self, orders: impl Fn(Order) + Send + Sync + 'static) {
        self.lock().orders = Some(Box::new(orders));
    }

    /// Nobody takes commands any more, until somebody does again.
    pub fn refuse_orders(&self) {
        self.lock().orders = None;
    }
}

impl Control for Board {
    fn status(&self) -> Status {
        let (mut status, age, machine) = {
            let shown = self.lock();
            (shown.status.clone(), shown.at.elapsed(), shown.machine.clone())
        };
        let channels = machine.iter().flat_map(|machine| machine.channels());
        status.channels = channels.map(|channel| channel.name().to_owned()).collect();
        status.age(age, self.still_max);
        if let Some(watch) = self.arbiter.get() {
            status.note_arbiter(watch.report());
        }
        if let Some(watch) = self.certificates.get() {
            for ending in watch.found() {
                status.note_certificate(ending.sentence, ending.is_over);
            }
        }
        status
    }

    fn tap(&self, request: &TapRequest, sink: &mut TapSink<'_>) -> Result<(), String> {
        let machine = self
            .lock()
            .machine
            .clone()
            .ok_or("the VM does not run on this host")?;
        let channels = machine.channels();
        let is_meant = |channel: &str| request.channel.as_deref().is_none_or(|name| name == channel);
        let taps = channels
            .iter()
            .filter(|channel| is_meant(channel.name()))
            .map(|channel| AttachedTap::new(channel.clone(), request))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(name) = request.channel.as_ref().filter(|_| taps.is_empty()) {
            let names: Vec<_> = channels.iter().map(|channel| channel.name()).collect();
            return Err(format!(
                "there is no event channel {name}; there are {}",
                names.join(", ")
            ));
        }
        let end = Instant::now() + Duration::from_secs(request.seconds.into());
        while Instant::now() < end && sink.wanted() && taps.iter().all(|tap| tap.tap.report(sink)) {
            std::thread::sleep(TAP_LOOK_INTERVAL.min(end.saturating_duration_since(Instant::now())));
        }
        for tap in taps {
            let (channel, tap) = tap.detach();
            tap.report(sink);
            for line in tap.statistics(&channel, request.direction) {
                sink.send(&line);
            }
        }
        Ok(())
    }

    fn command(&self, command: Command) -> Result<String, String> {
        let (answer, answered) = sync_channel(1);
        match &self.lock().orders {
            Some(orders) => orders(Order { command, answer }),
            None => return Err("this side is changing its role; try again".into()),
        }
        match answered.recv_timeout(COMMAND_TIMEOUT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(format!(
                "it is not done after {COMMAND_TIMEOUT:?}, and goes on; `kemari status` says what waits"
            )),
            Err(RecvTimeoutError::Disconnected) => Err("this side ended before it could answer".into()),
        }
    }
}

/// Events with their time in microseconds, and how many more there were.
type Gathered = (Vec<(u64, Direction)>, u64);

/// A tap for a client of the control socket, attached as long as this is there.
struct AttachedTap {
    channel: Arc<EventChannel>,
    id: TapId,
    tap: Arc<ControlTap>,
}

impl AttachedTap {
    fn new(channel: Arc<EventChannel>, request: &TapRequest) -> Result<Self, String> {
        let interest = match request.direction {
            Direction::In => Interest::In,
            Direction::Out => Interest::Out,
            Direction::Both => Interest::Both,
        };
        let tap = Arc::new(ControlTap::new(request.events));
        let id = channel
            .attach(interest, tap.clone())
            .map_err(|error| error.to_string())?;
        Ok(Self { channel, id, tap })
    }

    /// The channel's name, and what the tap has seen.
    fn detach(self) -> (String, Arc<ControlTap>) {
        (self.channel.name().to_owned(), self.tap.clone())
    }
}

impl Drop for AttachedTap {
    fn drop(&mut self) {
        self.channel.detach(self.id);
    }
}

/// A tap for a client of the control socket.
struct ControlTap {
    start: Instant,
    measuring: Arc<MeasuringTap>,
    /// Events that the client has not been told, and how many there was no room for.
    events: Option<Mutex<Gathered>>,
}

impl ControlTap {
    fn new(events: bool) -> Self {
        let events = events.then(|| Mutex::new((Vec::with_capacity(TAP_EVENTS_MAX), 0)));
        Self {
            start: Instant::now(),
            measuring: MeasuringTap::new(),
            events,
        }
    }

    /// Passes the gathered events on. Returns whether the client still wants them.
    fn report(&self, sink: &mut TapSink<'_>) -> bool {
        let Some(events) = &self.events else { return true };
        let (events, skipped) = std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner));
        let mut wanted = true;
        for (at_us, direction) in events {
            wanted = wanted && sink.send(&TapLine::Event { at_us, direction });
        }
        if skipped > 0 {
            wanted = wanted && sink.send(&TapLine::Skipped { events: skipped });
        }
        wanted
    }

    fn statistics(&self, channel: &str, wanted: Direction) -> Vec<TapLine> {
        let seconds = self.start.elapsed().as_secs_f64();
        let statistics = |direction, of: EventDirection, answers| {
            let histogram = self.measuring.histogram(of);
            TapLine::Statistics(TapStatistics {
                channel: channel.to_owned(),
                direction,
                seconds,
                events: histogram.count,
                intervals: filled(&histogram.buckets),
                answers,
            })
        };
        let mut lines = Vec::new();
        if wanted != Direction::Out {
            let answers = filled(&self.measuring.answers());
            lines.push(statistics(Direction::In, EventDirection::In, answers));
        }
        if wanted != Direction::In {
            lines.push(statistics(Direction::Out, EventDirection::Out, Vec::new()));
        }
        lines
    }
}

/// The buckets that are not empty, shortest first.
fn filled(buckets: &[u64]) -> Vec<Bucket> {
    let buckets = buckets.iter().enumerate().filter(|(_, count)| **count > 0);
    buckets
        .map(|(bucket, &count)| Bucket {
            up_to_us: 1 << bucket,
            count,
        })
        .collect()
}

impl Tap for ControlTap {
    fn event(&self, event: &Event<'_>) {
        self.measuring.event(event);
        if let Some(events) = self.events.as_ref().filter(|_| event.notified) {
            let direction = match event.direction {
                EventDirection::In => Direction::In,
                EventDirection::Out => Direction::Out,
            };
            let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
            if events.0.len() < TAP_EVENTS_MAX {
                events
                    .0
                    .push((self.start.elapsed().as_micros() as u64, direction));
            } else {
                events.1 += 1;
            }
        }
    }
}
