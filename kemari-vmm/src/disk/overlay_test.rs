use std::path::Path;

use super::*;
use crate::disk::{Cache, DiskConfig};

const SIZE_BYTES: u64 = (1 << 20) + 512;

struct Image {
    disk: Arc<Disk>,
    _file: tempfile::NamedTempFile,
}

fn image(cache: Cache) -> Image {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), content()).expect("room for it");
    Image {
        disk: Arc::new(open(file.path(), cache)),
        _file: file,
    }
}

fn open(path: &Path, cache: Cache) -> Disk {
    let config = DiskConfig {
        cache,
        ..DiskConfig::new(path)
    };
    Disk::open(&config).expect("an image")
}

fn content() -> Vec<u8> {
    (0..SIZE_BYTES).map(|at| (at / 512) as u8 | 1).collect()
}

fn all_of(overlay: &Overlay) -> Vec<u8> {
    let mut bytes = vec![0; SIZE_BYTES as usize];
    overlay.read(0, &mut bytes).expect("all of it can be read");
    bytes
}

/// Ranges of every alignment, over the end of a block, of several blocks, at the end of the image.
const RANGES: [(u64, u64); 6] = [
    (0, 512),
    (512, 4096),
    (8192, 4096),
    (20_480 - 512, 13_312),
    (SIZE_BYTES - 512, 512),
    (SIZE_BYTES - 5120, 5120),
];

#[test]
fn what_is_written_is_read_and_the_image_stays() {
    for cache in [Cache::Writeback, Cache::Direct] {
        let image = image(cache);
        let overlay = Overlay::over(&image.disk, u64::MAX);
        let mut expected = content();
        for (index, (offset, bytes)) in RANGES.into_iter().enumerate() {
            let range = offset as usize..(offset + bytes) as usize;
            match index % 2 {
                0 => {
                    let data: Vec<u8> = (0..bytes).map(|at| at as u8 ^ 0x55).collect();
                    overlay.write(offset, &data).expect("it takes a write");
                    expected[range].copy_from_slice(&data);
                }
                _ => {
                    overlay.zero(offset, bytes, true).expect("it takes zeros");
                    expected[range].fill(0);
                }
            }
            assert!(all_of(&overlay) == expected, "after range {index}");
        }
        let mut part = [0; 1024];
        overlay.read(20_480, &mut part).expect("a part");
        assert_eq!(part, expected[20_480..21_504]);
        let mut below = vec![0; SIZE_BYTES as usize];
        image.disk.store().read(0, &mut below).expect("the image");
        assert!(below == content(), "the image has changed");
    }
}

#[test]
fn the_disk_is_of_one_moment_whatever_is_written_to_the_image() {
    let image = image(Cache::Writeback);
    let overlay = Overlay::over(&image.disk, u64::MAX);
    let mut expected = content();
    overlay.write(4096, &[9; 512]).expect("it takes a write");
    expected[4096..4608].fill(9);
    for (offset, bytes) in RANGES {
        overlay.keep(&(offset..offset + bytes));
        let other = vec![0xee; bytes as usize];
        image
            .disk
            .store()
            .write(offset, &other)
            .expect("the image is written");
        assert!(all_of(&overlay) == expected, "after {offset}");
    }
    overlay.keep(&(SIZE_BYTES..SIZE_BYTES + 4096));
    assert!(!overlay.is_over() && overlay.failures() == 0 && overlay.reads() > 0);
}

#[test]
fn a_layer_that_would_hold_too_much_is_over_and_that_is_no_failure() {
    let image = image(Cache::Writeback);
    for kept in [true, false] {
        let overlay = Overlay::over(&image.disk, 2 * (ENTRY_BYTES + BLOCK_BYTES));
        overlay.write(0, &[1; 8192]).expect("there is room for it");
        overlay.write(4096, &[2; 4096]).expect("and for another version");
        assert_eq!(overlay.held_bytes(), 2 * (ENTRY_BYTES + BLOCK_BYTES));
        match kept {
            true => overlay.keep(&(1 << 19..(1 << 19) + 1)),
            false => drop(
                overlay
                    .write(8192, &[3; 512])
                    .expect_err("there is none for a third block"),
            ),
        }
        assert!(overlay.is_over());
        assert!(overlay.read(0, &mut [0; 512]).is_err());
        assert_eq!(overlay.failures(), 0);
    }
}

/// A guest that discards its whole disk made entries without end.
#[test]
fn zeros_take_little_and_not_nothing() {
    let image = image(Cache::Writeback);
    let overlay = Overlay::over(&image.disk, 64 * ENTRY_BYTES);
    overlay
        .write(0, &[1; 4096])
        .expect_err("there is no room for bytes");
    let overlay = Overlay::over(&image.disk, 64 * ENTRY_BYTES);
    for _ in 0..3 {
        overlay
            .zero(0, 64 * BLOCK_BYTES, true)
            .expect("there is room for zeros");
        assert_eq!(overlay.held_bytes(), 64 * ENTRY_BYTES);
    }
    assert!(!overlay.is_over());
    overlay
        .zero(64 * BLOCK_BYTES, BLOCK_BYTES, true)
        .expect_err("there is none for more");
    assert!(overlay.is_over() && overlay.failures() == 0);
}

/// What is kept for somebody else's writes is not its user's.
#[test]
fn what_was_written_is_told_apart_from_what_was_kept() {
    let image = image(Cache::Writeback);
    let overlay = Overlay::over(&image.disk, u64::MAX);
    overlay.keep(&(0..SIZE_BYTES));
    let blocks = SIZE_BYTES.div_ceil(BLOCK_BYTES);
    assert_eq!(overlay.held_bytes(), SIZE_BYTES + blocks * ENTRY_BYTES);
    assert_eq!(overlay.written_bytes(), 0);
    overlay.write(512, &[1; 512]).expect("it takes a write");
    overlay.zero(4096, 8192, false).expect("it takes zeros");
    overlay.write(SIZE_BYTES, &[1; 512]).expect_err("beyond the end");
    assert_eq!(overlay.written_bytes(), 512 + 8192);
}

#[test]
fn an_image_that_is_closed_keeps_nobody_and_reads_of_it_fail() {
    let image = image(Cache::Writeback);
    let overlay = Overlay::over(&image.disk, u64::MAX);
    overlay.write(0, &[7; 4096]).expect("it takes a write");
    let path = image.disk.path().to_owned();
    drop(image.disk);
    drop(open(&path, Cache::Writeback));
    let mut block = [0; 4096];
    overlay.read(0, &mut block).expect("it has this one");
    assert_eq!(block, [7; 4096]);
    assert!(overlay.read(4096, &mut block).is_err());
    assert!(overlay.read(SIZE_BYTES, &mut block).is_err(), "beyond the end");
    assert_eq!(overlay.failures(), 2);
}
