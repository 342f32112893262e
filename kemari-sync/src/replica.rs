//! Replicated disks: what an image's record says, and what follows from it. The only two questions that can
//! destroy data are answered here: may a VM start from this image, and may this image be overwritten by that
//! one?

use serde::{Deserialize, Serialize};

use crate::faults::{Fault, fault};
use crate::record::{Phase, Record, Term};

/// Most replicated disks of a VM.
pub const REPLICAS_MAX: usize = 15;

/// What an image is, by its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ImageState {
    /// It holds one moment of the VM.
    Whole,
    /// Blocks of another image were being copied into it: it holds no moment of the VM.
    Target,
    /// The VM was stopped cleanly, and it holds everything.
    Stopped,
}

/// What the record of an image says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageWord {
    /// Drawn at random when a VM first ran from it, and copied with its content.
    pub lineage: u128,
    /// The last reign in which it was written; 0: none yet.
    pub term: Term,
    /// Another reign in which it may be the last, one that was about to begin; 0: none. Equal to `term`: that
    /// one was about to begin.
    pub next_term: Term,
    /// What it is.
    pub state: ImageState,
    /// Images with the same base differ at most where their records say.
    pub base: u128,
}

/// An image's history, as its record says it. Each change is durable before what it is about begins,
/// or is said to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHistory {
    /// What others are told of it.
    pub word: ImageWord,
    /// The reign in which the other image last had the same base, and followed; 0: none.
    pub paired_term: Term,
}

impl ImageHistory {
    /// Of an image that a VM is to run from in this reign, or of one from which none has run (0). `lineage`
    /// and `base` are drawn at random.
    pub fn first(lineage: u128, base: u128, term: Term) -> Self {
        let word = ImageWord {
            lineage,
            term,
            next_term: 0,
            state: ImageState::Whole,
            base,
        };
        Self { word, paired_term: 0 }
    }

    /// Blocks of another image are going to be written over this one.
    pub fn target(plan: &CopyDisk) -> Self {
        let mut target = Self::first(plan.lineage, plan.base, plan.term);
        if !fault(Fault::WholeEarly) {
            target.word.state = ImageState::Target;
        }
        target
    }

    /// A reign is about to begin, under which the image may be written; 0: none is to begin from it.
    pub fn announce(&mut self, next_term: Term) {
        self.word.next_term = next_term;
    }

    /// The image is written in this reign from here on. `paired`: and the other host's image follows.
    pub fn rule(&mut self, term: Term, paired: bool) {
        (self.word.term, self.word.next_term, self.word.state) = (term, 0, ImageState::Whole);
        if paired {
            self.paired_term = term;
        }
    }

    /// The image is going to be copied: a new base counts with the marks of the copy.
    pub fn become_source(&mut self, plan: &CopyDisk) {
        if self.word.base != plan.base {
            (self.word.base, self.paired_term) = (plan.base, 0);
        }
    }

    /// Everything of the first sync of a pair is here and durable. The pair, of `term`,
    /// is about to be recorded.
    pub fn become_whole(&mut self, term: Term) {
        self.rule(term, true);
        self.announce(term);
    }

    /// That pair is known to be recorded.
    pub fn note_recorded(&mut self) {
        self.announce(0);
    }

    /// The VM was stopped cleanly, and everything that it wrote is durable here.
    pub fn stop(&mut self) {
        self.word.state = ImageState::Stopped;
    }
}

/// A disk's image on one host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskOffer {
    /// The disk's id.
    pub disk: String,
    /// Size of the image in bytes.
    pub bytes: u64,
    /// What its record says; `None`: it has none.
    pub word: Option<ImageWord>,
    /// The operator's word that it may be overwritten, whatever it holds.
    pub overwrite: bool,
}

/// How a disk is to be copied to a secondary.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CopyDisk {
    /// The disk's id.
    pub disk: String,
    /// Lineage of the image that is copied.
    pub lineage: u128,
    /// The reign of whoever copies.
    pub term: Term,
    /// The base of both images from now on.
    pub base: u128,
    /// Only the extents of both maps are looked at; otherwise all are.
    pub only_marked: bool,
}

