//! What a VM leaves: its disk, looked at when it was stopped.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lab::{BootDisk, DiskCopy};

use super::options::{Guest, Options, Service};
use crate::proof::postgres::health;

/// Bytes of two images that are compared at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Looks at the images of a VM that was stopped; an error says what is wrong with them. Images of replicated
/// disks are equal, the file system of a Linux guest is whole, and so is its database.
pub fn examine(images: &[PathBuf], options: &Options) -> Result<()> {
    let (first, others) = images.split_first().context("the VM has no disk")?;
    for other in others {
        ensure_equal(first, other)?;
    }
    let copy = match options.guest {
        Guest::Bare => return Ok(()),
        Guest::Linux => DiskCopy::take(first)?,
        Guest::LinuxDisk => DiskCopy::take_from(first, BootDisk::ROOT_AT)?,
    };
    copy.check().context("the guest's file system is not whole")?;
    if options.service == Service::Postgres {
        health::examine_files(&copy.open()?)?;
    }
    Ok(())
}

/// Fails with the first byte that differs.
fn ensure_equal(a: &Path, b: &Path) -> Result<()> {
    let open = |path: &Path| -> Result<(u64, BufReader<File>)> {
        let file = File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
        Ok((
            file.metadata()?.len(),
            BufReader::with_capacity(CHUNK_BYTES, file),
        ))
    };
    let ((size_a, mut a), (size_b, mut b)) = (open(a)?, open(b)?);
    ensure!(
        size_a == size_b,
        "the two images have {size_a} and {size_b} bytes"
    );
    let (mut from_a, mut from_b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut offset = 0;
    while offset < size_a {
        let count = (size_a - offset).min(CHUNK_BYTES as u64) as usize;
        a.read_exact(&mut from_a[..count])?;
        b.read_exact(&mut from_b[..count])?;
        let mut pairs = from_a[..count].iter().zip(&from_b[..count]);
        if let Some(at) = pairs.position(|(a, b)| a != b) {
            let sectors = count_differing(&from_a[..count], &from_b[..count]);
            bail!(
                "the two images differ, first at byte {} (in {sectors} sectors of that MiB)",
                offset + at as u64
            );
        }
        offset += count as u64;
    }
    Ok(())
}

fn count_differing(a: &[u8], b: &[u8]) -> usize {
    let sectors = a.chunks(512).zip(b.chunks(512));
    sectors.filter(|(a, b)| a != b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_equal_or_the_first_difference_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut content = vec![7; CHUNK_BYTES + 4096];
        for name in ["a", "b"] {
            std::fs::write(path(name), &content).unwrap();
        }
        ensure_equal(&path("a"), &path("b")).unwrap();
        content[CHUNK_BYTES + 513] = 8;
        std::fs::write(path("b"), &content).unwrap();
        let differ = ensure_equal(&path("a"), &path("b")).unwrap_err().to_string();
        assert!(
            differ.contains("1049089") && differ.contains("1 sectors"),
            "{differ}"
        );
        std::fs::write(path("b"), &content[1..]).unwrap();
        assert!(ensure_equal(&path("a"), &path("b")).is_err());
    }
}
