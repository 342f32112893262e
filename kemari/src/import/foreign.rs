//! Images of other programs, which `qemu-img` reads.
//!
//! It is told the format, and is kept from files that nobody has named: a description of a disk may name any
//! file of this host as its data, and a guest would see it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use kemari_vmm::disk;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::destination::Destination;
use super::progress::Progress;
use super::{ImageFormat, Source};

/// Where the program comes from, in Debian.
const PACKAGE: &str = "qemu-utils";
/// Most of what it says that is repeated, in bytes.
const WORDS_BYTES_MAX: usize = 500;

/// An image, and what `qemu-img` says of it. It and all files with its data are locked as ones that are read.
pub(crate) struct Foreign {
    image: PathBuf,
    format: ImageFormat,
    disk_bytes: u64,
    data_bytes: u64,
    _held: Vec<File>,
}

/// `qemu-img info --output=json`, as far as it is of interest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    format_specific: Option<Specific>,
}

#[derive(Debug, Deserialize)]
struct Specific {
    #[serde(default)]
    data: Option<SpecificData>,
}

#[derive(Debug, Deserialize)]
struct SpecificData {
    #[serde(default)]
    extents: Vec<Extent>,
}

#[derive(Debug, Deserialize)]
struct Extent {
    filename: PathBuf,
}

/// A part of the disk, by `qemu-img map --output=json`.
#[derive(Debug, Deserialize)]
struct Part {
    length: u64,
    zero: bool,
}

impl Foreign {
    /// Looks at it.
    pub(super) fn open(image: &Path, format: ImageFormat) -> anyhow::Result<Self> {
        let mut held = vec![disk::hold(image, false)?];
        // Beginning with a slash it is no name of a protocol.
        let image = image
            .canonicalize()
            .with_context(|| format!("{} cannot be found", image.display()))?;
        let shown = image.display();
        let info: Info = asked(format, "info", &image)?;
        if let Some(backing) = info.backing_filename {
            bail!(
                "{shown} has data only where it differs from {backing}, whose format nobody says; make one \
                 image of both with the program that made them"
            );
        }
        ensure!(
            !info.encrypted,
            "{shown} is encrypted; decrypt it with the program that made it"
        );
        let data = info.format_specific.and_then(|specific| specific.data);
        for extent in data.map(|data| data.extents).unwrap_or_default() {
            held.extend(hold_extent(&image, &extent.filename)?);
        }
        let parts: Vec<Part> = asked(format, "map", &image)?;
        let data = parts.iter().filter(|part| !part.zero);
        Ok(Self {
            format,
            disk_bytes: info.virtual_size,
            data_bytes: data.map(|part| part.length).sum(),
            image,
            _held: held,
        })
    }
}

impl Source for Foreign {
    fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    fn copy(&self, destination: &Destination, progress: &mut Progress) -> anyhow::Result<()> {
        // As with the image: no name of a protocol, nor an option.
        let part = std::path::absolute(destination.part())?;
        let mut command = qemu_img(self.format, "convert");
        command.args(["-p", "-n", "--target-is-zero", "-O", "raw"]);
        command.arg(&self.image).arg(part);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| not_started(self.format, error))?;
        let words = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut words = Vec::new();
                // What it says is worth having as far as it comes.
                let _ = stderr.read_to_end(&mut words);
                words
            })
        });
        if let Some(stdout) = child.stdout.take() {
            follow(stdout, progress)?;
        }
        let status = child.wait().context("`qemu-img convert` is lost")?;
        let words = words.and_then(|thread| thread.join().ok()).unwrap_or_default();
        ensure!(status.success(), "`qemu-img convert`: {}", shown_words(&words));
        Ok(())
    }
}

/// Locks a file with an image's data, if that is not the image itself.
/// It lies in the image's directory or below.
fn hold_extent(image: &Path, named: &Path) -> anyhow::Result<Option<File>> {
    let directory = image.parent().unwrap_or(Path::new("/"));
    let shown = image.display();
    let extent = directory.join(named);
    let extent = extent
        .canonicalize()
        .with_context(|| format!("the data of {shown} in {} cannot be found", extent.display()))?;
    ensure!(
        extent.starts_with(directory),
        "{shown} has its data in {}, outside its directory; move them there if they are its own",
        extent.display()
    );
    match extent == image {
        true => Ok(None),
        false => Ok(Some(disk::hold(&extent, false)?)),
    }
}

fn qemu_img(format: ImageFormat, order: &str) -> Command {
    let mut command = Command::new("qemu-img");
    command.arg(order).arg("-f").arg(format.to_string());
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// What it says of an image, as JSON.
fn asked<T: DeserializeOwned>(format: ImageFormat, order: &str, image: &Path) -> anyhow::Result<T> {
    let mut command = qemu_img(format, order);
    let output = command.arg("--output=json").arg(image).output();
    let output = output.map_err(|error| not_started(format, error))?;
    ensure!(
        output.status.success(),
        "{} cannot be read as {format}: {}",
        image.display(),
        shown_words(&output.stderr)
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("what `qemu-img {order}` says is not understood"))
}

fn not_started(format: ImageFormat, error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "{format} images are read with qemu-img, which is not installed: `apt-get install {PACKAGE}`"
        ),
        _ => anyhow::Error::new(error).context("qemu-img cannot be started"),
    }
}

/// Its progress, as it prints it: `    (12.34/100%)` and a carriage return.
fn follow(output: impl Read, progress: &mut Progress) -> anyhow::Result<()> {
    for line in BufReader::new(output).split(b'\r') {
        let line = line.context("`qemu-img convert` cannot be followed")?;
        let text = String::from_utf8_lossy(&line);
        let number = text
            .trim()
            .strip_prefix('(')
            .and_then(|rest| rest.split('/').next());
        if let Some(percent) = number.and_then(|number| number.parse().ok()) {
            progress.percent(percent);
        }
    }
    Ok(())
}

fn shown_words(words: &[u8]) -> String {
    let words = &words[..words.len().min(WORDS_BYTES_MAX)];
    let text = String::from_utf8_lossy(words);
    text.trim().trim_start_matches("qemu-img: ").replace('\n', "; ")
}