/// The image that a primary runs from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The disk's id.
    pub disk: String,
    /// Size of the image in bytes.
    pub bytes: u64,
    /// Its lineage.
    pub lineage: u128,
    /// The base that it has in common with another image, if that one's record says so too.
    pub base: u128,
    /// The reign of the last pair with that base: an image of an older one was put back from a copy.
    pub paired_term: Term,
}

/// Decides how `source`, of the reign `term`, is copied over the image that a secondary offers. `fresh_base`
/// is drawn at random.
///
/// # Errors
/// A sentence that says why it must not be copied; nothing may be written then.
pub fn plan_copy(
    source: &Source,
    term: Term,
    offer: &DiskOffer,
    fresh_base: u128,
) -> Result<CopyDisk, String> {
    let disk = &source.disk;
    if offer.disk != *disk {
        return Err(format!(
            "the secondary offers the disk {} instead of {disk}",
            offer.disk
        ));
    }
    if offer.bytes != source.bytes {
        return Err(format!(
            "the image of disk {disk} has {} bytes on the secondary and {} here; make them as long, and, if \
             it is this one that has grown, say `kemari resize` here",
            offer.bytes, source.bytes
        ));
    }
    let whole = CopyDisk {
        disk: disk.clone(),
        lineage: source.lineage,
        term,
        base: fresh_base,
        only_marked: false,
    };
    // From an image of term 0 no VM has ever run.
    let Some(word) = offer
        .word
        .as_ref()
        .filter(|word| !offer.overwrite && word.term != 0)
    else {
        return Ok(whole);
    };
    let id = lineage_id(word.lineage);
    let advice = format!("if it is not needed any more, start that secondary with --overwrite-disks {id}");
    if word.lineage != source.lineage {
        return Err(format!(
            "the image of disk {disk} on the secondary is of another history ({id}) than the one here ({}); \
             {advice}",
            lineage_id(source.lineage)
        ));
    }
    // A pair that was certainly never recorded: this primary rules alone in the reign before.
    let never_began = word.term == term + 1 && word.next_term == word.term;
    if word.term > term && !never_began && word.state != ImageState::Target {
        return Err(format!(
            "the image of disk {disk} on the secondary is newer (term {}) than the one here (term {term}); \
             {advice}",
            word.term
        ));
    }
    if word.base == source.base && word.term.max(word.next_term) >= source.paired_term {
        return Ok(CopyDisk {
            base: source.base,
            only_marked: true,
            ..whole
        });
    }
    Ok(whole)
}

/// The first digits of a lineage: enough for people.
pub fn lineage_id(lineage: u128) -> String {
    format!("{:08x}", lineage >> 96)
}

/// Decides whether a VM may be started from these images, which are on `host`,
/// over this record of the arbiter.
///
/// # Errors
/// A sentence that says why not, and what to do.
pub fn may_start(
    images: &[DiskOffer],
    host: &str,
    record: Option<&Record>,
    adopt: bool,
) -> Result<(), String> {
    images
        .iter()
        .try_for_each(|image| may_start_from(image, host, record, adopt))
}

