//! Never two sides release in one term.

use std::collections::HashMap;

use crate::record::{Record, Term};

/// Who released in which term.
pub(in crate::sim) type Releasers = HashMap<Term, u128>;

pub(in crate::sim) fn releases(releasers: &mut Releasers, record: &Record) -> Result<(), String> {
    let first = *releasers.entry(record.term).or_insert(record.owner.nonce);
    match first == record.owner.nonce {
        true => Ok(()),
        false => Err(format!(
            "a second side, {}, releases in term {}",
            record.owner.host, record.term
        )),
    }
}
