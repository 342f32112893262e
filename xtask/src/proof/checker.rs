//! Is there one order of the operations that explains every answer?
//!
//! Each key is a register that one connection writes, with the counters 1, 2, 3, ... in the order in which it
//! asked. Registers are linearizable together exactly if each of them is (Herlihy and Wing, 1990), and for a
//! register whose order of writes is known that can be decided exactly. Let write *i* take effect at a point
//! `p(i)` between its invocation and its answer, and a read of *i* at a point of its own interval within
//! `[p(i), p(i+1)]`. So `p(i)` is not later than the end of any read of *i*, and `p(i+1)` not before the
//! begin of any read of *i*. Such non-decreasing points exist exactly if no lower bound of a `p(j)`, j <= i,
//! lies above an upper bound of `p(i)`. As writes are asked in order, that comes down to three faults, each
//! seen on a single read:
//!
//! * it returns a write that was asked for only after the read had ended: *from the future*;
//! * it begins after a newer write was acknowledged: *stale*, or the newer write is *lost*;
//! * it begins after another read had returned a newer write: *going back*.
//!
//! A write without an answer may have taken effect at any time after it was asked for, or never: if no read
//! returned it, it bounds nothing. What is missing for good is *lost*; everything else is *contradicted*.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Answer, History, Nanos, Request};

/// What the checker found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Number of acknowledged writes.
    pub acknowledged: u64,
    /// Number of answered reads.
    pub reads: u64,
    /// Acknowledged writes that were gone: a sentence each.
    pub lost: Vec<String>,
    /// Answers that no single order explains: a sentence each.
    pub contradicted: Vec<String>,
}

impl Verdict {
    /// Whether one order of the operations explains every answer.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.contradicted.is_empty()
    }
}

/// A history that this checker cannot judge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// More than one connection wrote a key.
    #[error("key {0} was written by two connections: only histories with one writer a key can be judged")]
    Writers(u32),
    /// The counters of a key's writes do not grow from 1 by 1 in the order of asking.
    #[error("key {0}: the write with counter {1} is not the next one in the order of asking")]
    Order(u32, u64),
    /// An answer was recorded before its request.
    #[error("key {0}: an answer is older than its request")]
    Time(u32),
}

/// Judges a history.
pub fn check(history: &History) -> Result<Verdict, HistoryError> {
    let mut verdict = Verdict::default();
    for end in history.connections.iter().filter(|end| end.stray_answers > 0) {
        verdict.contradicted.push(format!(
            "connection {} got {} more answers than it had asked questions",
            end.connection, end.stray_answers
        ));
    }
    for (key, register) in registers(history, &mut verdict.contradicted)? {
        verdict.acknowledged += register
            .writes
            .iter()
            .filter(|write| write.acknowledged.is_some())
            .count() as u64;
        verdict.reads += register.reads.len() as u64;
        register.judge(key, &mut verdict);
    }
    Ok(verdict)
}

/// Sorts a history by keys; answers that are impossible whatever the order go to `contradicted` at once.
fn registers(
    history: &History,
    contradicted: &mut Vec<String>,
) -> Result<BTreeMap<u32, Register>, HistoryError> {
    let mut registers: BTreeMap<u32, Register> = BTreeMap::new();
    for op in &history.operations {
        let register = registers.entry(op.key).or_default();
        if op.answer.as_ref().is_some_and(|(at, _)| *at < op.invoked) {
            return Err(HistoryError::Time(op.key));
        }
        if let Request::Set(counter) = op.request {
            if register
                .writer
                .replace(op.connection)
                .is_some_and(|writer| writer != op.connection)
            {
                return Err(HistoryError::Writers(op.key));
            }
            let in_order = register
                .writes
                .last()
                .is_none_or(|last| last.invoked <= op.invoked);
            if counter != register.writes.len() as u64 + 1 || !in_order {
                return Err(HistoryError::Order(op.key, counter));
            }
        }
        match (op.request, &op.answer) {
            (Request::Set(_), Some((at, Answer::Written))) => register.write(op.invoked, Some(*at)),
            (Request::Set(_), answer) => {
                register.write(op.invoked, None);
                if let Some((at, answer)) = answer {
                    contradicted.push(impossible(op.key, *at, answer));
                }
            }
            (Request::Get, Some((ended, Answer::Value(value)))) => {
                register.reads.push(Read {
                    began: op.invoked,
                    ended: *ended,
                    value: *value,
                });
            }
            (Request::Get, Some((at, answer))) => contradicted.push(impossible(op.key, *at, answer)),
            (Request::Get, None) => {}
        }
    }
    Ok(registers)
}