fn may_start_from(image: &DiskOffer, host: &str, record: Option<&Record>, adopt: bool) -> Result<(), String> {
    let disk = &image.disk;
    if image
        .word
        .as_ref()
        .is_some_and(|word| word.state == ImageState::Target)
    {
        return Err(format!(
            "the image of disk {disk} is inconsistent: a copy from another host was not finished; start the \
             VM there"
        ));
    }
    if adopt {
        return Ok(());
    }
    let advice = "if this image is the right one all the same, start with --adopt-disks";
    match (record, &image.word) {
        (None, None) => Ok(()),
        (None, Some(word)) if word.term == 0 => Ok(()),
        (None, Some(word)) => Err(format!(
            "the arbiter has no record of the VM, but the image of disk {disk} was written in term {}: is \
             this the right arbiter? {advice}",
            word.term
        )),
        (Some(record), None) => Err(format!(
            "the image of disk {disk} has no record, so nobody knows whether it is the last one; the VM was \
             last run by {} (term {}): {}; {advice}",
            record.owner.host,
            record.term,
            go_there(record, host)
        )),
        (Some(record), Some(word)) if is_last(word, host, record) => Ok(()),
        (Some(record), Some(word)) if record.phase == Phase::Won && record.owner.host == host => {
            Err(format!(
                "the image of disk {disk} was written in term {}, and this host has won term {} without \
                 having begun it, so the image may lack what the host before had flushed: assert there that \
                 term {} is dead, and start the VM there; {advice}",
                word.term, record.term, record.term
            ))
        }
        (Some(record), Some(word)) => Err(format!(
            "the image of disk {disk} is not the last one: it was written in term {}, and the VM was last \
             run by {} in term {}; {}; {advice}",
            word.term,
            record.owner.host,
            record.term,
            go_there(record, host)
        )),
    }
}

/// What is to be done with a VM that the owner of this record may run at this moment.
fn go_there(record: &Record, host: &str) -> &'static str {
    match record.owner.host == host || record.phase == Phase::Stopped {
        true => "start it there",
        false => "if it runs there, say `kemari secondary` here, else start it there",
    }
}

/// Whether nobody can have written another image since this one.
fn is_last(word: &ImageWord, host: &str, record: &Record) -> bool {
    let is_owner = record.owner.host == host;
    let is_peer = record.peer.as_ref().is_some_and(|peer| peer.host == host);
    // What was about to begin has begun only if the record names this host: another may have won a term of
    // the same number. It is the owner's next reign, or the pair whose first sync this image has.
    let has_begun = is_owner && word.next_term != 0;
    let is_certain = word.term != word.next_term || is_owner || is_peer;
    let is_of = |term: Term| (is_certain && term == word.term) || (has_begun && term == word.next_term);
    match record.phase {
        Phase::Acting => is_of(record.term),
        // Nobody has written in a term that was won only. But a secondary that has won it may not have
        // written yet what its primary had flushed. That one's record may not know yet that the pair was
        // recorded which was won against.
        Phase::Won => {
            let has_paired = is_peer && word.next_term == record.base;
            // Nor can its primary have acted in a term that it has won since, and was replaced in,
            // though its record says so.
            let is_between = record.base < word.term && word.term < record.term;
            let was_replaced = is_peer && is_between && word.next_term != word.term;
            is_of(record.term) || (!is_owner && (is_of(record.base) || has_paired || was_replaced))
        }
        // The term of a stop begins when everything is written.
        Phase::Stopped => {
            is_of(record.term) || (word.state == ImageState::Stopped && word.term + 1 == record.term)
        }
    }
}

/// The reign that an image's record says may begin, when `new` is about to be asked for. That of a stop
/// begins on no image that `lacks` durably what the VM was stopped with: none is to be started from it.
pub fn announced_term(new: &Record, lacks: impl FnOnce() -> bool) -> Term {
    match new.phase == Phase::Stopped && lacks() && !fault(Fault::ForgetFailedDrain) {
        true => 0,
        false => new.term,
    }
}

/// The reign that the records of a primary's images say is its own.
///
/// It does not go back: an ack of the pair may come, and release, when the records say already that this side
/// acts alone, and the arbiter is just being told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ruled(Term);

impl Ruled {
    /// Of a side that begins: each start and each restore leaves the records with its term.
    pub fn of(term: Term) -> Self {
        Self(term)
    }

    /// Whether the records must be written before an image is, in this reign.
    pub fn lacks(&self, term: Term) -> bool {
        match fault(Fault::RuleBackwards) {
            true => self.0 != term,
            false => self.0 < term,
        }
    }

    /// The records say this reign.
    pub fn note(&mut self, term: Term) {
        self.0 = term;
    }

    /// The records say something else: the VM has ended here.
    pub fn forget(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
#[path = "replica_test.rs"]
mod tests;
