//! What is sent as a difference from what the secondary has: pages, and the parts of the machine's state.

use std::rc::Rc;

use crate::wire::{DeltaCache, PAGE_BYTES};

use super::vm::Vm;

/// Memory for the pages that a primary keeps: fewer than there are.
pub(super) const KNOWN_BYTES_MAX: usize = 10 * (PAGE_BYTES + PAGE_BYTES / 16);

/// A page as it is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    Whole(u64),
    /// What changes in `base`.
    Change {
        base: u64,
        bits: u64,
    },
}

impl Content {
    /// A page in a sync that has begun; none: it has not changed. Its number is at the beginning of what is
    /// kept of it.
    pub(super) fn encode(known: &mut DeltaCache, page: u64, value: u64) -> Option<Self> {
        let Some((kept, is_base)) = known.send(page) else {
            return Some(Self::Whole(value));
        };
        let number = kept.first_chunk_mut().expect("a page is longer than a number");
        let base = u64::from_le_bytes(std::mem::replace(number, value.to_le_bytes()));
        match is_base {
            true if base == value => None,
            true => Some(Self::Change {
                base,
                bits: base ^ value,
            }),
            false => Some(Self::Whole(value)),
        }
    }

    pub(super) fn apply(self, page: &mut u64) {
        match self {
            Self::Whole(value) => *page = value,
            Self::Change { bits, .. } => *page ^= bits,
        }
    }
}

/// How many parts there are.
pub(super) const PARTS: usize = 3;

/// What of a machine's state changes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Service,
    Queues,
    Clock,
}

/// A part of the state of a machine, as it is at a capture.
#[derive(Clone, Debug)]
pub(super) struct Part {
    kind: Kind,
    vm: Rc<Vm>,
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        let (one, two) = (&self.vm, &other.vm);
        self.kind == other.kind
            && match self.kind {
                Kind::Service => one.has_same_service(two),
                Kind::Queues => one.has_same_queues(two),
                Kind::Clock => one.has_same_clock(two),
            }
    }
}

/// All parts of it.
pub(super) fn parts_of(vm: &Vm) -> Vec<Part> {
    let vm = Rc::new(vm.clone());
    let kinds = [Kind::Service, Kind::Queues, Kind::Clock];
    kinds.map(|kind| Part { kind, vm: vm.clone() }).into()
}

/// Puts parts that have come in the place of those that are there.
pub(super) fn take_parts(state: &mut Option<Box<Vm>>, parts: &[Part]) {
    let Some(first) = parts.first() else { return };
    let vm = state.get_or_insert_with(|| Box::new((*first.vm).clone()));
    for part in parts {
        match part.kind {
            Kind::Service => vm.take_service(&part.vm),
            Kind::Queues => vm.take_queues(&part.vm),
            Kind::Clock => vm.take_clock(&part.vm),
        }
    }
}
