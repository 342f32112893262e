//! The step that a side is in, in a small mapped file: it outlives the process, and tells after a crash where
//! it hit.
//!
//! It lies beside the control socket, if that is in memory (as in `/run`): a file system on a disk makes
//! whoever writes to a mapped page wait when the disk hangs, or finds no space for it, which ends the
//! process. See [`map`].

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of the file: the step's number, then the epoch, little endian.
pub const TRACE_BYTES: usize = 16;

/// The file's name is that of the control socket with this extension.
pub const TRACE_EXTENSION: &str = "step";

/// File systems in memory (statfs(2)): tmpfs, ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// What a side is doing. `cargo xtask demo` has names for the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Step {
    /// Nothing is under way: the guest runs.
    Running = 1,
    /// Primary: the first copy.
    Copying = 2,
    /// Primary: the guest is paused, state and pages are being taken.
    Capturing = 3,
    /// Primary: the sync is being handed to the link.
    Sending = 4,
    /// Primary: the ack is awaited.
    AwaitingAck = 5,
    /// Primary: the ack is here, output is being released.
    Releasing = 6,
}

/// The mapped file, or nothing: a side that has no trace goes on without.
pub struct Trace(Option<NonNull<AtomicU64>>);

// SAFETY: the mapping is reached through atomics alone.
unsafe impl Send for Trace {}
// SAFETY: as above.
unsafe impl Sync for Trace {}

impl Trace {
    /// Makes the file beside the control socket. If that fails, it is logged, and what is noted is noted
    /// nowhere.
    pub fn create(control: &Path) -> Self {
        let path = control.with_extension(TRACE_EXTENSION);
        match map(&path) {
            Ok(words) => Self(Some(words)),
            Err(error) => {
                tracing::warn!(
                    "there will be no trace of what this side was doing: {} cannot be made: {error}",
                    path.display()
                );
                Self(None)
            }
        }
    }

    /// Notes what is being done.
    pub fn note(&self, step: Step, epoch: u64) {
        let Some(words) = &self.0 else { return };
        // SAFETY: both words lie in the mapping, which lives as long as `self`, and are only used as atomics.
        let (first, second) = unsafe { (words.as_ref(), words.add(1).as_ref()) };
        second.store(epoch, Ordering::Relaxed);
        first.store(step as u64, Ordering::Relaxed);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let Some(words) = self.0 else { return };
        // SAFETY: the mapping was made with this address and length, and nothing refers to it any more.
        let _ = unsafe { munmap(words.as_ptr().cast(), TRACE_BYTES) };
    }
}

/// Makes the file anew and maps it. It has its page before, which stays: one that finds no space when it is
/// written to would end the process with SIGBUS. Nor does anybody else's file take its place: what stood
/// there is unlinked, and never written through.
fn map(path: &Path) -> io::Result<NonNull<AtomicU64>> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    if !IN_MEMORY.contains(&rustix::fs::fstatfs(&file)?.f_type) {
        fs::remove_file(path)?;
        return Err(io::Error::other(
            "its file system is not in memory, and could hold this side up; put `control` into /run",
        ));
    }
    file.write_all(&[0; TRACE_BYTES])?;
    // SAFETY: a fresh shared mapping of a file of this length, which nobody else has, so nobody shortens it.
    let address = unsafe {
        mmap(
            std::ptr::null_mut(),
            TRACE_BYTES,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::POPULATE,
            &file,
            0,
        )
    }?;
    NonNull::new(address.cast()).ok_or_else(|| io::Error::other("it was mapped at address 0"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    fn in_memory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    /// The last step and epoch, as numbers.
    fn noted(control: &Path) -> Option<(u64, u64)> {
        let bytes = fs::read(control.with_extension(TRACE_EXTENSION)).ok()?;
        let bytes: [u8; TRACE_BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Some((word(0), word(8)))
    }

    #[test]
    fn the_last_step_outlives_its_writer() {
        let directory = in_memory();
        let control = directory.path().join("vm.sock");
        assert_eq!(noted(&control), None);
        let trace = Trace::create(&control);
        trace.note(Step::Capturing, 6);
        trace.note(Step::AwaitingAck, 7);
        drop(trace);
        assert_eq!(noted(&control), Some((5, 7)));
    }

    /// A small file system that lives on a disk: an image of one, mounted.
    struct OnDisk(tempfile::TempDir);

    impl OnDisk {
        fn new() -> Self {
            let disk = Self(tempfile::tempdir().unwrap());
            let (image, mount) = (disk.0.path().join("image"), disk.mount());
            fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
            fs::create_dir(&mount).unwrap();
            let run = |program: &str, words: &[&std::ffi::OsStr]| {
                let status = Command::new(program).args(words).status().unwrap();
                assert!(status.success(), "{program}: the tests run as root");
            };
            run("mkfs.ext4", &["-q".as_ref(), image.as_ref()]);
            run(
                "mount",
                &["-o".as_ref(), "loop".as_ref(), image.as_ref(), mount.as_ref()],
            );
            disk
        }

        fn mount(&self) -> std::path::PathBuf {
            self.0.path().join("mount")
        }
    }

    impl Drop for OnDisk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.mount()).status();
        }
    }

    #[test]
    fn on_a_disk_there_is_no_trace_which_could_hold_the_side_up() {
        let disk = OnDisk::new();
        let control = disk.mount().join("vm.sock");
        let trace = Trace::create(&control);
        trace.note(Step::Running, 1);
        assert_eq!(noted(&control), None);
    }

    /// A file system with no space left, as long as the value lives.
    struct Full(tempfile::TempDir);

    impl Full {
        fn new() -> Self {
            let full = Self(tempfile::tempdir().unwrap());
            let mount = ["-t", "tmpfs", "-o", "size=16k", "full"];
            let mounted = Command::new("mount").args(mount).arg(full.0.path()).status();
            assert!(mounted.unwrap().success(), "the tests run as root");
            let mut filler = fs::File::create(full.0.path().join("filler")).unwrap();
            while filler.write_all(&[1; 4096]).is_ok() {}
            full
        }
    }

    impl Drop for Full {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }

    #[test]
    fn without_space_there_is_no_trace_and_nothing_else_is_lost() {
        let full = Full::new();
        let control = full.0.path().join("vm.sock");
        let trace = Trace::create(&control);
        trace.note(Step::Running, 1);
        assert_eq!(noted(&control), None);
    }

    #[test]
    fn a_trace_is_its_own_file_and_private() {
        let directory = in_memory();
        let (control, precious) = (
            directory.path().join("vm.sock"),
            directory.path().join("precious"),
        );
        let path = control.with_extension(TRACE_EXTENSION);
        fs::write(&precious, "keep me").unwrap();
        symlink(&precious, &path).unwrap();
        Trace::create(&control).note(Step::Running, 1);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "keep me");
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert!(metadata.is_file());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }
}
