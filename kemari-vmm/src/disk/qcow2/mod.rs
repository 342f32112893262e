//! qcow2 images, by the imago library, which only reads them.
//!
//! To write one is a matter of order: data before the table that names them, a refcount before what it
//! counts, each durable before the next. The library has no such order, and what a power cut then leaves
//! lacks what the guest was told to be durable, or is no image any more: see docs/machine.md, "Disks". So
//! whatever is written to is raw.

mod backing;
mod header;

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Mapping, StorageOpenOptions};

use super::error::DiskError;
use super::lock;
use super::store::Store;
use super::{Cache, DiskConfig};
use backing::BackingFiles;

type Contents = FormatAccess<imago::file::File>;

/// An open qcow2 image.
pub(crate) struct Qcow2Image {
    image: Contents,
}

impl Qcow2Image {
    /// The image in an open file, which its caller has locked. All of its tables are read. Backing files must
    /// lie in the image's directory or below.
    pub(crate) fn open(file: File, config: &DiskConfig) -> Result<Self, DiskError> {
        let opened = open(file, config).and_then(|image| {
            check(&image)
                .map_err(|error| io::Error::other(format!("its tables are damaged: {error}")))
                .map(|()| Self { image })
        });
        opened.map_err(|error| wrong(config, &error))
    }
}

/// Looks at the headers of the image in an open file and of its backing files, and takes no lock.
/// Returns what those are.
pub(crate) fn examine(file: &File, config: &DiskConfig) -> Result<Vec<Metadata>, DiskError> {
    let chain = BackingFiles::of(&config.path, file, |_, _| Ok(()));
    let files = chain.and_then(|chain| chain.files());
    files.map_err(|error| wrong(config, &error))
}

/// Where the backing files of the image in this file are, from the first down. Takes no lock.
///
/// # Errors
/// If one of them cannot be read, or is none.
pub fn backing_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(BackingFiles::of(path, &File::open(path)?, |_, _| Ok(()))?.paths())
}

fn wrong(config: &DiskConfig, error: &io::Error) -> DiskError {
    DiskError::Format {
        path: config.path.clone(),
        format: "qcow2",
        reason: error.to_string(),
    }
}

fn open(file: File, config: &DiskConfig) -> io::Result<Contents> {
    let chain = BackingFiles::of(&config.path, &file, |base, path| {
        // Shared by all who read it, and held as long as the file is open.
        let config = DiskConfig {
            read_only: true,
            ignore_lock: config.ignore_lock,
            ..DiskConfig::new(path)
        };
        lock::take(base, &config).map_err(io::Error::other)
    })?;
    let options = StorageOpenOptions::new()
        .filename(&config.path)
        .direct(config.cache == Cache::Direct)
        .write(false);
    let file = imago::file::File::from_open_file(file, options.clone())?;
    let image = Qcow2::<imago::file::File>::builder(file)
        .storage_open_options(options)
        .write(false)
        .open(Gate(&chain))?;
    Ok(Contents::new(image))
}

/// Reads where every byte of the disk is, through all tables.
fn check(image: &Contents) -> io::Result<()> {
    let (mut offset, size) = (0, image.size());
    while offset < size {
        let (mapping, length) = image.get_mapping(offset, size - offset)?;
        if let Mapping::Raw { storage, offset, .. } = mapping
            && offset >= imago::Storage::size(storage)?
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

fn only_read() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a qcow2 image is only read")
}

impl Store for Qcow2Image {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.image.read(buffer, offset)
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(only_read())
    }

    fn zero(&self, _offset: u64, _bytes: u64, _unmap: bool) -> io::Result<()> {
        Err(only_read())
    }

    /// Nothing is ever written.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.image.size())
    }

    fn enlarge(&self, _bytes: u64) -> io::Result<()> {
        Err(only_read())
    }

    fn is_hole(&self, offset: u64, bytes: u64) -> bool {
        let mapping = self.image.get_mapping(offset, bytes);
        mapping.is_ok_and(|(mapping, length)| matches!(mapping, Mapping::Zero { .. }) && length >= bytes)
    }
}

/// Gives the library the files of the chain, and no others.
#[derive(Clone, Copy)]
struct Gate<'a>(&'a BackingFiles);

impl ImplicitOpenGate<imago::file::File> for Gate<'_> {
    fn open_format<F: FormatDriverBuilder<imago::file::File>>(&mut self, builder: F) -> io::Result<Contents> {
        Ok(Contents::new(builder.open(*self)?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<imago::file::File> {
        let named = options
            .get_filename()
            .ok_or_else(|| io::Error::other("it needs a file without a name"))?;
        let file = self.0.file(named)?;
        imago::file::File::from_open_file(file, options.write(false))
    }
}
