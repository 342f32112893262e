//! What the tests share.

pub mod bench;
pub mod driver;
pub mod network;
pub mod pair;
pub mod random;
pub mod resp;
pub mod rig;
pub mod watchdog;
