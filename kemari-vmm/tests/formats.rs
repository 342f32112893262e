//! Images of all kinds: qcow2, made and judged by QEMU's own tools, and block devices. No KVM is needed.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kemari_vmm::disk::{Cache, Disk, DiskConfig, DiskError, Format, Operation};
use tempfile::TempDir;

#[allow(dead_code)]
#[path = "machine/support/random.rs"]
mod random;
use random::Random;

const SECTOR_BYTES: usize = 512;
const SECTORS: u64 = 8 << 11;

/// Runs qemu-img; its output if it succeeds.
fn qemu_img(directory: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new("qemu-img")
        .args(args)
        .current_dir(directory)
        .output()
        .expect("qemu-img starts (Debian's package qemu-utils has it)");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(text)
    } else {
        Err(text)
    }
}

fn made(args: &[&str]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    qemu_img(directory.path(), args).expect("the image is made");
    let path = directory.path().join("disk.qcow2");
    (directory, path)
}

fn config(path: &Path, cache: Cache) -> DiskConfig {
    DiskConfig {
        format: Format::Qcow2,
        cache,
        ..DiskConfig::new(path)
    }
}

/// An open image, as a device would use it.
struct Image(Disk);

impl Image {
    fn open(path: &Path, cache: Cache) -> Self {
        Self(Disk::open(&config(path, cache)).expect("the image opens"))
    }

    fn write(&self, sector: u64, data: &[u8]) {
        let offset = sector * SECTOR_BYTES as u64;
        let data = data.to_vec();
        self.0
            .carry_out(&Operation::Write { offset, data })
            .expect("it is written");
    }

    fn read(&self, sector: u64, sectors: usize) -> Vec<u8> {
        let offset = sector * SECTOR_BYTES as u64;
        let bytes = sectors * SECTOR_BYTES;
        self.0
            .carry_out(&Operation::Read { offset, bytes })
            .expect("it is read")
    }

    fn zero(&self, sector: u64, sectors: u64, unmap: bool) {
        let (offset, bytes) = (sector * SECTOR_BYTES as u64, sectors * SECTOR_BYTES as u64);
        let zero = Operation::Zero { offset, bytes, unmap };
        self.0.carry_out(&zero).expect("it is made zeros");
    }

    fn flush(&self) {
        self.0.flush().expect("it is flushed");
    }
}

/// Writes, zeroes and discards at random; returns what must be on the disk.
fn scribble(disk: &Image, mut expected: Vec<u8>, random: &mut Random, rounds: usize) -> Vec<u8> {
    for round in 0..rounds {
        let sectors = 1 + random.below(8) as usize;
        // Here and there, so that many clusters are touched, and some often.
        let first = match random.percent(50) {
            true => random.below(SECTORS - 8),
            false => random.below(1024),
        };
        let range = first as usize * SECTOR_BYTES..(first as usize + sectors) * SECTOR_BYTES;
        match random.below(10) {
            0 => {
                let long = (sectors as u64 * 256).min(SECTORS - first);
                let end = (first as usize + long as usize) * SECTOR_BYTES;
                disk.zero(first, long, random.percent(50));
                expected[range.start..end].fill(0);
            }
            1 => disk.flush(),
            2..5 => assert_eq!(disk.read(first, sectors), expected[range], "round {round}"),
            _ => {
                let data: Vec<u8> = (0..sectors * SECTOR_BYTES).map(|_| random.next() as u8).collect();
                disk.write(first, &data);
                expected[range].copy_from_slice(&data);
            }
        }
    }
    expected
}

fn raw_of(directory: &Path, image: &str) -> Vec<u8> {
    qemu_img(directory, &["convert", "-O", "raw", image, "out.raw"]).expect("it converts");
    fs::read(directory.join("out.raw")).expect("it was written")
}

