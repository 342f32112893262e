//! qcow2 images, by the imago library.
//!
//! What the library has only in its caches dies with this process, and so would a write that the guest was told is
//! done: after each change its metadata are written into the file.

#[cfg(test)]
mod growth_test;
mod header;
mod held;
mod tables;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use imago::format::PreallocateMode;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Mapping, Storage, StorageOpenOptions};

use super::error::DiskError;
use super::lock;
use super::store::{Store, write_zeros};
use super::{Cache, DiskConfig};
use held::{Header, HeldFile};

type Access = FormatAccess<HeldFile>;

/// Zeros that are written at a time.
const ZEROS_BYTES: usize = 64 << 10;
/// Longest chain of backing files.
const CHAIN_MAX: usize = 16;

/// An open qcow2 image.
pub struct Qcow2Image {
    path: PathBuf,
    file: File,
    direct: bool,
    read_only: bool,
    ignore_lock: bool,
    header: Header,
    /// Nobody else uses it while it grows, or while something in it is made zeros: the library does that cluster by cluster,
    /// and takes a write to another part of one along. None: it failed to grow, and could not be opened again.
    image: RwLock<Option<Access>>,
}

impl Qcow2Image {
    /// The image in an open file, which its caller has locked. All of its tables are read before anything is written.
    /// Backing files are opened read-only, and must lie in the image's directory or below.
    pub fn open(file: File, config: &DiskConfig) -> Result<Self, DiskError> {
        let path = config.path.as_path();
        let wrong = |reason: String| DiskError::Format {
            path: path.to_owned(),
            format: "qcow2",
            reason,
        };
        let layout = header::check(&file).map_err(|error| wrong(error.to_string()))?;
        tables::check(&file, &layout).map_err(|error| wrong(error.to_string()))?;
        let opened = Self {
            path: path.to_owned(),
            file,
            direct: config.cache == Cache::Direct,
            read_only: config.read_only,
            ignore_lock: config.ignore_lock,
            header: Header::default(),
            image: RwLock::new(None),
        };
        let image = opened.access(false).map_err(|error| wrong(error.to_string()))?;
        check(&image).map_err(|error| wrong(format!("its tables are damaged: {error}")))?;
        let image = match config.read_only {
            true => image,
            false => opened.access(true).map_err(|error| wrong(error.to_string()))?,
        };
        *opened.image.write().unwrap_or_else(PoisonError::into_inner) = Some(image);
        Ok(opened)
    }

    fn access(&self, write: bool) -> io::Result<Access> {
        let options = StorageOpenOptions::new()
            .filename(&self.path)
            .direct(self.direct)
            .write(write);
        let file = imago::file::File::from_open_file(self.file.try_clone()?, options.clone())?;
        let image = Qcow2::<HeldFile>::builder(HeldFile::new(file, self.header.clone()))
            .storage_open_options(options)
            .write(write)
            .open(Gate::around(&self.path, self.ignore_lock)?)?;
        Ok(Access::new(image))
    }

    fn with<T>(&self, act: impl FnOnce(&Access) -> io::Result<T>) -> io::Result<T> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        act(opened(&image)?)
    }

    /// The same, while nobody else uses it.
    fn alone_with<T>(&self, act: impl FnOnce(&Access) -> io::Result<T>) -> io::Result<T> {
        let image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        act(opened(&image)?)
    }
}

/// Looks whether the backing files of the image in an open file are all there: nobody changes those.
pub fn examine(file: &File, config: &DiskConfig) -> Result<(), DiskError> {
    let wrong = |error: io::Error| DiskError::Format {
        path: config.path.clone(),
        format: "qcow2",
        reason: error.to_string(),
    };
    let gate = Gate::around(&config.path, true).map_err(wrong)?;
    let (mut path, mut next) = (gate.image.clone(), header::backing(file).map_err(wrong)?);
    for _ in 0..CHAIN_MAX {
        let Some((name, is_qcow2)) = next else { break };
        path = gate
            .find(&path.parent().unwrap_or(Path::new("/")).join(name))
            .map_err(wrong)?;
        let file = File::open(&path).map_err(wrong)?;
        next = match is_qcow2 {
            true => header::backing(&file).map_err(wrong)?,
            false => None,
        };
    }
    Ok(())
}

fn opened(image: &Option<Access>) -> io::Result<&Access> {
    let gone = || io::Error::other("the image could not be opened again after it failed to grow");
    image.as_ref().ok_or_else(gone)
}

/// Reads where every byte of the disk is, through all tables.
fn check(image: &Access) -> io::Result<()> {
    let (mut offset, size) = (0, image.size());
    while offset < size {
        let (mapping, length) = image.get_mapping(offset, size - offset)?;
        if let Mapping::Raw { storage, offset, .. } = mapping
            && offset >= storage.size()?
        {
            return Err(io::Error::other("they lead beyond the end of the file"));
        }
        if length == 0 {
            return Err(io::Error::other(format!("nothing is known of byte {offset}")));
        }
        offset += length;
    }
    Ok(())
}

