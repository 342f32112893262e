//! The image behind a volatile disk, and what was written and not flushed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::protocol::{Command, Request};

/// What a power cut leaves whole or as it was, in bytes.
const SECTOR_BYTES: u64 = 512;
/// Most memory for unflushed sectors; beyond it the lowest are written,
/// as a disk does when its cache is full.
const CACHE_BYTES_MAX: u64 = 128 << 20;

type Sector = [u8; SECTOR_BYTES as usize];

/// What power cuts have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Unflushed sectors that were forgotten.
    pub forgotten: u64,
    /// Unflushed sectors that were written all the same.
    pub kept: u64,
    /// Flushes carried out.
    pub flushes: u64,
}

/// An image with its unflushed sectors.
#[derive(Debug)]
pub(super) struct WriteCache {
    file: File,
    bytes: u64,
    unflushed: BTreeMap<u64, Sector>,
    loss: Loss,
}

impl WriteCache {
    pub(crate) fn open(path: &Path) -> io::Result<WriteCache> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let bytes = file.metadata()?.len();
        if bytes % SECTOR_BYTES != 0 {
            return Err(io::Error::other(format!(
                "its {bytes} bytes are no whole sectors"
            )));
        }
        Ok(WriteCache {
            file,
            bytes,
            unflushed: BTreeMap::new(),
            loss: Loss::default(),
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn loss(&self) -> Loss {
        self.loss
    }

    /// Carries out a request; the bytes that a read returns.
    pub(crate) fn carry_out(&mut self, request: &Request, fails_writes: bool) -> io::Result<Vec<u8>> {
        let end = request.offset.checked_add(request.bytes);
        let aligned = (request.offset | request.bytes).is_multiple_of(SECTOR_BYTES);
        if !aligned || end.is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &request.command {
            Command::Read => return self.read(request.offset, request.bytes as usize),
            _ if fails_writes => return Err(io::Error::other("it was told to fail")),
            Command::Write { data, durable } => {
                for (sector, content) in (request.offset / SECTOR_BYTES..).zip(data.as_chunks().0) {
                    self.unflushed.insert(sector, *content);
                }
                if *durable {
                    self.write_back(request.offset / SECTOR_BYTES..end.unwrap_or(0) / SECTOR_BYTES)?;
                }
                while self.unflushed.len() as u64 * SECTOR_BYTES > CACHE_BYTES_MAX {
                    let lowest = self.unflushed.keys().next().copied().unwrap_or_default();
                    self.write_back(lowest..lowest + 1)?;
                }
            }
            Command::Flush => {
                self.write_back(0..u64::MAX)?;
                self.loss.flushes += 1;
            }
        }
        Ok(Vec::new())
    }

    /// Each unflushed sector is written or forgotten.
    pub(crate) fn lose_power(&mut self) -> io::Result<()> {
        for (sector, content) in std::mem::take(&mut self.unflushed) {
            if rand::random() {
                self.file.write_all_at(&content, sector * SECTOR_BYTES)?;
                self.loss.kept += 1;
            } else {
                self.loss.forgotten += 1;
            }
        }
        Ok(())
    }

    fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; bytes];
        self.file.read_exact_at(&mut data, offset)?;
        let first = offset / SECTOR_BYTES;
        let sectors = first..first + bytes as u64 / SECTOR_BYTES;
        for (sector, content) in self.unflushed.range(sectors) {
            let at = ((sector - first) * SECTOR_BYTES) as usize;
            data[at..at + content.len()].copy_from_slice(content);
        }
        Ok(data)
    }

    fn write_back(&mut self, sectors: std::ops::Range<u64>) -> io::Result<()> {
        let mut rest = self.unflushed.split_off(&sectors.start);
        let mut behind = rest.split_off(&sectors.end);
        for (sector, content) in rest {
            self.file.write_all_at(&content, sector * SECTOR_BYTES)?;
        }
        self.unflushed.append(&mut behind);
        Ok(())
    }
}