#[test]
fn images_that_grow_in_use_satisfy_qemus_check() {
    const GROWN: usize = 64 << 20;
    let mut random = Random::new(53);
    for options in [
        "cluster_size=64k",
        "cluster_size=4k",
        "compat=0.10",
        "refcount_bits=1",
    ] {
        for cache in [Cache::Writeback, Cache::Direct] {
            let (directory, path) = made(&["create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", "8M"]);
            let disk = Image::open(&path, cache);
            let mut expected = scribble(&disk, vec![0; 8 << 20], &mut random, 100);
            for bytes in [9 << 20, GROWN] {
                disk.0.enlarge(bytes as u64).expect("it grows");
                assert_eq!(disk.0.bytes_now().expect("a size"), bytes as u64);
                expected.resize(bytes, 0);
                expected = scribble(&disk, expected, &mut random, 50);
                let last = bytes - SECTOR_BYTES;
                disk.write((last / SECTOR_BYTES) as u64, &[0xa5; SECTOR_BYTES]);
                expected[last..].fill(0xa5);
            }
            let refused = disk.0.enlarge(8 << 20).expect_err("it never shrinks");
            assert!(matches!(refused, DiskError::NewSize { .. }), "{refused}");
            drop(disk);
            // Clusters of the tables before are lost, no more.
            if let Err(text) = qemu_img(directory.path(), &["check", "disk.qcow2"]) {
                assert!(
                    text.contains("leaked clusters were found") && !text.contains("ERROR"),
                    "{options}: {text}"
                );
            }
            assert!(raw_of(directory.path(), "disk.qcow2") == expected, "{options}");
        }
    }
}

#[test]
fn what_grows_over_a_longer_backing_file_is_zeros() {
    for compat in ["compat=1.1", "compat=0.10"] {
        let (directory, path) = made(&["create", "-q", "-f", "raw", "base.raw", "8M"]);
        fs::write(directory.path().join("base.raw"), vec![0x77; 8 << 20]).expect("it is written");
        let image = [
            "-f",
            "qcow2",
            "-o",
            compat,
            "-b",
            "base.raw",
            "-F",
            "raw",
            "disk.qcow2",
        ];
        let create = [&["create", "-q"][..], &image[..], &["3000K"]].concat();
        qemu_img(directory.path(), &create).expect("it is made");
        let disk = Image::open(&path, Cache::Writeback);
        disk.0.enlarge(16 << 20).expect("it grows");
        drop(disk);
        let mut expected = vec![0x77; 3000 << 10];
        expected.resize(16 << 20, 0);
        assert!(raw_of(directory.path(), "disk.qcow2") == expected, "{compat}");
    }
}

#[test]
fn images_of_qemu_open_and_results_satisfy_its_check() {
    let mut random = Random::new(51);
    for (number, options) in [
        "cluster_size=64k",
        "cluster_size=4k",
        "compat=0.10",
        "refcount_bits=1",
        "lazy_refcounts=on",
    ]
    .iter()
    .enumerate()
    {
        for cache in [Cache::Writeback, Cache::Direct] {
            let (directory, path) = made(&["create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", "8M"]);
            let disk = Image::open(&path, cache);
            assert_eq!(disk.0.bytes(), SECTORS * SECTOR_BYTES as u64);
            let expected = scribble(&disk, vec![0; 8 << 20], &mut random, 300 / (number + 1));
            // Without a flush: what is finished survives the end of the process. The lock goes with the disk.
            let on_file = fs::read(&path).expect("the image");
            fs::write(directory.path().join("killed.qcow2"), on_file).expect("a copy");
            let check = qemu_img(directory.path(), &["check", "killed.qcow2"]).expect("no error in it");
            assert!(check.contains("No errors"), "{options}: {check}");
            assert!(
                raw_of(directory.path(), "killed.qcow2") == expected,
                "{options} {cache:?}: a finished write is lost"
            );
            drop(disk);
            let disk = Image::open(&path, cache);
            let expected = scribble(&disk, expected, &mut random, 50);
            drop(disk);
            let check = qemu_img(directory.path(), &["check", "disk.qcow2"]).expect("no error in it");
            assert!(check.contains("No errors"), "{options}: {check}");
            assert!(raw_of(directory.path(), "disk.qcow2") == expected);
        }
    }
}

#[test]
fn a_backing_file_is_read_and_never_written() {
    let mut random = Random::new(52);
    let directory = tempfile::tempdir().expect("a directory");
    let base: Vec<u8> = (0..8 << 20).map(|_| random.next() as u8).collect();
    fs::write(directory.path().join("base.raw"), &base).expect("a file");
    let make = |args: &[&str]| qemu_img(directory.path(), args).expect("the image is made");
    make(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.raw",
        "-F",
        "raw",
        "middle.qcow2",
    ]);
    make(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "middle.qcow2",
        "-F",
        "qcow2",
        "disk.qcow2",
    ]);
    let path = directory.path().join("disk.qcow2");
    let disk = Image::open(&path, Cache::Writeback);
    let expected = scribble(&disk, base.clone(), &mut random, 200);
    disk.flush();
    drop(disk);
    assert!(
        qemu_img(directory.path(), &["check", "disk.qcow2"])
            .expect("it is sound")
            .contains("No errors")
    );
    assert!(raw_of(directory.path(), "disk.qcow2") == expected);
    assert!(fs::read(directory.path().join("base.raw")).expect("it is there") == base);

    fs::remove_file(directory.path().join("base.raw")).expect("it was there");
    refused(&path, "base.raw");
}

