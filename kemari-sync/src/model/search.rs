//! Breadth first: the first violation found is the one with the shortest way there.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::faults::inject;

use super::moves::Move;
use super::state::State;
use super::{Bounds, Exploration, Removed, Violation};

/// Keys are digests already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// By state: the one before, and the move from there.
type Seen = HashMap<u64, (u64, Move), BuildHasherDefault<AsIs>>;

/// Explores everything within the bounds, with one rule taken out or none, until one is broken.
pub fn explore(bounds: Bounds, removed: Removed) -> Exploration {
    inject(match removed {
        Removed::Mechanism(fault) => Some(fault),
        _ => None,
    });
    let exploration = search(&bounds, removed);
    inject(None);
    exploration
}

fn search(bounds: &Bounds, removed: Removed) -> Exploration {
    let mut result = Exploration::default();
    let first = begin(bounds, removed);
    let mut seen = Seen::default();
    seen.insert(first.digest(), (0, Move::Execute(0)));
    let mut level = vec![first];
    let mut moves = Vec::new();
    while !level.is_empty() && result.depth < bounds.depth_max && seen.len() < bounds.states_max {
        let mut next = Vec::new();
        for state in level {
            state.moves(&mut moves);
            let key = state.digest();
            for &it in &moves {
                let mut after = state.clone();
                after.make(it);
                result.moves += 1;
                after
                    .judged
                    .drain(..)
                    .for_each(|rule| *result.exercised.entry(rule).or_default() += 1);
                let reached = after.digest();
                if let Some((rule, text)) = after.broken.take() {
                    let trace = replay(bounds, removed, &seen, key, it);
                    result.violation = Some(Violation { rule, text, trace });
                    (result.states, result.depth) = (seen.len(), result.depth + 1);
                    return result;
                }
                if let std::collections::hash_map::Entry::Vacant(entry) = seen.entry(reached) {
                    entry.insert((key, it));
                    next.push(after);
                }
            }
        }
        result.depth += u32::from(!next.is_empty());
        level = next;
    }
    result.complete = level.is_empty();
    result.states = seen.len();
    result
}

/// The beginning: a VM that is about to boot on the first host, or is protected by the second.
fn begin(bounds: &Bounds, removed: Removed) -> State {
    let mut state = State::new(bounds, removed);
    let mut moves = Vec::new();
    while bounds.protected && !is_calm(&state) {
        state.moves(&mut moves);
        let Some(next) = moves.iter().find(|it| {
            matches!(
                it,
                Move::Execute(_) | Move::Answer { .. } | Move::Deliver { .. } | Move::Dial { .. }
            )
        }) else {
            break;
        };
        state.make(*next);
    }
    state.judged.clear();
    state
}

fn is_calm(state: &State) -> bool {
    let is_paired = state.record.as_ref().is_some_and(|record| record.peer.is_some());
    is_paired
        && state.asks.is_empty()
        && state
            .links
            .iter()
            .all(|link| link.queues.iter().all(Vec::is_empty))
}

/// The way to a state, told.
fn replay(bounds: &Bounds, removed: Removed, seen: &Seen, last: u64, it: Move) -> Vec<String> {
    let mut state = begin(bounds, removed);
    let first = state.digest();
    let (mut way, mut key) = (vec![it], last);
    while key != first {
        let Some((before, it)) = seen.get(&key) else { break };
        way.push(*it);
        key = *before;
    }
    state.notes = Some(Vec::new());
    for it in way.into_iter().rev() {
        state.make(it);
    }
    let mut lines = state.notes.unwrap_or_default();
    lines.extend(
        state
            .broken
            .map(|(rule, text)| format!("VIOLATION of {rule:?}: {text}")),
    );
    lines
}
