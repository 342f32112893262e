//! What a side, which somebody may have got hold of, asks its steward for, on both of its sockets.

use kemari::fuzzing;

pub(crate) fn run(bytes: &[u8]) {
    fuzzing::take_requests_of_steward(bytes);
}

/// Requests of both kinds, one by one and one after the other.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    fuzzing::requests_of_steward()
}