/// Opening is refused with a reason that says so, and nothing is written.
fn refused(path: &Path, says: &str) {
    let before = fs::read(path).expect("the image");
    for read_only in [false, true] {
        let config = DiskConfig {
            read_only,
            ..config(path, Cache::Writeback)
        };
        let error = Disk::open(&config).err().expect("it cannot be used");
        assert!(matches!(error, DiskError::Format { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(fs::read(path).expect("the image") == before, "it was written to");
}

#[test]
fn a_backing_file_elsewhere_is_refused() {
    let elsewhere = tempfile::tempdir().expect("a directory");
    let secret = elsewhere.path().join("secret");
    fs::write(&secret, vec![7; 1 << 20]).expect("a file");
    let name = secret.to_str().expect("a name");
    let (directory, path) = made(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        name,
        "-F",
        "raw",
        "disk.qcow2",
    ]);
    refused(&path, "outside the image's directory");
    // A link does not help.
    std::os::unix::fs::symlink(&secret, directory.path().join("link")).expect("a link");
    qemu_img(
        directory.path(),
        &["rebase", "-u", "-b", "link", "-F", "raw", "disk.qcow2"],
    )
    .expect("renamed");
    refused(&path, "outside the image's directory");
    qemu_img(
        directory.path(),
        &["rebase", "-u", "-b", "disk.qcow2", "-F", "qcow2", "disk.qcow2"],
    )
    .expect("a loop");
    refused(&path, "its own backing file");
}

#[test]
fn a_chain_of_backing_files_that_does_not_end_is_refused() {
    let (directory, path) = made(&["create", "-q", "-f", "qcow2", "base.qcow2", "8M"]);
    let in_it = |args: &[&str]| qemu_img(directory.path(), args).expect("qemu-img does it");
    in_it(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.qcow2",
        "-F",
        "qcow2",
        "disk.qcow2",
    ]);
    in_it(&["rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", "base.qcow2"]);
    refused(&path, "more than 16 other files");
}

#[test]
fn damaged_and_wrong_images_are_refused_and_not_written_to() {
    let (directory, path) = made(&["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
    let disk = Image::open(&path, Cache::Writeback);
    scribble(&disk, vec![0; 8 << 20], &mut Random::new(53), 200);
    disk.flush();
    drop(disk);
    let sound = fs::read(&path).expect("the image");
    let word = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().expect("eight bytes")) as usize;
    let l1 = word(40);
    let l2 = word(l1) & 0x00ff_ffff_ffff_fe00;
    let damage = |at: usize, bytes: &[u8]| {
        let mut image = sound.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, image).expect("the image");
        eprintln!("{} bytes at {at} are {bytes:x?}", bytes.len());
        refused(&path, "");
    };
    damage(0, b"nope");
    damage(4, &9u32.to_be_bytes());
    damage(20, &63u32.to_be_bytes());
    damage(40, &12345u64.to_be_bytes());
    damage(l1, &(word(l1) as u64 | 0x200).to_be_bytes());
    damage(l2, &0x8000_0000_0000_1200u64.to_be_bytes());
    // A part of the disk that lies over the header, the L1 table, an L2 table, or another part.
    for elsewhere in [
        0,
        l1,
        l2,
        (0..8192)
            .map(|entry| word(l2 + entry * 8))
            .find(|entry| *entry != 0)
            .expect("data"),
    ] {
        let entry = (elsewhere as u64 & 0x00ff_ffff_ffff_fe00) | 1 << 63;
        let last = (0..8).rfind(|entry| word(l2 + entry * 8) != 0).expect("data");
        damage(l2 + last * 8, &entry.to_be_bytes());
    }
    // Refcounts that were lost: of the header, of a table, of data.
    let refcounts = word(word(48));
    for cluster in [0, l1 >> 16, l2 >> 16, (word(l2) & 0x00ff_ffff_ffff_fe00) >> 16] {
        damage(refcounts + cluster * 2, &[0, 0]);
    }
    // Marked as damaged by somebody else (the incompatible feature bit 1).
    damage(72, &2u64.to_be_bytes());
    damage(72, &(1u64 << 40).to_be_bytes());
    fs::write(&path, &sound[..1000]).expect("the image");
    refused(&path, "");
    drop(directory);
}

/// A block device on a file of 4 MiB.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(file: &Path) -> Self {
        fs::File::create_new(file)
            .and_then(|file| file.set_len(4 << 20))
            .expect("a sparse file");
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .expect("losetup starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(String::from_utf8_lossy(&made.stdout).trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_block_device_is_a_disk_and_has_one_user() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("backing");
    let device = LoopDevice::new(&file);
    for cache in [Cache::Writeback, Cache::Direct] {
        let config = DiskConfig {
            cache,
            ..DiskConfig::new(&device.0)
        };
        let disk = Image(Disk::open(&config).expect("the device opens"));
        assert_eq!(disk.0.bytes(), 4 << 20);
        disk.write(8, &[7; 8192]);
        disk.zero(10, 4, true);
        disk.zero(14, 2, false);
        disk.flush();
        assert_eq!(
            disk.read(8, 16),
            [vec![7; 1024], vec![0; 3072], vec![7; 4096]].concat()
        );
        let on_file = fs::read(&file).expect("it is there");
        assert!(on_file[4096..5120] == [7; 1024] && on_file[5120..8192] == [0; 3072]);
        assert!(matches!(Disk::open(&config), Err(DiskError::InUse { .. })));
        drop(disk);
        // As a mount or a volume holds it.
        let holder = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&device.0)
            .expect("nobody has it");
        assert!(matches!(Disk::open(&config), Err(DiskError::InUse { .. })));
        drop(holder);
        Disk::open(&config).expect("it is free again");
    }
}

/// QEMU's tools look at locks of their own, and so does Kemari: neither begins beside the other.
#[test]
fn qemu_and_kemari_do_not_use_one_image_at_the_same_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.img");
    fs::File::create(&path)
        .and_then(|file| file.set_len(4 << 20))
        .expect("an image");
    let raw = DiskConfig::new(&path);
    let reader = DiskConfig {
        read_only: true,
        ..raw.clone()
    };
    for cache in [Cache::Writeback, Cache::Direct] {
        let disk = Disk::open(&DiskConfig { cache, ..raw.clone() }).expect("the image opens");
        let resize = qemu_img(directory.path(), &["resize", "-f", "raw", "disk.img", "8M"]);
        let refusal = resize.expect_err("it is in use");
        assert!(refusal.contains("lock"), "{refusal}");
        drop(disk);
    }
    let disk = Disk::open(&reader).expect("the image opens");
    qemu_img(directory.path(), &["map", "-f", "raw", "disk.img"]).expect("two readers");
    qemu_img(directory.path(), &["resize", "-f", "raw", "disk.img", "8M"]).expect_err("it is read");
    drop(disk);

    let socket = directory.path().join("nbd");
    let mut nbd = Command::new("qemu-nbd")
        .args(["--persistent", "--format=raw", "--socket"])
        .args([&socket, &path])
        .spawn()
        .expect("qemu-nbd starts (Debian's package qemu-utils has it)");
    while !socket.exists() {
        assert!(nbd.try_wait().expect("it is a child").is_none(), "qemu-nbd ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for config in [&raw, &reader] {
        let refusal = Disk::open(config).err().expect("QEMU writes it").to_string();
        let user = format!("qemu-nbd (process {})", nbd.id());
        assert!(refusal.contains(&user), "{refusal}");
    }
    nbd.kill().expect("it is a child");
    nbd.wait().expect("it is a child");
    Disk::open(&raw).expect("the locks went with their owner");
}

/// What QEMU makes and calls sound is taken: compressed, with snapshots, with refcounts and clusters of every size.
#[test]
fn sound_images_of_every_kind_are_taken() {
    let kinds = [
        "compat=0.10",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=2M,refcount_bits=8",
        "refcount_bits=2",
        "preallocation=metadata",
    ];
    for (number, options) in kinds.into_iter().enumerate() {
        let directory = tempfile::tempdir().expect("a directory");
        let make = |args: &[&str]| qemu_img(directory.path(), args).expect("the image is made");
        let mut data = vec![0; 8 << 20];
        data[1 << 20..3 << 20].fill(7);
        data[5 << 20..(5 << 20) + 99].fill(number as u8 + 1);
        fs::write(directory.path().join("data.raw"), &data).expect("a file");
        let args = [
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            options,
            "data.raw",
            "disk.qcow2",
        ];
        make(&args);
        let path = directory.path().join("disk.qcow2");
        make(&["snapshot", "-c", "before", "disk.qcow2"]);
        let image = Image::open(&path, Cache::Writeback);
        assert!(image.read(0, SECTORS as usize) == data, "{options}");
        image.write(2048, &[9; 4096]);
        image.flush();
        drop(image);
        make(&["check", "disk.qcow2"]);
        Image::open(&path, Cache::Direct);
        if !options.contains("preallocation") {
            make(&[&args[..1], &["-c"], &args[1..]].concat());
            assert!(
                Image::open(&path, Cache::Writeback).read(0, SECTORS as usize) == data,
                "{options}"
            );
        }
    }
}

/// Somebody who changes a base changes every image upon it.
#[test]
fn a_base_is_read_by_many_and_written_by_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let make = |args: &[&str]| qemu_img(directory.path(), args).expect("the image is made");
    make(&["create", "-q", "-f", "raw", "base.img", "8M"]);
    for name in ["disk.qcow2", "other.qcow2"] {
        make(&["create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", name]);
    }
    let base = DiskConfig::new(directory.path().join("base.img"));
    let upper =
        ["disk.qcow2", "other.qcow2"].map(|name| config(&directory.path().join(name), Cache::Writeback));
    let writer = Disk::open(&base).expect("nobody has it");
    let refusal = with_sources(&Disk::open(&upper[0]).err().expect("its base is written"));
    assert!(refusal.contains("base.img is in use"), "{refusal}");
    drop(writer);
    let readers = upper.map(|config| Disk::open(&config).expect("both read it"));
    assert!(matches!(Disk::open(&base), Err(DiskError::InUse { .. })));
    drop(readers);
    Disk::open(&base).expect("nobody reads it any more");
}

