//! The synchronising tap: attached to all event channels of a protected machine, it asks for a sync whenever output
//! is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kemari_vmm::event::{Event, EventChannel, Interest, Tap, TapId, TapsFull};

/// Name of the console's event channel: its bytes are gathered for a while, others ask at once.
const CONSOLE: &str = "console";

/// Whom the tap tells. Urgent output parks the vCPU that notifies, and its own thread then does the sync (see
/// `PrimarySide::drive_parked`): no other thread has to be woken. Console output is only told to the loop.
pub struct SyncTap {
    /// Parks the vCPUs as soon as they come out of the guest, without waiting.
    pause: Box<dyn Fn() + Send + Sync>,
    /// Tells the loop of console output.
    tell_lazy: Box<dyn Fn() + Send + Sync>,
    urgent: AtomicBool,
    /// Whether the loop has been told of console output and has not looked yet.
    lazy: AtomicBool,
    /// Whether a sync is under way while the guest runs: its ack looks for held output anyway.
    in_flight: AtomicBool,
}

impl SyncTap {
    /// A tap that pauses for urgent output, and calls `tell_lazy` for console output, once for each time that
    /// [`SyncTap::looked`] is called.
    pub fn new(
        pause: impl Fn() + Send + Sync + 'static,
        tell_lazy: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            pause: Box::new(pause),
            tell_lazy: Box::new(tell_lazy),
            urgent: AtomicBool::new(false),
            lazy: AtomicBool::new(false),
            in_flight: AtomicBool::new(false),
        })
    }

    /// Somebody is about to look at what is held: later output must tell again. Returns whether there was urgent output.
    pub fn looked(&self) -> bool {
        self.lazy.store(false, Ordering::SeqCst);
        self.urgent.swap(false, Ordering::SeqCst)
    }

    /// Whether a sync is under way, at whose end somebody looks at what is held.
    pub fn set_in_flight(&self, in_flight: bool) {
        self.in_flight.store(in_flight, Ordering::SeqCst);
    }
}

impl Tap for SyncTap {
    fn event(&self, event: &Event<'_>) {
        if !event.output_held {
            return;
        }
        if event.channel == CONSOLE {
            if !self.lazy.swap(true, Ordering::SeqCst) {
                (self.tell_lazy)();
            }
        } else {
            self.urgent.store(true, Ordering::SeqCst);
            if !self.in_flight.load(Ordering::SeqCst) {
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
        let tap = SyncTap::new(count(&pauses), count(&tells));
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
        assert!(tap.looked() && !tap.looked());
        console.notify(Direction::Out, true);
        assert_eq!(seen(), (1, 2));
        tap.set_in_flight(true);
        net.notify(Direction::Out, true);
        assert_eq!(
            seen(),
            (1, 2),
            "the ack of the sync under way looks at what is held"
        );
        assert!(tap.looked());
        tap.set_in_flight(false);
        drop(attached);
        net.notify(Direction::Out, true);
        assert_eq!(seen(), (1, 2));
    }
}
