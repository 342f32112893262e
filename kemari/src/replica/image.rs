//! The image of a replicated disk on this host, with its record.

use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use anyhow::{Context, bail, ensure};
use kemari_sync::{CopyDisk, DiskOffer, ImageHistory, ImageState, Source, Term, lineage_id};
use kemari_vmm::disk::Disk;

use super::record::{Head, Map, Record};
use super::store::FileStore;
use crate::config::{Config, HostDisk};
use crate::image::image_of;

/// Where an image and its record are.
pub(crate) struct Image {
    vm: String,
    disk: String,
    path: PathBuf,
    record_path: PathBuf,
    bytes: AtomicU64,
    /// The operator's word about what may be overwritten.
    overwrite: Option<String>,
    /// None as long as there is none on the disk. Held while that is written.
    record: Mutex<Option<Record>>,
    /// What the record says, for those who must not wait for a disk.
    view: Mutex<ImageView>,
}

/// What an image's record says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageView {
    /// None without a record.
    pub state: Option<ImageState>,
    /// Bytes of the extents that may differ from the other host's image.
    pub changed_bytes: u64,
}

impl ImageView {
    fn of(record: &Record) -> Self {
        Self {
            state: Some(record.head().history.word.state),
            changed_bytes: record.map().count() * super::record::EXTENT_BYTES,
        }
    }
}

impl Image {
    /// The images of all replicated disks of a host, in the order of the configuration.
    pub(crate) fn open_all(
        config: &Config,
        host: &str,
        overwrite: Option<&str>,
    ) -> anyhow::Result<Vec<Arc<Self>>> {
        config
            .disks_of(host)
            .iter()
            .filter(|disk| config.replicates(disk.disk))
            .map(|disk| {
                let state_dir = config.host(host).state_dir();
                Self::open(&config.vm, disk, state_dir, overwrite)
                    .map(Arc::new)
                    .with_context(|| format!("disk {}", disk.disk.id))
            })
            .collect()
    }

    /// Looks at an image and reads its record, if it has one.
    ///
    /// # Errors
    /// Also for a record of another VM, disk or size: it says nothing about this image.
    pub(super) fn open(
        vm: &str,
        disk: &HostDisk<'_>,
        state_dir: &Path,
        overwrite: Option<&str>,
    ) -> anyhow::Result<Self> {
        let path = disk.path.clone();
        // Opened for a moment only: this also says whether it is in use.
        let image = Disk::open(&image_of(disk, false))?;
        // What is compared with the other host's image, or booted from, is what is on the disk.
        image.forget_cached().with_context(|| {
            format!(
                "the image {} cannot be made durable: repair the disk under it",
                path.display()
            )
        })?;
        let bytes = image.bytes();
        drop(image);
        let is_device = std::fs::metadata(&path)
            .with_context(|| format!("cannot look at the disk image {}", path.display()))?
            .file_type()
            .is_block_device();
        let record_path = record_path(disk, is_device, state_dir);
        let store = FileStore::open_durable(&record_path)
            .with_context(|| format!("the record {} cannot be made durable", record_path.display()))?;
        let mut record = read_record(vm, disk, &record_path, store)?;
        if let Some(record) = &mut record {
            let recorded_bytes = record.head().image_bytes;
            ensure!(
                recorded_bytes <= bytes,
                "the record {} is of an image of {recorded_bytes} bytes, but {} has {bytes}: put the right \
                 image back, or remove the record",
                record_path.display(),
                path.display()
            );
            if recorded_bytes < bytes {
                record
                    .grow(bytes)
                    .with_context(|| format!("the record {}", record_path.display()))?;
                tracing::info!("the image {} has grown to {bytes} bytes", path.display());
            }
        }
        Ok(Self {
            vm: vm.to_owned(),
            disk: disk.disk.id.clone(),
            path,
            record_path,
            bytes: AtomicU64::new(bytes),
            overwrite: overwrite.map(str::to_owned),
            view: Mutex::new(record.as_ref().map(ImageView::of).unwrap_or_default()),
            record: Mutex::new(record),
        })
    }

