//! What the targets share.

pub mod bench;
pub mod driver;
pub mod scratch;
pub mod store;
pub mod tape;
