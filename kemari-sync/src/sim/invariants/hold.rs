//! Output is held only for a secondary to which the way is proved: else the guest would wait for nothing.

use crate::sim::net::{Connection, PRIMARY};

/// The primary of this life begins to hold output for the peer of its newest connection.
pub(in crate::sim) fn holds(connections: &[Connection], life: u64) -> Result<(), String> {
    let mut own = connections.iter().rev();
    match own.find(|connection| connection.ends[PRIMARY].life == life) {
        Some(connection) if connection.is_proved => Ok(()),
        _ => Err("output is held for a secondary to which the way was never proved".to_owned()),
    }
}
