//! The synchronising tap: attached to all event channels of a protected machine, it asks for a sync whenever output
//! is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kemari_vmm::event::{Event, EventChannel, Interest, Tap, TapId, TapsFull};

/// Name of the console's event channel: its bytes are gathered for a while, others ask at once.
const CONSOLE: &str = "console";

/// Whom the tap tells.
pub struct SyncTap {
    /// Parks the vCPUs as soon as they come out of the guest, without waiting. Absent where the guest runs on.
    pause: Option<Box<dyn Fn() + Send + Sync>>,
    /// Tells the loop; the flag says whether it is urgent.
    tell: Box<dyn Fn(bool) + Send + Sync>,
    /// Whether the loop has been told and has not looked yet.
    told: Flags,
}

#[derive(Default)]
struct Flags {
    urgent: AtomicBool,
    lazy: AtomicBool,
}

impl SyncTap {
    /// A tap that calls `tell(urgent)` once for each time that the loop calls [`SyncTap::looked`].
    pub fn new(
        pause: Option<Box<dyn Fn() + Send + Sync>>,
        tell: impl Fn(bool) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { pause, tell: Box::new(tell), told: Flags::default() })
    }

    /// The loop is about to look at what is held: later output must tell it again.
    pub fn looked(&self) {
        self.told.urgent.store(false, Ordering::SeqCst);
        self.told.lazy.store(false, Ordering::SeqCst);
    }
}

impl Tap for SyncTap {
    fn event(&self, event: &Event<'_>) {
        if !event.output_held {
            return;
        }
        let urgent = event.channel != CONSOLE;
        if urgent && let Some(pause) = &self.pause {
            pause();
        }
        let told = if urgent { &self.told.urgent } else { &self.told.lazy };
        if !told.swap(true, Ordering::SeqCst) {
            (self.tell)(urgent);
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
    use std::sync::Mutex;

    #[test]
    fn it_asks_once_until_the_loop_has_looked_and_only_for_held_output() {
        let told: Arc<Mutex<Vec<bool>>> = Arc::default();
        let sink = told.clone();
        let tap = SyncTap::new(None, move |urgent| sink.lock().unwrap().push(urgent));
        let (net, console) = (EventChannel::new("net0.tx"), EventChannel::new(CONSOLE));
        let attached = Attached::to(vec![net.clone(), console.clone()], &tap).unwrap();
        net.notify(Direction::Out, false);
        net.notify(Direction::Out, true);
        net.notify(Direction::Out, true);
        console.notify(Direction::Out, true);
        net.notify(Direction::In, true);
        assert_eq!(*told.lock().unwrap(), [true, false]);
        tap.looked();
        net.notify(Direction::Out, true);
        drop(attached);
        net.notify(Direction::Out, true);
        assert_eq!(*told.lock().unwrap(), [true, false, true]);
    }
}
