//! What the tests share.

pub mod asker;
pub mod bench;
pub mod boot_sector;
pub mod driver;
pub mod network;
pub mod pair;
pub mod random;
pub mod resp;
pub mod rig;
pub mod stores;
pub mod tiny_firmware;
pub mod watchdog;
