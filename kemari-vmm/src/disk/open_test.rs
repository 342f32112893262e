//! Images that are opened, and those that cannot be.

use super::*;
use crate::confine::{self, call};
use std::io::Write;

fn config(path: &Path, cache: Cache) -> DiskConfig {
    DiskConfig {
        cache,
        ..DiskConfig::new(path)
    }
}

#[test]
fn what_is_written_is_read_with_and_without_the_page_cache() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    for cache in [Cache::Writeback, Cache::Direct] {
        let disk = Disk::open(&config(file.path(), cache)).unwrap();
        let data: Vec<u8> = (0..1536u32).map(|i| i as u8 ^ cache as u8).collect();
        let write = Operation::Write {
            offset: 1024,
            data: data.clone(),
        };
        let read = Operation::Read {
            offset: 1024,
            bytes: 1536,
        };
        disk.carry_out(&write).unwrap();
        disk.carry_out(&Operation::Flush).unwrap();
        assert_eq!(disk.carry_out(&read).unwrap(), data);
    }
}

#[test]
fn an_image_that_io_uring_is_to_serve_is_of_no_use_without() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let with = |io| DiskConfig {
        io,
        ..DiskConfig::new(file.path())
    };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            // As a kernel without.
            let rings = [call(libc::SYS_io_uring_setup, "what this thread gets no more")];
            confine::refuse(&rings, libc::ENOSYS).unwrap();
            assert!(matches!(
                Disk::examine(&with(Io::Uring)),
                Err(DiskError::Uring(_))
            ));
            assert!(matches!(Disk::open(&with(Io::Uring)), Err(DiskError::Uring(_))));
            for other in [Io::Auto, Io::Threads] {
                Disk::examine(&with(other)).unwrap();
                Disk::open(&with(other)).unwrap();
            }
        });
    });
}

/// Pages of a file that the page cache holds.
fn cached_pages(file: &std::fs::File, bytes: usize) -> usize {
    use std::os::fd::AsRawFd;
    let mut pages = vec![0u8; bytes.div_ceil(4096)];
    // SAFETY: a fresh mapping of the file, which the kernel looks at and nobody reads,
    // and one byte for each page.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        assert_eq!(libc::mincore(map, bytes, pages.as_mut_ptr()), 0);
        libc::munmap(map, bytes);
    }
    pages.iter().filter(|page| **page & 1 != 0).count()
}

#[test]
fn what_is_forgotten_is_read_from_the_disk() {
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let data = vec![7; 1 << 20];
    file.write_all(&data).unwrap();
    assert!(cached_pages(file.as_file(), data.len()) > 0);
    let disk = Disk::open(&config(file.path(), Cache::Writeback)).unwrap();
    disk.forget_cached().unwrap();
    assert_eq!(cached_pages(file.as_file(), data.len()), 0);
    assert_eq!(
        disk.carry_out(&Operation::Read {
            offset: 4096,
            bytes: 512
        })
        .unwrap(),
        [7; 512]
    );
}

#[test]
fn an_image_has_one_user() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let first = Disk::open(&config(file.path(), Cache::Writeback)).unwrap();
    assert!(matches!(
        Disk::open(&config(file.path(), Cache::Writeback)),
        Err(DiskError::InUse { .. })
    ));
    let fenced = DiskConfig {
        ignore_lock: true,
        ..config(file.path(), Cache::Writeback)
    };
    assert!(Disk::open(&fenced).is_ok());
    drop(first);
    assert!(Disk::open(&config(file.path(), Cache::Writeback)).is_ok());
}

#[test]
fn holes_are_known_and_data_are_never_taken_for_one() {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    let disk = Disk::open(&config(file.path(), Cache::Writeback)).unwrap();
    assert!(disk.is_hole(&(0..8 << 20)));
    let data = vec![0; 4096];
    let offset = 4 << 20;
    disk.carry_out(&Operation::Write { offset, data }).unwrap();
    assert!(disk.is_hole(&(0..offset)));
    assert!(!disk.is_hole(&(0..offset + 1)));
    assert!(!disk.is_hole(&(offset..offset + 4096)));
    assert!(disk.is_hole(&(5 << 20..8 << 20)), "to the end of the file");
}

#[test]
fn an_image_is_as_many_whole_blocks_as_it_has() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[0; 9000]).unwrap();
    for (block_bytes, bytes) in [(512, 8704), (4096, 8192)] {
        let config = DiskConfig {
            block_bytes,
            ..config(file.path(), Cache::Writeback)
        };
        assert_eq!(Disk::open(&config).unwrap().bytes(), bytes);
    }
}

#[test]
fn odd_sizes_and_odd_files_are_refused() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(
        Disk::open(&config(file.path(), Cache::Writeback)),
        Err(DiskError::Size { .. })
    ));
    file.write_all(&[0; 500]).unwrap();
    assert!(matches!(
        Disk::open(&config(file.path(), Cache::Writeback)),
        Err(DiskError::Size { .. })
    ));
    assert!(matches!(
        Disk::open(&config(Path::new("/dev/null"), Cache::Writeback)),
        Err(DiskError::Kind { .. })
    ));
    assert!(matches!(
        Disk::open(&config(Path::new("/nonexistent"), Cache::Writeback)),
        Err(DiskError::Open { .. })
    ));
}
