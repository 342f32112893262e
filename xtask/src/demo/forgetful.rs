//! A file that forgets at a power cut what was not flushed, for hosts on this machine: there the kernel, and
//! with it the page cache, outlives what is killed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use lab::Loss;

use crate::own_file::{Change, OwnFile, Storage, part_of};

/// Such a file, there as long as this.
pub(crate) struct ForgetfulFile {
    content: Arc<Forgetful>,
    _file: OwnFile,
}

impl ForgetfulFile {
    /// Puts one of zeros there. `ignores_flushes`: as if nobody had asked for one.
    pub(crate) fn mount(path: PathBuf, bytes: u64, ignores_flushes: bool) -> Result<Self> {
        let content = Arc::new(Forgetful::new(bytes, ignores_flushes));
        Ok(Self {
            _file: OwnFile::mount(path, content.clone())?,
            content,
        })
    }

    /// The power is gone: of what was not flushed a random part is forgotten, sector by sector.
    pub(crate) fn lose_power(&self) {
        self.content.lose_power();
    }

    /// What power cuts have done so far.
    pub(crate) fn loss(&self) -> Loss {
        self.content.lock().loss
    }
}

/// Bytes of a file: as they are read, and as they are durable.
struct Forgetful {
    state: Mutex<State>,
    /// Flushes make nothing durable.
    ignores_flushes: bool,
}

struct State {
    content: Vec<u8>,
    durable: Vec<u8>,
    unflushed: Vec<Change>,
    loss: Loss,
}

impl Forgetful {
    fn new(bytes: u64, ignores_flushes: bool) -> Self {
        let zeros = vec![0; bytes as usize];
        Self {
            state: Mutex::new(State {
                content: zeros.clone(),
                durable: zeros,
                unflushed: Vec::new(),
                loss: Loss::default(),
            }),
            ignores_flushes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose_power(&self) {
        let mut state = self.lock();
        let State {
            content,
            durable,
            unflushed,
            loss,
        } = &mut *state;
        for change in unflushed.drain(..) {
            change.apply_torn(durable, || {
                let is_kept = rand::random();
                match is_kept {
                    true => loss.kept += 1,
                    false => loss.forgotten += 1,
                }
                is_kept
            });
        }
        content.clone_from(durable);
    }
}

impl Storage for Forgetful {
    fn bytes(&self) -> u64 {
        self.lock().content.len() as u64
    }

    fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        part_of(&self.lock().content, offset, bytes)
    }

    fn change(&self, change: Change) {
        let mut state = self.lock();
        change.apply(&mut state.content);
        state.unflushed.push(change);
    }

    fn sync(&self) {
        let mut state = self.lock();
        state.loss.flushes += 1;
        if self.ignores_flushes {
            return;
        }
        let State {
            durable, unflushed, ..
        } = &mut *state;
        for change in unflushed.drain(..) {
            change.apply(durable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &Forgetful, offset: u64, byte: u8) {
        let data = vec![byte; 64 << 10];
        file.change(Change::Write { offset, data });
    }

    #[test]
    fn what_was_flushed_stays_and_of_the_rest_a_part_goes() {
        for ignores_flushes in [false, true] {
            let file = Forgetful::new(1 << 20, ignores_flushes);
            write(&file, 0, 1);
            file.sync();
            write(&file, 64 << 10, 2);
            assert_eq!(
                file.read(64 << 10, 3),
                [2; 3],
                "a reader sees what is not flushed"
            );
            file.lose_power();
            let (flushed, other) = (file.read(0, 64 << 10), file.read(64 << 10, 64 << 10));
            assert_eq!(flushed.iter().all(|byte| *byte == 1), !ignores_flushes);
            let kept = other.chunks(512).filter(|sector| **sector == [2; 512]).count();
            let gone = other.chunks(512).filter(|sector| **sector == [0; 512]).count();
            assert!(kept > 20 && gone > 20 && kept + gone == 128, "{kept} {gone}");
            assert_eq!(file.lock().loss.flushes, 1);
        }
    }
}
