//! Where a raw image is made: under a name of its own, which becomes the one that was asked for when all is
//! durable.
//!
//! An import that was cut leaves `DEST.importing`, which nobody takes for an image;
//! the next import to there removes it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use kemari_vmm::disk;
use rustix::fs::{CWD, RenameFlags, renameat_with, statvfs};

use crate::files;
use crate::replica::record_beside;

/// A raw image in the making. What was not finished goes with it.
pub(crate) struct Destination {
    /// What it will be called.
    path: PathBuf,
    part: PathBuf,
    file: File,
    /// What it will replace, locked.
    replaced: Option<File>,
    /// What was there of this name is replaced, with its record: also one whose image is gone.
    force: bool,
    is_finished: bool,
}

impl Destination {
    /// Begins one that may be made of this image.
    pub(super) fn create(path: &Path, image: &Path, force: bool) -> anyhow::Result<Self> {
        let shown = path.display();
        ensure!(path.file_name().is_some(), "{shown} names no file");
        let replaced = look(path, image, force)?;
        let record = record_beside(path);
        ensure!(
            force || fs::symlink_metadata(&record).is_err(),
            "{} is there, the record of an image that was called {shown}; with --force it is removed, or \
             name another file",
            record.display()
        );
        let part = with_suffix(path, ".importing");
        remove_rest(&part)?;
        let file = files::own()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&part)
            .with_context(|| format!("{} cannot be made", part.display()))?;
        // Says that somebody is at it.
        file.try_lock()
            .with_context(|| format!("another import to {shown} has begun"))?;
        Ok(Self {
            path: path.to_owned(),
            part,
            file,
            replaced,
            force,
            is_finished: false,
        })
    }

    /// The file that it is meanwhile.
    pub(super) fn part(&self) -> &Path {
        &self.part
    }

    /// Bytes that may be written there, by this user.
    pub(crate) fn room_bytes(&self) -> anyhow::Result<u64> {
        let found = statvfs(&self.part).with_context(|| format!("{}", self.part.display()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Makes it so many zeros.
    pub(super) fn resize(&self, bytes: u64) -> anyhow::Result<()> {
        self.file
            .set_len(bytes)
            .with_context(|| format!("{} cannot have {bytes} bytes", self.part.display()))
    }

    /// Writes something into it.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        self.file
            .write_all_at(data, offset)
            .with_context(|| format!("{} cannot be written", self.part.display()))
    }

    /// Makes it durable and gives it its name.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let shown = self.path.display();
        let failed = || format!("{shown} cannot be finished");
        self.file.sync_all().with_context(failed)?;
        if self.force {
            // Before the image comes: no record is ever that of another image.
            remove_if_there(&record_beside(&self.path)).with_context(failed)?;
            sync_directory(&self.path).with_context(failed)?;
        }
        match &self.replaced {
            Some(_) => fs::rename(&self.part, &self.path).with_context(failed)?,
            None => rename_to_nothing(&self.part, &self.path)
                .with_context(|| format!("{shown} cannot be finished; is there a file of that name now?"))?,
        }
        self.is_finished = true;
        sync_directory(&self.path).with_context(failed)
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Whether an image may be made under this name. Returns the file that is replaced,
/// locked as one that is written to.
fn look(path: &Path, image: &Path, force: bool) -> anyhow::Result<Option<File>> {
    let shown = path.display();
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.with_context(|| format!("{shown} cannot be looked at"))?,
    };
    let kind = found.file_type();
    ensure!(
        !kind.is_block_device(),
        "{shown} is a block device; import into a file, and copy that with `dd conv=fsync`"
    );
    ensure!(
        kind.is_file(),
        "{shown} is there and is no file; name another one"
    );
    let source = fs::metadata(image).with_context(|| format!("{}", image.display()))?;
    let is_same = (source.dev(), source.ino()) == (found.dev(), found.ino());
    ensure!(!is_same, "{shown} is the image itself; name another file");
    ensure!(
        force,
        "{shown} is there already and is not overwritten; name another file, or say --force"
    );
    Ok(Some(disk::hold(path, true)?))
}

/// Removes what an import that was cut has left. It is locked until it is gone, so that of several imports
/// that find it none takes away what another one has begun.
fn remove_rest(part: &Path) -> anyhow::Result<()> {
    let shown = part.display();
    let rest = match files::own().read(true).open(part) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        rest => rest.with_context(|| format!("{shown} cannot be looked at"))?,
    };
    match rest.try_lock() {
        Ok(()) if is_at(&rest, part) => {}
        Ok(()) | Err(fs::TryLockError::WouldBlock) => bail!("{shown} is being written by another import"),
        Err(fs::TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("{shown} cannot be locked"));
        }
    }
    remove_if_there(part).with_context(|| format!("{shown} cannot be removed"))
}

