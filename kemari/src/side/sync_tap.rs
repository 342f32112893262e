//! The synchronising tap: attached to all event channels of a protected machine, it asks for a sync whenever
//! output is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kemari_vmm::event::{Event, EventChannel, Interest, Tap, TapId, TapsFull};

use super::clock::Clock;

/// Longest time that a vCPU waits for the ack of a sync under way, when it has more output. The sync that
/// then starts at once, on its thread, costs less than one that another thread has to wake up for.
pub const ACK_WAIT_US_MAX: u64 = 60;

/// Name of the console's event channel: its bytes are gathered for a while, others ask at once.
const CONSOLE: &str = "console";

/// Output that waits, and asks for no sync yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Of the console.
    Console,
    /// Other output, which gathers until then, in microseconds of the clock.
    Until(u64),
}

/// Whom the tap tells. Urgent output parks the vCPU that notifies, and its own thread then does the sync (see
/// `PrimarySide::drive_parked`): no other thread has to be woken. Console output is only told to the loop.
pub struct SyncTap {
    /// Parks the vCPUs as soon as they come out of the guest, without waiting.
    pause: Box<dyn Fn() + Send + Sync>,
    /// Tells the loop of console output, or of other output that gathers.
    tell: Box<dyn Fn(Waits) + Send + Sync>,
    clock: Clock,
    /// When urgent output was first held, in microseconds of the clock and never 0; 0: none is.
    urgent_us: AtomicU64,
    /// Whether the loop has been told of console output and has not looked yet.
    lazy: AtomicBool,
    /// Whether the clock alone starts syncs.
    clocked: AtomicBool,
    /// Until then urgent output gathers, in microseconds of the clock.
    gathers_until_us: AtomicU64,
    /// When the ack of the sync under way is expected, in microseconds of the clock and never 0; 0:
    /// none is under way.
    ack_due_us: AtomicU64,
}

impl SyncTap {
    /// A tap that pauses for urgent output, and calls `tell` for console output, and for the first that
    /// gathers, once for each time that [`SyncTap::looked`] is called.
    pub fn new(
        clock: Clock,
        pause: impl Fn() + Send + Sync + 'static,
        tell: impl Fn(Waits) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            pause: Box::new(pause),
            tell: Box::new(tell),
            clock,
            urgent_us: AtomicU64::new(0),
            lazy: AtomicBool::new(false),
            clocked: AtomicBool::new(false),
            gathers_until_us: AtomicU64::new(0),
            ack_due_us: AtomicU64::new(0),
        })
    }

    /// Somebody is about to look at what is held: later output must tell again. Returns since when there has
    /// been urgent output, if there is, in microseconds.
    pub fn looked(&self) -> Option<u64> {
        self.lazy.store(false, Ordering::SeqCst);
        let since_us = self.urgent_us.swap(0, Ordering::SeqCst);
        (since_us != 0).then_some(since_us)
    }

    /// Whether the clock alone starts syncs: output then asks for nothing.
    pub fn set_clocked(&self, clocked: bool) {
        self.clocked.store(clocked, Ordering::SeqCst);
    }

    /// Urgent output pauses nobody until then, in microseconds of the clock.
    pub fn gather_until(&self, until_us: u64) {
        self.gathers_until_us.store(until_us, Ordering::SeqCst);
    }

    /// A sync is under way, at whose end somebody looks at what is held; its ack is expected then, in
    /// microseconds of the clock. Output that comes within [`ACK_WAIT_US_MAX`] of that parks its vCPU, which
    /// waits for the ack.
    pub fn set_in_flight(&self, ack_due_us: u64) {
        self.ack_due_us.store(ack_due_us.max(1), Ordering::SeqCst);
    }

    /// No sync is under way.
    pub fn set_idle(&self) {
        self.ack_due_us.store(0, Ordering::SeqCst);
    }
}

