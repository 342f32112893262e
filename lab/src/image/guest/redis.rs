//! A guest that serves Redis.

use super::Recipe;

/// Redis and every library that its programs load.
const PACKAGES: [&str; 17] = [
    "redis-server",
    "redis-tools",
    "libc6",
    "libatomic1",
    "libcap2",
    "libcrypt1",
    "libgcc-s1",
    "libgcrypt20",
    "libgpg-error0",
    "libjemalloc2",
    "liblz4-1",
    "liblzf1",
    "liblzma5",
    "libssl3",
    "libstdc++6",
    "libsystemd0",
    "libzstd1",
];
const LEFT_OUT: [&str; 4] = [
    "usr/share",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "lib/systemd",
];

pub(super) fn recipe() -> Recipe {
    Recipe {
        packages: PACKAGES.map(str::to_owned).to_vec(),
        left_out: LEFT_OUT.map(str::to_owned).to_vec(),
        files: vec![
            ("etc/redis.conf", include_bytes!("redis.conf")),
            ("etc/service", include_bytes!("redis.sh")),
        ],
        prepare: "mkdir -p /var/lib/redis",
    }
}
