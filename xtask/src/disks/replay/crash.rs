//! What a power cut may leave: all that was made durable, and of what was written since any part.

use std::ops::Range;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::log::Entry;

/// How a cut treats what was not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of it is there: the process was killed.
    Killed,
    /// All of it is there, up to this change.
    Prefix,
    /// Some of the changes are there.
    Subset,
    /// Of each change some sectors are there.
    Torn,
}

/// The changes between two moments at which all is durable, with the file as it was at the first.
pub struct Stretch {
    /// The file, durable.
    pub durable: Vec<u8>,
    /// The log of it.
    pub places: Range<usize>,
}

/// Cuts a log where all became durable.
pub fn stretches(mut content: Vec<u8>, entries: &[Entry]) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    let mut start = 0;
    let mut durable = content.clone();
    for (place, entry) in entries.iter().enumerate() {
        match entry {
            Entry::Changed(change) => change.apply(&mut content),
            Entry::Synced => {
                let places = start..place + 1;
                stretches.push(Stretch { durable, places });
                (start, durable) = (place + 1, content.clone());
            }
            Entry::Asked(_) | Entry::Ended(_) => {}
        }
    }
    let places = start..entries.len();
    stretches.push(Stretch { durable, places });
    stretches
}

impl Stretch {
    /// The file as a cut at this place leaves it.
    pub fn cut(&self, entries: &[Entry], place: usize, cut: Cut, random: &mut ChaCha8Rng) -> Vec<u8> {
        let mut content = self.durable.clone();
        let changes = entries[self.places.start..place].iter();
        let changes = changes.filter_map(|entry| match entry {
            Entry::Changed(change) => Some(change),
            _ => None,
        });
        let kept_of_ten = random.random_range(1..10);
        let mut is_kept = || random.random_range(0..10) < kept_of_ten;
        for change in changes {
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
