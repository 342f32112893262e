//! Whoever acts is not struck any more by a fence of an earlier term.

use crate::record::Term;

pub(in crate::sim) fn strikes(acts_in: Option<Term>, fence: Term) -> Result<(), String> {
    match acts_in.filter(|term| *term >= fence) {
        None => Ok(()),
        Some(term) => Err(format!(
            "a fence of term {fence} strikes the host that acts in term {term}"
        )),
    }
}

pub(in crate::sim) fn acts(host: usize, fence: Option<Term>) -> Result<(), String> {
    match fence {
        None => Ok(()),
        Some(term) => Err(format!(
            "host {host} acts while a fence of term {term} may still strike it"
        )),
    }
}
