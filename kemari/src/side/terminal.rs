//! The guest's console on this terminal: raw mode, Ctrl-A x to leave, Ctrl-A Ctrl-A for a Ctrl-A.

use std::io::{Read, stdin};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use kemari_vmm::machine::Machine;
use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// The key that begins a command to Kemari instead of the guest.
const ESCAPE: u8 = 0x01;
/// How long the console's input buffer of the guest is given to empty itself.
const FULL_WAIT: Duration = Duration::from_millis(10);

/// The terminal in raw mode; it is put back when this is dropped.
pub struct Terminal {
    before: Option<Termios>,
    machine: Arc<Mutex<Option<Arc<Machine>>>>,
}

impl Terminal {
    /// Takes the terminal over, if standard input is one, and starts to read it.
    /// `leave` is called for Ctrl-A x.
    pub fn take(leave: impl Fn() + Send + 'static) -> anyhow::Result<Self> {
        let before = if isatty(stdio::stdin()) {
            Some(make_raw()?)
        } else {
            None
        };
        let machine: Arc<Mutex<Option<Arc<Machine>>>> = Arc::default();
        let target = machine.clone();
        thread::Builder::new()
            .name("console".into())
            .spawn(move || read_keys(&target, &leave))
            .context("cannot read the terminal")?;
        Ok(Self { before, machine })
    }

    /// Says which guest is typed to.
    pub fn type_to(&self, machine: Option<Arc<Machine>>) {
        *self.machine.lock().unwrap_or_else(PoisonError::into_inner) = machine;
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // There is nobody to tell if the terminal is gone.
            let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

fn make_raw() -> anyhow::Result<Termios> {
    let before = tcgetattr(stdio::stdin()).context("cannot read the terminal's settings")?;
    let mut raw = before.clone();
    raw.make_raw();
    // Log lines go to the same terminal: let it make carriage returns of them.
    raw.output_modes = before.output_modes;
    tcsetattr(stdio::stdin(), OptionalActions::Now, &raw).context("cannot set the terminal to raw mode")?;
    Ok(before)
}

fn read_keys(machine: &Mutex<Option<Arc<Machine>>>, leave: &impl Fn()) {
    let mut keys = Keys::default();
    for byte in stdin().lock().bytes() {
        let Ok(byte) = byte else { return };
        match keys.press(byte) {
            Pressed::Nothing => {}
            Pressed::Leave => leave(),
            Pressed::Byte(byte) => {
                let machine = machine.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Some(machine) = machine else { continue };
                if machine.type_in(&[byte]) == 0 {
                    thread::sleep(FULL_WAIT);
                    machine.type_in(&[byte]);
                }
            }
        }
    }
}

/// What a key means.
#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    Nothing,
    Leave,
    Byte(u8),
}

#[derive(Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn press(&mut self, byte: u8) -> Pressed {
        match (std::mem::take(&mut self.escaped), byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                Pressed::Nothing
            }
            (true, b'x' | b'X') => Pressed::Leave,
            (true, ESCAPE) => Pressed::Byte(ESCAPE),
            (true, _) => Pressed::Nothing,
            (false, byte) => Pressed::Byte(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_a_x_leaves_and_all_else_goes_to_the_guest() {
        let mut keys = Keys::default();
        let pressed: Vec<_> = b"a\x01\x01x\x01q\x01x"
            .iter()
            .map(|&byte| keys.press(byte))
            .collect();
        use Pressed::{Byte, Leave, Nothing};
        assert_eq!(
            pressed,
            [
                Byte(b'a'),
                Nothing,
                Byte(1),
                Byte(b'x'),
                Nothing,
                Nothing,
                Nothing,
                Leave
            ]
        );
    }
}
