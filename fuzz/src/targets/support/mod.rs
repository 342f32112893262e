//! What the targets share.

pub(crate) mod bench;
pub(crate) mod driver;
pub(crate) mod scratch;
pub(crate) mod store;
pub(crate) mod tape;
