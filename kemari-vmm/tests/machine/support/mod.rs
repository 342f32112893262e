//! What the tests share.

pub(crate) mod asker;
pub(crate) mod bench;
pub(crate) mod boot_sector;
pub(crate) mod driver;
pub(crate) mod network;
pub(crate) mod pair;
pub(crate) mod random;
pub(crate) mod resp;
pub(crate) mod rig;
pub(crate) mod stores;
pub(crate) mod tiny_firmware;
pub(crate) mod watchdog;
