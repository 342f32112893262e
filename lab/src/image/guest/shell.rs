//! A guest that serves a shell, for tests of its devices.

use super::Recipe;

/// Programs that busybox lacks, or has without what is wanted of them, and their libraries.
const PACKAGES: [&str; 3] = ["util-linux", "libblkid1", "libc6"];
const LEFT_OUT: [&str; 3] = ["usr/share", "usr/lib/x86_64-linux-gnu/gconv", "lib/systemd"];

pub(super) fn recipe() -> Recipe {
    Recipe {
        packages: PACKAGES.map(str::to_owned).to_vec(),
        left_out: LEFT_OUT.map(str::to_owned).to_vec(),
        files: vec![("etc/service", include_bytes!("shell.sh"))],
        prepare: "true",
    }
}