impl Store for Qcow2Image {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(|image| image.read(buffer, offset))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|image| {
            image.write(data, offset)?;
            image.flush()
        })
    }

    fn zero(&self, offset: u64, bytes: u64, _unmap: bool) -> io::Result<()> {
        let zeroed = self.alone_with(|image| {
            image.write_zeroes(offset, bytes)?;
            image.flush()
        });
        match zeroed {
            // Version 2 of the format knows no zeros.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(self, offset, bytes),
            result => result,
        }
    }

    fn is_hole(&self, offset: u64, bytes: u64) -> bool {
        let is_hole = |image: &Access| {
            let (mapping, length) = image.get_mapping(offset, bytes)?;
            Ok(matches!(mapping, Mapping::Zero { .. }) && length >= bytes)
        };
        self.with(is_hole).unwrap_or(false)
    }

    fn flush(&self) -> io::Result<()> {
        self.with(|image| {
            image.flush()?;
            image.sync()
        })
    }

    fn bytes(&self) -> io::Result<u64> {
        self.with(|image| Ok(image.size()))
    }

    /// The header comes last, see [`held`]: whatever dies meanwhile, the image is the old one or the new one.
    fn enlarge(&self, bytes: u64) -> io::Result<()> {
        let mut guard = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = guard.as_ref().filter(|_| !self.read_only) else {
            return Err(io::Error::other("it is read-only, or failed to grow before"));
        };
        image.flush()?;
        let old_bytes = image.size();
        self.header.hold();
        let result = image
            .resize_grow(bytes, PreallocateMode::None)
            .and_then(|()| clear_tail(image, old_bytes))
            .and_then(|()| image.flush())
            .and_then(|()| image.sync())
            .and_then(|()| self.header.release(&self.file));
        if result.is_err() {
            // What the library believes is not what the file says any more.
            *guard = None;
            self.header.discard();
            *guard = Some(self.access(true)?);
        }
        result
    }
}

/// Makes zeros of all that is behind so many bytes: a backing file that is longer than the image was must not show there.
fn clear_tail(image: &Access, from: u64) -> io::Result<()> {
    let zeros = [0; ZEROS_BYTES];
    let (mut offset, size) = (from, image.size());
    while offset < size {
        let (mapping, length) = image.get_mapping(offset, size - offset)?;
        let end = offset + length;
        if matches!(mapping, Mapping::Zero { .. }) {
            offset = end;
            continue;
        }
        match image.write_zeroes(offset, length) {
            // Version 2 of the format knows no zeros.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                while offset < end {
                    let count = (end - offset).min(ZEROS_BYTES as u64);
                    image.write(&zeros[..count as usize], offset)?;
                    offset += count;
                }
            }
            result => result?,
        }
        offset = end;
    }
    Ok(())
}

/// Says which further files an image may bring along.
struct Gate {
    image: PathBuf,
    directory: PathBuf,
    opened: usize,
    /// See [`DiskConfig::ignore_lock`].
    ignore_lock: bool,
}

impl Gate {
    fn around(image: &Path, ignore_lock: bool) -> io::Result<Self> {
        let image = image.canonicalize()?;
        Ok(Self {
            directory: image.parent().unwrap_or(Path::new("/")).to_owned(),
            image,
            opened: 0,
            ignore_lock,
        })
    }

    /// The backing file of this name.
    fn find(&self, named: &Path) -> io::Result<PathBuf> {
        let real = named.canonicalize().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("its backing file {} cannot be found: {error}", named.display()),
            )
        })?;
        if !real.starts_with(&self.directory) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "its backing file {} lies outside the image's directory {}; move it there, and name it with \
                     `qemu-img rebase -u -F FORMAT -b NAME`",
                    real.display(),
                    self.directory.display()
                ),
            ));
        }
        if real == self.image {
            return Err(io::Error::other("it is its own backing file"));
        }
        Ok(real)
    }
}

impl ImplicitOpenGate<HeldFile> for Gate {
    fn open_format<F: FormatDriverBuilder<HeldFile>>(&mut self, builder: F) -> io::Result<Access> {
        let next = Self {
            image: self.image.clone(),
            directory: self.directory.clone(),
            opened: self.opened,
            ignore_lock: self.ignore_lock,
        };
        Ok(Access::new(builder.open(next)?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<HeldFile> {
        let named = options
            .get_filename()
            .ok_or_else(|| io::Error::other("it needs a file without a name"))?;
        self.opened += 1;
        if self.opened > CHAIN_MAX {
            return Err(io::Error::other(format!(
                "it needs more than {CHAIN_MAX} other files"
            )));
        }
        let real = self.find(named)?;
        let file = File::open(&real)?;
        // Shared by all who read it, and held as long as the file is open.
        let config = DiskConfig {
            read_only: true,
            ignore_lock: self.ignore_lock,
            ..DiskConfig::new(&real)
        };
        lock::take(&file, &config).map_err(io::Error::other)?;
        let file = imago::file::File::from_open_file(file, options.write(false))?;
        Ok(HeldFile::new(file, Header::default()))
    }
}