    /// What the record says; this waits for no disk.
    pub(crate) fn view(&self) -> ImageView {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, record: &Record) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = ImageView::of(record);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Record>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk's id.
    pub(crate) fn disk(&self) -> &str {
        &self.disk
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// It has grown: what is new counts as changed, durably, before this returns.
    pub(crate) fn grow(&self, bytes: u64) -> anyhow::Result<()> {
        if let Some(record) = self.lock().as_mut()
            && record.head().image_bytes < bytes
        {
            record
                .grow(bytes)
                .with_context(|| format!("the record {}", self.record_path.display()))?;
            self.note(record);
        }
        self.bytes.store(bytes, Ordering::SeqCst);
        Ok(())
    }

    /// What the record says of the image.
    pub(crate) fn offer(&self) -> DiskOffer {
        let word = self
            .lock()
            .as_ref()
            .map(|record| record.head().history.word.clone());
        let overwrite = match (&word, &self.overwrite) {
            (Some(word), Some(id)) => lineage_id(word.lineage) == *id,
            _ => false,
        };
        DiskOffer {
            disk: self.disk.clone(),
            bytes: self.bytes(),
            word,
            overwrite,
        }
    }

    /// What a copy of the image to a secondary begins from.
    pub(crate) fn source(&self) -> Option<Source> {
        self.lock().as_ref().map(|record| Source {
            disk: self.disk.clone(),
            bytes: self.bytes(),
            lineage: record.head().history.word.lineage,
            base: record.head().history.word.base,
            paired_term: record.head().history.paired_term,
        })
    }

    /// The extents that may differ from the other host's image.
    pub(crate) fn map(&self) -> Map {
        match &*self.lock() {
            Some(record) => record.map().clone(),
            None => Map::new(self.bytes()),
        }
    }

    /// A history of the image's own.
    fn first(term: Term) -> ImageHistory {
        ImageHistory::first(rand::random(), rand::random(), term)
    }

    fn change(&self, change: impl FnOnce(&mut ImageHistory)) -> anyhow::Result<()> {
        let mut guard = self.lock();
        let Some(record) = guard.as_mut() else {
            bail!("the image {} has no record", self.path.display());
        };
        let mut head = record.head().clone();
        change(&mut head.history);
        if head != *record.head() {
            record
                .set_head(head)
                .with_context(|| format!("the record {}", self.record_path.display()))?;
            self.note(record);
        }
        Ok(())
    }

    fn create(&self, history: ImageHistory) -> anyhow::Result<()> {
        let head = Head {
            vm: self.vm.clone(),
            disk: self.disk.clone(),
            image_bytes: self.bytes(),
            history,
        };
        let shown = || format!("cannot make the record {}", self.record_path.display());
        let store =
            FileStore::create(&self.record_path, Record::bytes_for(self.bytes())).with_context(shown)?;
        let record = Record::create(Box::new(store), head).with_context(shown)?;
        self.note(&record);
        *self.lock() = Some(record);
        Ok(())
    }

    /// A reign is about to begin, under which the image may be written: a power cut in between must not make
    /// it look older than the arbiter's record.
    pub(crate) fn announce(&self, next_term: Term) -> anyhow::Result<()> {
        if self.lock().is_none() {
            let mut history = Self::first(0);
            history.announce(next_term);
            return self.create(history);
        }
        self.change(|history| history.announce(next_term))
    }

    /// This side rules in `term`: from here on the image may be written. `paired`:
    /// and the other host's image follows.
    pub(crate) fn rule(&self, term: Term, paired: bool) -> anyhow::Result<()> {
        self.change(|history| history.rule(term, paired))
    }

    /// A VM is booted from the image in `term`. `adopt`: the operator says that it is the right one, so it
    /// begins a history of its own.
    pub(crate) fn start(&self, term: Term, adopt: bool) -> anyhow::Result<()> {
        if self.lock().is_none() {
            return self.create(Self::first(term));
        }
        if adopt {
            return self.change(|history| *history = Self::first(term));
        }
        self.rule(term, false)
    }

    /// The image is to be copied as `plan` says; `theirs` is what the other side has marked.
    pub(crate) fn become_source(&self, plan: &CopyDisk, theirs: &Map) -> anyhow::Result<()> {
        let mut covered = self.map();
        match plan.only_marked {
            true => covered.unite(theirs),
            false => covered.set_all(),
        }
        self.mark(covered.iter())?;
        // The new base counts with all of its marks, never without.
        self.change(|history| history.become_source(plan))
    }

    /// Blocks of another image are going to be written over this one.
    pub(crate) fn become_target(&self, plan: &CopyDisk) -> anyhow::Result<()> {
        if self.lock().is_none() {
            return self.create(ImageHistory::target(plan));
        }
        self.change(|history| *history = ImageHistory::target(plan))?;
        // What was marked here is in the source's marks by now.
        let marked: Vec<u64> = self.map().iter().collect();
        self.clear(&marked)
    }

    /// Everything of the first sync of a pair is there and durable. The pair, of `term`,
    /// is about to be recorded.
    pub(crate) fn become_whole(&self, term: Term) -> anyhow::Result<()> {
        self.change(|history| history.become_whole(term))
    }

    /// The pair whose beginning [`Image::become_whole`] has noted is known to be recorded.
    pub(crate) fn note_recorded(&self) -> anyhow::Result<()> {
        self.change(ImageHistory::note_recorded)
    }

    /// The VM was stopped cleanly, and everything it wrote is durable here.
    pub(crate) fn stop(&self) -> anyhow::Result<()> {
        self.change(ImageHistory::stop)
    }

    /// Sets marks, durably.
    pub(crate) fn mark(&self, extents: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
        match self.lock().as_mut() {
            Some(record) => {
                record.mark(extents)?;
                self.note(record);
                Ok(())
            }
            None => bail!("the image {} has no record", self.path.display()),
        }
    }

    /// Sets the marks of ranges of bytes, durably.
    pub(crate) fn mark_ranges(&self, ranges: &[Range<u64>]) -> anyhow::Result<()> {
        self.mark(ranges.iter().flat_map(Map::touched))
    }

    /// Clears marks, unless the record is being written: then they stay, and nothing is waited for.
    pub(crate) fn try_clear(&self, extents: &[u64]) -> Option<anyhow::Result<()>> {
        let mut guard = match self.record.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(self.clear_in(&mut guard, extents))
    }

    /// Clears marks.
    pub(crate) fn clear(&self, extents: &[u64]) -> anyhow::Result<()> {
        self.clear_in(&mut self.lock(), extents)
    }

    fn clear_in(&self, record: &mut Option<Record>, extents: &[u64]) -> anyhow::Result<()> {
        if let Some(record) = record {
            record.clear(extents)?;
            self.note(record);
        }
        Ok(())
    }
}

/// Where the record of an image is: beside it, or, of a block device, in the state directory.
fn record_path(disk: &HostDisk<'_>, is_device: bool, state_dir: &Path) -> PathBuf {
    match is_device {
        true => state_dir.join(format!("{}.kemari", disk.disk.id)),
        false => record_beside(&disk.path),
    }
}

/// Where the record of a disk's image is, or would be if there were an image.
pub(crate) fn record_of(disk: &HostDisk<'_>, state_dir: &Path) -> PathBuf {
    let is_device = std::fs::metadata(&disk.path).is_ok_and(|found| found.file_type().is_block_device());
    record_path(disk, is_device, state_dir)
}

/// The record of an image that is a file.
pub(crate) fn record_beside(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".kemari");
    name.into()
}

