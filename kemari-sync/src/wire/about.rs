//! What a host says of itself to who asks before anything is begun: what both must have in common, and what
//! it has.

use serde::{Deserialize, Serialize};

use super::message::shortened;

/// Most keys of the configuration that are told.
const KEYS_MAX: usize = 1024;
/// Longest key that is told, in bytes.
const KEY_BYTES_MAX: usize = 64;
/// Most images.
const IMAGES_MAX: usize = 64;
/// Most leaves of features.
const FEATURES_MAX: usize = 256;
/// Longest version, in bytes.
const VERSION_BYTES_MAX: usize = 64;

/// The body of an `About` is no longer than this, in bytes.
pub const ABOUT_BYTES_MAX: usize = 128 << 10;
const _: () = assert!(
    KEYS_MAX * (KEY_BYTES_MAX + 7)
        + IMAGES_MAX * (KEY_BYTES_MAX + 12)
        + FEATURES_MAX * 30
        + VERSION_BYTES_MAX
        + 64
        <= ABOUT_BYTES_MAX
);

/// Registers of one leaf of CPUID: function, index, eax, ebx, ecx, edx.
pub type FeatureLeaf = [u32; 6];

/// What a host says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct About {
    /// Version of the program.
    pub version: String,
    /// Each key of what both configurations must have in common, with a checksum of its value: enough to say
    /// which differs, and nothing of what it is.
    pub keys: Vec<(String, u32)>,
    /// The processor that guests see there.
    pub features: Vec<FeatureLeaf>,
    /// The images that are not shared: the disk's id, and the size in bytes.
    pub images: Vec<(String, u64)>,
    /// Memory that is free there, in MiB.
    pub memory_available_mib: u64,
    /// Its wall clock, in milliseconds since 1970.
    pub wall_clock_ms: u64,
}

impl About {
    /// Cut to what may travel.
    pub fn bounded(mut self) -> Self {
        self.version = shortened(self.version, VERSION_BYTES_MAX);
        self.keys.truncate(KEYS_MAX);
        self.images.truncate(IMAGES_MAX);
        self.features.truncate(FEATURES_MAX);
        let keys = self.keys.iter_mut().map(|(key, _)| key);
        for key in keys.chain(self.images.iter_mut().map(|(id, _)| id)) {
            *key = shortened(std::mem::take(key), KEY_BYTES_MAX);
        }
        self
    }
}