impl Tap for SyncTap {
    fn event(&self, event: &Event<'_>) {
        if !event.output_held || self.clocked.load(Ordering::SeqCst) {
            return;
        }
        if event.channel == CONSOLE {
            if !self.lazy.swap(true, Ordering::SeqCst) {
                (self.tell)(Waits::Console);
            }
        } else {
            // Only the first counts, and only it need be told from none.
            let now_us = self.clock.now_us().max(1);
            let is_first = self
                .urgent_us
                .compare_exchange(0, now_us, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok();
            let gathers_until_us = self.gathers_until_us.load(Ordering::SeqCst);
            if !event.notified {
                // No vCPU is on its way here that could park: the loop is told.
                (self.tell)(Waits::Until(gathers_until_us.max(now_us)));
            } else if now_us < gathers_until_us {
                if is_first {
                    (self.tell)(Waits::Until(gathers_until_us));
                }
            } else if now_us + ACK_WAIT_US_MAX >= self.ack_due_us.load(Ordering::SeqCst) {
                (self.pause)();
            }
        }
    }
}

/// A tap on all channels of a machine, detached when dropped.
pub struct Attached(Vec<(Arc<EventChannel>, TapId)>);

impl Attached {
    pub fn to(channels: Vec<Arc<EventChannel>>, tap: &Arc<SyncTap>) -> Result<Self, TapsFull> {
        let mut attached = Self(Vec::new());
        for channel in channels {
            let id = channel.attach(Interest::Out, tap.clone())?;
            attached.0.push((channel, id));
        }
        Ok(attached)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for (channel, id) in &self.0 {
            channel.detach(*id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kemari_vmm::event::Direction;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn held_output_pauses_and_console_output_is_told_once_until_somebody_has_looked() {
        let (pauses, tells) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let count = |counter: &Arc<AtomicU32>| {
            let counter = counter.clone();
            move || {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        };
        let tell = count(&tells);
        let tap = SyncTap::new(Clock::start(), count(&pauses), move |waits| {
            assert!(waits == Waits::Console || waits == Waits::Until(u64::MAX));
            tell();
        });
        let seen = || (pauses.load(Ordering::SeqCst), tells.load(Ordering::SeqCst));
        let (net, console) = (EventChannel::new("net0.tx"), EventChannel::new(CONSOLE));
        let attached = Attached::to(vec![net.clone(), console.clone()], &tap).unwrap();
        net.notify(Direction::Out, false);
        net.notify(Direction::In, true);
        assert_eq!(seen(), (0, 0));
        net.notify(Direction::Out, true);
        console.notify(Direction::Out, true);
        console.notify(Direction::Out, true);
        assert_eq!(seen(), (1, 1));
        assert!(tap.looked().is_some() && tap.looked().is_none());
        console.notify(Direction::Out, true);
        assert_eq!(seen(), (1, 2));
        tap.set_in_flight(u64::MAX);
        net.notify(Direction::Out, true);
        assert_eq!(
            seen(),
            (1, 2),
            "the ack of the sync under way looks at what is held"
        );
        assert!(tap.looked().is_some());
        tap.set_in_flight(1);
        net.notify(Direction::Out, true);
        assert_eq!(seen(), (2, 2), "the ack is due");
        assert!(tap.looked().is_some());
        tap.set_idle();
        tap.gather_until(u64::MAX);
        net.notify(Direction::Out, true);
        net.notify(Direction::Out, true);
        assert_eq!(seen(), (2, 3), "output that gathers is told once");
        tap.gather_until(1);
        net.notify(Direction::Out, true);
        assert_eq!(seen(), (3, 3), "it has gathered");
        assert!(tap.looked().is_some());
        tap.gather_until(u64::MAX);
        net.found_output();
        assert_eq!(seen(), (3, 4), "no vCPU comes by that could park");
        assert!(tap.looked().is_some());
        tap.gather_until(1);
        tap.set_clocked(true);
        net.notify(Direction::Out, true);
        console.notify(Direction::Out, true);
        assert!(
            seen() == (3, 4) && tap.looked().is_none(),
            "the clock starts syncs"
        );
        tap.set_clocked(false);
        drop(attached);
        net.notify(Direction::Out, true);
        assert_eq!(seen(), (3, 4));
    }
}