/// A record as it is now, durable or not: for who shows it.
fn look_at_record(vm: &str, disk: &HostDisk<'_>, path: &Path) -> anyhow::Result<Option<Record>> {
    let store = FileStore::open(path).with_context(|| format!("the record {}", path.display()))?;
    read_record(vm, disk, path, store)
}

fn read_record(
    vm: &str,
    disk: &HostDisk<'_>,
    path: &Path,
    store: Option<FileStore>,
) -> anyhow::Result<Option<Record>> {
    let shown = || format!("the record {}", path.display());
    let record = store
        .map(|store| Record::load(Box::new(store)))
        .transpose()
        .with_context(shown)?;
    if let Some(head) = record.as_ref().map(Record::head) {
        ensure!(
            head.vm == vm && head.disk == disk.disk.id,
            "{} is of disk {} of the VM {}: name the right image, or remove the record",
            shown(),
            head.disk,
            head.vm
        );
    }
    Ok(record)
}

/// What the records of a host's replicated disks say of their images, without touching those.
pub(crate) fn views(config: &Config, host: &str) -> Vec<anyhow::Result<ImageView>> {
    let state_dir = config.host(host).state_dir();
    let view = |disk: &HostDisk<'_>| {
        let is_device = std::fs::metadata(&disk.path)?.file_type().is_block_device();
        let record = look_at_record(&config.vm, disk, &record_path(disk, is_device, state_dir))?;
        Ok(record.as_ref().map(ImageView::of).unwrap_or_default())
    };
    let disks = config.disks_of(host);
    let replicated = disks.iter().filter(|disk| config.replicates(disk.disk));
    replicated.map(view).collect()
}

/// What the record of an image says, in words, without touching either.
pub(crate) fn describe_record(vm: &str, disk: &HostDisk<'_>, state_dir: &Path) -> anyhow::Result<String> {
    let is_device = std::fs::metadata(&disk.path)?.file_type().is_block_device();
    let Some(record) = look_at_record(vm, disk, &record_path(disk, is_device, state_dir))? else {
        return Ok("it has no record: it was never a replicated disk".into());
    };
    let head = record.head();
    let word = &head.history.word;
    let state = match word.state {
        ImageState::Whole => "whole",
        ImageState::Target => "inconsistent (a copy was not finished)",
        ImageState::Stopped => "whole, and the VM was stopped cleanly",
    };
    Ok(format!(
        "history {}, term {}, {state}; up to {} MiB may differ from the other host's",
        lineage_id(word.lineage),
        word.term,
        (record.map().count() * super::record::EXTENT_BYTES) >> 20
    ))
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
