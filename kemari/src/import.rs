//! `kemari import`: a raw image of one of any format, to be written to.
//!
//! Raw and qcow2 images are read by Kemari itself, with its own look at their headers; other formats by
//! `qemu-img`. The format is said, never guessed. What is made has holes where the image has zeros, and its
//! name only when all of it is durable.

mod destination;
mod foreign;
mod progress;
mod source;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use kemari_vmm::disk;

use crate::magic::begins_like;
use destination::Destination;
use foreign::Foreign;
use progress::Progress;
use source::Own;

/// Formats that an image may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
    /// Virtual PC's and Azure's (VHD).
    #[value(alias = "vhd")]
    Vpc,
    /// QEMU's former one.
    Qed,
    /// Parallels'.
    Parallels,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Qed => "qed",
            Self::Parallels => "parallels",
        })
    }
}

/// What is to be made of what.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    /// The image: a file or a block device.
    pub image: PathBuf,
    /// What it is.
    pub format: ImageFormat,
    /// The raw image: a file.
    pub(crate) destination: PathBuf,
    /// Whether a file of that name may be replaced.
    pub force: bool,
    /// Its size is made a multiple of so many bytes, by zeros at its end.
    pub block_bytes: u32,
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    /// Size of the disk in bytes.
    pub(crate) disk_bytes: u64,
    /// So many of them were read: the rest are holes.
    pub(crate) data_bytes: u64,
}

/// An image that is read.
trait Source {
    /// Size of the disk in bytes.
    fn disk_bytes(&self) -> u64;
    /// At most so many bytes of it are no holes.
    fn data_bytes(&self) -> u64;
    /// Writes all that is no zeros into a file of zeros.
    fn copy(&self, destination: &Destination, progress: &mut Progress) -> anyhow::Result<()>;
}

impl Import {
    /// Makes it. Nothing of the destination's name is there, or the former file is, unless all has gone well.
    pub(crate) fn run(&self) -> anyhow::Result<Made> {
        let image = self.image.display();
        if self.format == ImageFormat::Raw
            && let Some(other) = begins_like(&self.image)
        {
            eprintln!("kemari: {image} begins like a {other} image; if it is one, say --format {other}");
        }
        let source: Box<dyn Source> = match self.format {
            ImageFormat::Raw => Box::new(Own::open(&self.image, disk::Format::Raw)?),
            ImageFormat::Qcow2 => Box::new(Own::open(&self.image, disk::Format::Qcow2)?),
            other => Box::new(Foreign::open(&self.image, other)?),
        };
        let destination = Destination::create(&self.destination, &self.image, self.force)?;
        let (disk_bytes, data_bytes) = (source.disk_bytes(), source.data_bytes());
        let disk_bytes = disk_bytes.next_multiple_of(u64::from(self.block_bytes));
        let room_bytes = destination.room_bytes()?;
        ensure!(
            data_bytes <= room_bytes,
            "{image} has up to {} MiB of data, and there is room for {} MiB beside {}; make room, or name \
             another place",
            data_bytes.div_ceil(1 << 20),
            room_bytes >> 20,
            self.destination.display()
        );
        destination.resize(disk_bytes)?;
        let mut progress = Progress::of(data_bytes);
        source
            .copy(&destination, &mut progress)
            .with_context(|| format!("{image} was not imported"))?;
        drop(progress);
        destination.finish()?;
        Ok(Made {
            disk_bytes,
            data_bytes,
        })
    }
}
