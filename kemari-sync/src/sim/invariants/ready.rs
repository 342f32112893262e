//! "Protected" is said of a secondary that could take over now.

use crate::record::Incarnation;

/// It has lacked something for longer than its primary may take to know: then nothing is said of it,
/// or given to it.
pub(in crate::sim) fn counts_for_nothing(
    peer: &Incarnation,
    lacks_us: u64,
    counts: bool,
) -> Result<(), String> {
    match counts {
        false => Ok(()),
        true => Err(format!(
            "the VM counts as protected, or is given away, but {} could not go on with it for {lacks_us} us \
             already",
            peer.host
        )),
    }
}