/// Whether this is the file of this name still.
fn is_at(file: &File, path: &Path) -> bool {
    let place = |found: fs::Metadata| (found.dev(), found.ino());
    let (open, named) = (file.metadata().map(place), fs::symlink_metadata(path).map(place));
    open.is_ok_and(|open| named.is_ok_and(|named| open == named))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Renames a file, unless there is one of the new name.
fn rename_to_nothing(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can do that.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        result => Ok(result?),
    }
}

fn sync_directory(of: &Path) -> io::Result<()> {
    let parent = of.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_finished_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (image, path) = (directory.path().join("image"), directory.path().join("disk.img"));
        fs::write(&image, [0; 512]).unwrap();
        let begin = || Destination::create(&path, &image, false);
        let first = begin().unwrap();
        let refused = begin().err().unwrap().to_string();
        assert!(refused.contains("another import"), "{refused}");
        drop(first);
        assert!(!path.exists() && !with_suffix(&path, ".importing").exists());
        // As one leaves it that was killed.
        fs::write(with_suffix(&path, ".importing"), "half").unwrap();
        let second = begin().unwrap();
        second.resize(4096).unwrap();
        second.write(512, b"data").unwrap();
        second.finish().unwrap();
        let made = fs::read(&path).unwrap();
        assert!(made.len() == 4096 && made[512..516] == *b"data");
        assert!(!with_suffix(&path, ".importing").exists());
    }

    #[test]
    fn nothing_is_replaced_unasked_and_no_record_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (image, path) = (directory.path().join("image"), directory.path().join("disk.img"));
        let record = record_beside(&path);
        fs::write(&image, [0; 512]).unwrap();
        let refusal = |path: &Path, force| {
            let refused = Destination::create(path, &image, force).err().unwrap();
            format!("{refused:#}")
        };
        fs::write(&record, "a record").unwrap();
        assert!(refusal(&path, false).contains("the record of an image"));
        fs::write(&path, [1; 512]).unwrap();
        assert!(refusal(&path, false).contains("--force"));
        assert!(refusal(&image, true).contains("the image itself"));
        assert!(refusal(directory.path(), true).contains("is no file"));
        let used = disk::hold(&path, true).unwrap();
        assert!(refusal(&path, true).contains("in use"));
        drop(used);
        let replace = || {
            Destination::create(&path, &image, true)
                .unwrap()
                .finish()
                .unwrap()
        };
        replace();
        assert!(!record.exists() && fs::read(&path).unwrap().is_empty());
        // One whose image is gone.
        fs::remove_file(&path).unwrap();
        fs::write(&record, "a record").unwrap();
        replace();
        assert!(!record.exists() && path.exists());
    }

    #[test]
    fn what_another_import_has_begun_is_no_rest() {
        let directory = tempfile::tempdir().unwrap();
        let part = directory.path().join("part");
        fs::write(&part, "of one that was cut").unwrap();
        let found = File::open(&part).unwrap();
        assert!(is_at(&found, &part));
        remove_rest(&part).unwrap();
        assert!(!is_at(&found, &part));
        fs::write(&part, "of one that has begun").unwrap();
        assert!(!is_at(&found, &part));
    }

    #[test]
    fn a_file_that_came_meanwhile_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (image, path) = (directory.path().join("image"), directory.path().join("disk.img"));
        fs::write(&image, [0; 512]).unwrap();
        let made = Destination::create(&path, &image, false).unwrap();
        fs::write(&path, "somebody's").unwrap();
        made.finish().unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    }
}
