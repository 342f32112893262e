//! What left, and what clients saw of it: one single execution must explain all.

use std::collections::HashMap;

use crate::sim::client::Reply;

/// One side that ran the VM.
struct Rule {
    nonce: u128,
    life: u64,
    from: u64,
}

#[derive(Default)]
pub(in crate::sim) struct History {
    rules: Vec<Rule>,
    /// By number: the digest of the execution in which it left.
    released: HashMap<u64, u64>,
    released_max: u64,
    /// The highest number that a client has seen.
    pub(in crate::sim) seen_max: u64,
    /// Of replies to writes, by page: number and value, in the order of their arrival.
    writes: HashMap<usize, Vec<(u64, u64)>>,
}

impl History {
    pub(in crate::sim) fn new_life(&mut self) {
        let rules = std::mem::take(&mut self.rules);
        *self = Self {
            rules,
            ..Self::default()
        };
    }

    /// A side begins to run the VM from this state.
    pub(in crate::sim) fn begin_rule(
        &mut self,
        nonce: u128,
        life: u64,
        seq: u64,
        hash: u64,
    ) -> Result<(), String> {
        self.rules.push(Rule {
            nonce,
            life,
            from: seq,
        });
        if seq < self.released_max {
            return Err(format!(
                "a side runs from {seq}, although {} had left",
                self.released_max
            ));
        }
        match self.released.get(&seq) {
            Some(known) if *known != hash => {
                Err(format!("a side runs from another {seq} than the one that left"))
            }
            _ => Ok(()),
        }
    }

    /// Something leaves.
    pub(in crate::sim) fn release(&mut self, nonce: u128, life: u64, reply: &Reply) -> Result<(), String> {
        if reply.life != life {
            return Err(format!("output of life {} leaves in life {life}", reply.life));
        }
        let own = self
            .rules
            .iter()
            .rposition(|rule| rule.nonce == nonce)
            .unwrap_or(0);
        let successor = self.rules[own + 1..].iter().find(|rule| rule.life == life);
        if let Some(successor) = successor.filter(|successor| reply.seq > successor.from) {
            return Err(format!(
                "{} leaves from a deposed side, but its successor began at {}",
                reply.seq, successor.from
            ));
        }
        self.released_max = self.released_max.max(reply.seq);
        let known = *self.released.entry(reply.seq).or_insert(reply.hash);
        match known == reply.hash {
            true => Ok(()),
            false => Err(format!("{} leaves twice, from two executions", reply.seq)),
        }
    }

    /// A client hears a reply to a request that it had sent when `seen_at_send` was the highest number known.
    pub(in crate::sim) fn hear(&mut self, reply: Reply, seen_at_send: u64) -> Result<(), String> {
        self.seen_max = self.seen_max.max(reply.seq);
        if reply.seq <= seen_at_send {
            return Err(format!(
                "request {} came after {seen_at_send}, but is {}",
                reply.id, reply.seq
            ));
        }
        if reply.failed {
            return Ok(());
        }
        let writes = self.writes.entry(reply.page).or_default();
        if reply.is_put {
            writes.push((reply.seq, reply.value));
            return Ok(());
        }
        // A value that is known to be older than another known write before this read is stale.
        let latest = writes.iter().filter(|(seq, _)| *seq < reply.seq).max();
        let read = writes.iter().find(|(_, value)| *value == reply.value);
        let read_seq = read.map(|(seq, _)| *seq);
        match (latest, read_seq) {
            (Some((latest, _)), Some(seq)) if seq < *latest => Err(format!(
                "read {} of page {} got write {seq}, not {latest}",
                reply.seq, reply.page
            )),
            (Some((latest, _)), None) if reply.value == 0 => Err(format!(
                "read {} of page {} got nothing, not write {latest}",
                reply.seq, reply.page
            )),
            _ => Ok(()),
        }
    }
}