/// Images that QEMU makes and the library would take for plain ones, or not read at all.
#[test]
fn what_is_not_understood_is_refused_before_anything_is_written() {
    let secret = ["--object", "secret,id=key,data=secret"];
    let options = [
        ("encrypt.format=luks,encrypt.key-secret=key", "encrypted"),
        ("data_file=data.raw", "in another file"),
        ("compression_type=zstd", "other than zlib"),
        ("extended_l2=on", "extended L2"),
    ];
    for (option, reason) in options {
        let create = ["create", "-q", "-f", "qcow2", "-o", option];
        let args = [&create[..1], &secret, &create[1..], &["disk.qcow2", "8M"]].concat();
        let (_directory, path) = made(&args);
        let before = fs::read(&path).expect("it is there");
        let error = Disk::open(&config(&path, Cache::Writeback))
            .err()
            .expect("it is refused");
        let refusal = with_sources(&error);
        assert!(
            refusal.contains(reason) && refusal.contains("qemu-img convert"),
            "{refusal}"
        );
        assert_eq!(fs::read(&path).expect("it is there"), before);
    }
}

/// An error with its sources.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// A cluster is made zeros as a whole, or in part: what is written beside it at the same time stays.
#[test]
fn writes_beside_discards_in_one_cluster_are_not_lost() {
    const CLUSTERS: u64 = 1000;
    const CLUSTER_SECTORS: u64 = 128;
    let (directory, path) = made(&["create", "-q", "-f", "qcow2", "disk.qcow2", "64M"]);
    let image = Image::open(&path, Cache::Writeback);
    let turn = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for cluster in 0..CLUSTERS {
                turn.wait();
                // All but the last 4 KiB of it.
                image.zero(cluster * CLUSTER_SECTORS, CLUSTER_SECTORS - 8, true);
            }
        });
        scope.spawn(|| {
            for cluster in 0..CLUSTERS {
                turn.wait();
                image.write((cluster + 1) * CLUSTER_SECTORS - 8, &[2; 4096]);
            }
        });
    });
    let is_lost = |cluster: &u64| image.read((cluster + 1) * CLUSTER_SECTORS - 8, 8) != [2; 4096];
    let lost = (0..CLUSTERS).filter(is_lost).count();
    assert_eq!(lost, 0, "of {CLUSTERS} writes");
    image.flush();
    drop(image);
    qemu_img(directory.path(), &["check", "disk.qcow2"]).expect("QEMU finds nothing");
}
