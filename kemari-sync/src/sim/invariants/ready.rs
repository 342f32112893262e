//! "Protected" is said of a secondary that could take over now.

use crate::record::Incarnation;

/// It lacks nothing, or only since so short a time that its primary cannot know: `grace_us`.
pub(in crate::sim) fn could_go_on(
    peer: &Incarnation,
    lacks_since_us: Option<u64>,
    now_us: u64,
    grace_us: u64,
) -> Result<(), String> {
    match lacks_since_us.filter(|since_us| now_us > since_us + grace_us) {
        None => Ok(()),
        Some(since_us) => Err(format!(
            "the VM counts as protected, or is given away, but {} could not go on with it for {} us already",
            peer.host,
            now_us - since_us
        )),
    }
}
