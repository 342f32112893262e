//! A qcow2 image that grows while it is in use, and hosts that die meanwhile.

use std::fs::OpenOptions;
use std::path::Path;

use imago::FormatCreateBuilder;
use tempfile::TempDir;

use super::*;

const OLD_BYTES: u64 = 1 << 30;
const NEW_BYTES: u64 = 1 << 40;
const STEP_BYTES: u64 = 100 << 20;

fn open(path: &Path) -> Qcow2Image {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    Qcow2Image::open(file, &DiskConfig::new(path)).unwrap()
}

fn made() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    let file = std::fs::File::create_new(&path).unwrap();
    let storage = imago::file::File::try_from(file).unwrap();
    Qcow2::<imago::file::File>::create_builder(storage)
        .size(OLD_BYTES)
        .create()
        .unwrap();
    (directory, path)
}

fn block(number: u64) -> Vec<u8> {
    vec![number as u8 + 1; 512]
}

fn scatter(image: &Qcow2Image, upto: u64) {
    for number in 0..upto / STEP_BYTES {
        image.write(number * STEP_BYTES, &block(number)).unwrap();
    }
}

fn verify(image: &Qcow2Image, upto: u64) {
    for number in 0..upto / STEP_BYTES {
        let mut found = vec![0; 512];
        image.read(number * STEP_BYTES, &mut found).unwrap();
        assert_eq!(found, block(number), "block {number}");
    }
}

/// What a host that died just now would find.
fn copy(path: &Path) -> (TempDir, Qcow2Image) {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("disk.qcow2");
    std::fs::copy(path, &copy).unwrap();
    let image = open(&copy);
    (directory, image)
}

#[test]
fn it_grows_in_use_and_what_was_there_stays() {
    let (_directory, path) = made();
    let image = open(&path);
    scatter(&image, OLD_BYTES);
    image.enlarge(NEW_BYTES).unwrap();
    assert_eq!(image.bytes().unwrap(), NEW_BYTES);
    verify(&image, OLD_BYTES);
    image.write(NEW_BYTES - 512, &block(77)).unwrap();
    // What is finished survives the death of the process.
    let (_copied, killed) = copy(&path);
    assert_eq!(killed.bytes().unwrap(), NEW_BYTES);
    verify(&killed, OLD_BYTES);
    let mut found = vec![0; 512];
    killed.read(NEW_BYTES - 512, &mut found).unwrap();
    assert_eq!(found, block(77));
}

#[test]
fn a_death_before_the_header_leaves_the_old_image() {
    let (_directory, path) = made();
    let image = open(&path);
    scatter(&image, OLD_BYTES);
    image.header.hold();
    image
        .with(|access| {
            access.resize_grow(NEW_BYTES, PreallocateMode::None)?;
            access.flush()?;
            access.sync()
        })
        .unwrap();
    let (copied, died) = copy(&path);
    assert_eq!(died.bytes().unwrap(), OLD_BYTES);
    verify(&died, OLD_BYTES);
    // Nothing of it counts as free: what comes now lies elsewhere.
    for cluster in 0..100 {
        died.write((STEP_BYTES >> 1) + cluster * (64 << 10), &[0xee; 512])
            .unwrap();
    }
    died.flush().unwrap();
    drop(died);
    verify(&open(&copied.path().join("disk.qcow2")), OLD_BYTES);
    image.header.release(&image.file).unwrap();
    let (_copied, later) = copy(&path);
    assert_eq!(later.bytes().unwrap(), NEW_BYTES);
    verify(&later, OLD_BYTES);
}

#[test]
fn an_image_that_fails_to_grow_is_the_old_one_and_goes_on() {
    let (_directory, path) = made();
    let image = open(&path);
    scatter(&image, OLD_BYTES);
    // Its first table would be too long.
    assert!(image.enlarge(1 << 62).is_err());
    assert_eq!(image.bytes().unwrap(), OLD_BYTES);
    verify(&image, OLD_BYTES);
    image.write(4096, &block(5)).unwrap();
    image.enlarge(2 * OLD_BYTES).unwrap();
    let (_copied, later) = copy(&path);
    assert_eq!(later.bytes().unwrap(), 2 * OLD_BYTES);
    verify(&later, OLD_BYTES);
}
