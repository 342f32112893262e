//! Power-off, reset and test kicks: the I/O ports of the contract with the guests (`arch::layout::abi`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Device;
use super::hub::Hub;
use crate::arch::layout::abi::{
    KICK_PORT, POWER_OFF_VALUE, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};
use crate::event::{Direction, EventChannel};
use crate::release::{Releasable, Stage};
use crate::state::{State, StateBlob, StateError, StateKind};

/// Command port of the keyboard controller, and the command by which a PC is reset.
pub(crate) const KEYBOARD_PORT: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// Reset control of a PC's chip set, and the bit by which a processor is reset.
pub(crate) const RESET_CONTROL_PORT: u16 = 0xcf9;
const RESET_CONTROL_RESET: u8 = 4;

/// Told when the guest's wish is to be carried out; it must not block.
pub(crate) type PowerSink = Box<dyn Fn(PowerEvent) + Send + Sync>;

/// What a guest wants of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerEvent {
    /// Power off. The outside sees it, so it is output.
    PowerOff,
    /// Start again. Nobody outside sees it.
    Reset,
}

#[derive(Default, Serialize, Deserialize)]
struct Wishes {
    /// A power-off that is not carried out yet.
    power_off: Option<Stage>,
    /// A reset that is not carried out yet.
    reset: bool,
    /// Test kicks that wait.
    kicks: Option<Stage>,
}

impl State for Wishes {
    const KIND: StateKind = StateKind::Power;
    const VERSION: u16 = 1;
}

impl Wishes {
    /// How far its outputs have come.
    fn stages(&mut self) -> impl Iterator<Item = &mut Stage> {
        [&mut self.power_off, &mut self.kicks].into_iter().flatten()
    }
}

/// The ports.
pub struct Ports {
    hub: Arc<Hub>,
    power: Arc<EventChannel>,
    test: Arc<EventChannel>,
    wishes: Mutex<Wishes>,
    sink: PowerSink,
}

impl Ports {
    /// The ports of a machine that tells `sink` of power-off and reset.
    pub fn new(hub: Arc<Hub>, sink: PowerSink) -> Arc<Self> {
        let (power, test) = (EventChannel::new("power"), EventChannel::new("test"));
        Arc::new(Self {
            hub,
            power,
            test,
            wishes: Mutex::default(),
            sink,
        })
    }

    /// The guest wants a reset, by whatever way.
    pub fn want_reset(&self) {
        // However often it asks, it is one reset.
        if std::mem::replace(&mut self.lock().reset, true) {
            return;
        }
        self.power.notify(Direction::Out, false);
        (self.sink)(PowerEvent::Reset);
    }

    /// Whether the guest asked for a power-off that is not carried out yet:
    /// the sync that contains it is its last.
    pub fn power_off_wanted(&self) -> bool {
        self.lock().power_off.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest wants a power-off, by whatever way.
    pub(crate) fn want_power_off(&self) {
        let held = self.hub.output_is_held();
        // However often it asks, it is one power-off.
        {
            let mut wishes = self.lock();
            if wishes.power_off.is_some() {
                return;
            }
            wishes.power_off = Some(Stage::of_new(held));
        }
        if !held {
            (self.sink)(PowerEvent::PowerOff);
        }
        self.power.notify(Direction::Out, held);
    }

    fn kick(&self) {
        let held = self.hub.output_is_held();
        if held {
            self.lock().kicks = Some(Stage::Held);
        }
        self.test.notify(Direction::Out, held);
    }
}

impl Device for Ports {
    /// The offset is the port's number.
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The sleep status says "woken"; the keyboard controller says "ready for a command".
        data.fill(if offset == u64::from(SLEEP_STATUS_PORT) {
            0x80
        } else {
            0
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        match (offset as u16, value) {
            (RESET_PORT, RESET_VALUE) | (KEYBOARD_PORT, KEYBOARD_RESET) => self.want_reset(),
            (RESET_CONTROL_PORT, value) if value & RESET_CONTROL_RESET != 0 => self.want_reset(),
            (SLEEP_CONTROL_PORT, POWER_OFF_VALUE) => self.want_power_off(),
            (KICK_PORT, _) => self.kick(),
            _ => {}
        }
    }

    fn channels(&self) -> Vec<Arc<EventChannel>> {
        vec![self.power.clone(), self.test.clone()]
    }

    fn output_held(&self) -> bool {
        let wishes = self.lock();
        wishes.power_off == Some(Stage::Held) || wishes.kicks == Some(Stage::Held)
    }

    fn capture(&self, epoch: u64) -> u64 {
        let mut is_any = false;
        for stage in self.lock().stages() {
            is_any |= stage.capture(epoch);
        }
        u64::from(is_any)
    }

    fn uncapture(&self, epoch: u64) {
        for stage in self.lock().stages() {
            stage.uncapture(epoch);
        }
    }

    fn drain(&self) {}

    fn abandon(&self) {}

    fn let_go(&self, which: Releasable) {
        let mut wishes = self.lock();
        wishes.kicks.take_if(|stage| which.lets_go(*stage));
        let power_off = wishes.power_off.take_if(|stage| which.lets_go(*stage));
        drop(wishes);
        if power_off.is_some() {
            (self.sink)(PowerEvent::PowerOff);
        }
    }

    fn reset(&self) {
        *self.lock() = Wishes::default();
    }

    fn wake(&self) {
        if self.lock().reset {
            (self.sink)(PowerEvent::Reset);
        }
    }

    fn save(&self) -> StateBlob {
        StateBlob::encode(0, &*self.lock())
    }

    fn identity(&self) -> (StateKind, u16) {
        (Wishes::KIND, 0)
    }

    fn load(&self, blob: &StateBlob) -> Result<(), StateError> {
        *self.lock() = blob.decode()?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "ports_test.rs"]
mod tests;
