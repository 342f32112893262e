//! What a power cut may leave: all that was made durable, and of what was written since any part.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::log::Entry;
use crate::own_file::Change;

/// How a cut treats what was not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All of it is there: the process was killed.
    Killed,
    /// All of it is there, up to this change.
    Prefix,
    /// Some of the changes are there.
    Subset,
    /// Of each change some sectors are there.
    Torn,
}

/// A place in a log at which the power may be cut: behind this many entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Entries before it.
    pub place: usize,
    /// So many of them are from before all became durable the last time.
    durable: usize,
}

/// Each moment behind a change of the file, or the end of a request.
pub(crate) fn moments(entries: &[Entry]) -> Vec<Moment> {
    let mut durable = 0;
    let mut moments = Vec::new();
    for (place, entry) in (1..).zip(entries) {
        match entry {
            Entry::Synced => durable = place,
            Entry::Changed(_) | Entry::Ended(_) => moments.push(Moment { place, durable }),
            Entry::Asked(_) => {}
        }
    }
    moments
}

impl Moment {
    /// A file of zeros, with all that is durable.
    pub(crate) fn durable(&self, mut content: Vec<u8>, entries: &[Entry]) -> Vec<u8> {
        changes(&entries[..self.durable]).for_each(|change| change.apply(&mut content));
        content
    }

    /// The file with all that is durable, as a cut leaves it.
    pub(crate) fn cut(
        &self,
        mut content: Vec<u8>,
        entries: &[Entry],
        cut: Cut,
        random: &mut ChaCha8Rng,
    ) -> Vec<u8> {
        let kept_of_ten = random.random_range(1..10);
        let mut is_kept = || random.random_range(0..10) < kept_of_ten;
        for change in changes(&entries[self.durable..self.place]) {
            match cut {
                Cut::Killed | Cut::Prefix => change.apply(&mut content),
                Cut::Subset if is_kept() => change.apply(&mut content),
                Cut::Subset => {}
                Cut::Torn => change.apply_torn(&mut content, &mut is_kept),
            }
        }
        content
    }
}

fn changes(entries: &[Entry]) -> impl Iterator<Item = &Change> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Changed(change) => Some(change),
        _ => None,
    })
}