fn impossible(key: u32, at: Nanos, answer: &Answer) -> String {
    let what = match answer {
        Answer::Impossible(what) => what.clone(),
        Answer::Written => "a read was answered as if it were a write".to_owned(),
        Answer::Value(_) => "a write was answered as if it were a read".to_owned(),
    };
    format!("key {key} at {}: {what}", ms(at))
}

#[derive(Default)]
struct Register {
    writer: Option<u16>,
    /// Write *i* is entry *i - 1*.
    writes: Vec<Write>,
    reads: Vec<Read>,
}

struct Write {
    invoked: Nanos,
    acknowledged: Option<Nanos>,
}

struct Read {
    began: Nanos,
    ended: Nanos,
    value: u64,
}

/// A time and the newest value known up to then, ascending in both.
type Known = Vec<(Nanos, u64)>;

impl Register {
    fn write(&mut self, invoked: Nanos, acknowledged: Option<Nanos>) {
        self.writes.push(Write {
            invoked,
            acknowledged,
        });
    }

    fn judge(&self, key: u32, verdict: &mut Verdict) {
        let acknowledged = known(
            self.writes
                .iter()
                .zip(1..)
                .filter_map(|(w, i)| Some((w.acknowledged?, i))),
        );
        let written = self.writes.len() as u64;
        let (reads, strange): (Vec<&Read>, Vec<&Read>) = self.reads.iter().partition(|read| {
            read.value == 0
                || read.value <= written && self.writes[read.value as usize - 1].invoked <= read.ended
        });
        for read in strange {
            verdict.contradicted.push(format!(
                "key {key}: the read that ended at {} returned write {}, which was not asked for until then",
                ms(read.ended),
                read.value
            ));
        }
        let seen = known(reads.iter().map(|read| (read.ended, read.value)));
        let mut lost = BTreeSet::new();
        for read in &reads {
            let acknowledged_before = newest_before(&acknowledged, read.began);
            let seen_before = newest_before(&seen, read.began);
            let newest = acknowledged_before.max(seen_before);
            if newest <= read.value {
                continue;
            }
            // What the register returned later again was not lost: this answer alone was out of order.
            let later = reads
                .iter()
                .filter(|other| other.ended > read.ended && other.value <= newest);
            let returned_later = later.map(|other| other.value).max().unwrap_or(0);
            let gone = read.value.max(returned_later) + 1..=newest;
            let gone = gone.filter(|&i| self.acknowledged_before(i, read.began));
            let mut nothing_lost = true;
            for i in gone {
                nothing_lost = false;
                if lost.insert(i) {
                    verdict.lost.push(format!(
                        "key {key}: write {i} was acknowledged, but the read from {} to {} returned {}",
                        ms(read.began),
                        ms(read.ended),
                        if read.value == 0 {
                            "nothing".to_owned()
                        } else {
                            format!("write {}", read.value)
                        }
                    ));
                }
            }
            let vanished = seen_before > acknowledged_before && returned_later < seen_before;
            if nothing_lost || returned_later > read.value || vanished {
                verdict.contradicted.push(format!(
                    "key {key}: the read from {} to {} returned write {}, although write {newest} had been \
                     {} before",
                    ms(read.began),
                    ms(read.ended),
                    read.value,
                    if seen_before == newest {
                        "seen"
                    } else {
                        "acknowledged"
                    }
                ));
            }
        }
    }

    fn acknowledged_before(&self, value: u64, time: Nanos) -> bool {
        self.writes[value as usize - 1]
            .acknowledged
            .is_some_and(|at| at < time)
    }
}

/// Sorts by time and keeps the newest value so far.
fn known(events: impl Iterator<Item = (Nanos, u64)>) -> Known {
    let mut events: Known = events.collect();
    events.sort_unstable();
    let mut newest = 0;
    for (_, value) in &mut events {
        newest = newest.max(*value);
        *value = newest;
    }
    events
}

/// The newest value known strictly before a time: what happens at the same instant is concurrent.
fn newest_before(known: &Known, time: Nanos) -> u64 {
    let count = known.partition_point(|(at, _)| *at < time);
    count.checked_sub(1).map_or(0, |last| known[last].1)
}

fn ms(time: Nanos) -> String {
    format!("{:.3} ms", time as f64 / 1e6)
}

#[cfg(test)]
#[path = "checker_test.rs"]
mod tests;
