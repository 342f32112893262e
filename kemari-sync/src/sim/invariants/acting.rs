//! Whoever the record says acts has all that it needs to run the VM: nothing that may fail is left, since
//! from then on nobody else can go on with it.

use crate::record::Incarnation;

pub(in crate::sim) fn acts(owner: &Incarnation, lacks: Option<&str>) -> Result<(), String> {
    match lacks {
        None => Ok(()),
        Some(what) => Err(format!("{} is to act, and lacks {what}", owner.host)),
    }
}
