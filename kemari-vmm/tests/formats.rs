//! Images of all kinds: qcow2, made by QEMU's own tools and read, and block devices. No KVM is needed.

use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use kemari_vmm::disk::{Cache, Disk, DiskConfig, DiskError, Format, Operation};
use tempfile::TempDir;

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
        read_only: true,
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

/// Something here and there, in clusters of any size, and nothing between.
fn scattered(number: u8) -> Vec<u8> {
    let mut data = vec![0; SECTORS as usize * SECTOR_BYTES];
    data[1 << 20..3 << 20].fill(7);
    data[5 << 20..(5 << 20) + 99].fill(number + 1);
    let last = data.len() - 1;
    data[last] = 9;
    data
}

fn raw_of(directory: &Path, image: &str) -> Vec<u8> {
    qemu_img(directory, &["convert", "-O", "raw", image, "out.raw"]).expect("it converts");
    fs::read(directory.join("out.raw")).expect("it was written")
}

/// It is read as QEMU reads it, past the page cache as well, and nothing is written.
fn is_read(path: &Path, expected: &[u8]) {
    let before = fs::read(path).expect("the image");
    for cache in [Cache::Writeback, Cache::Direct] {
        let image = Image::open(path, cache);
        assert_eq!(image.0.bytes(), expected.len() as u64);
        assert!(
            image.read(0, expected.len() / SECTOR_BYTES) == expected,
            "{cache:?}"
        );
        assert_eq!(image.read(2049, 3), expected[2049 * 512..2052 * 512]);
    }
    Disk::examine(&config(path, Cache::Writeback)).expect("it can be opened");
    assert!(fs::read(path).expect("the image") == before, "it was written to");
}

/// Opening is refused with a reason that says so, by a look alone as well, and nothing is written.
fn refused(path: &Path, says: &str) {
    refused_at_opening(path, says);
    let error = Disk::examine(&config(path, Cache::Writeback)).expect_err("it cannot be opened");
    assert!(error.to_string().contains(says), "{error}");
}

fn refused_at_opening(path: &Path, says: &str) {
    let before = fs::read(path).expect("the image");
    let opened = Disk::open(&config(path, Cache::Writeback));
    let error = opened.err().expect("it cannot be used");
    assert!(matches!(error, DiskError::Format { .. }), "{error}");
    assert!(error.to_string().contains(says), "{error}");
    assert!(fs::read(path).expect("the image") == before, "it was written to");
}

/// Whatever writes to one in the right order, the library does not: a power cut would damage it.
#[test]
fn nobody_writes_to_a_qcow2_image() {
    let (_directory, path) = made(&["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
    let written = DiskConfig {
        read_only: false,
        ..config(&path, Cache::Writeback)
    };
    for refused in [Disk::open(&written).err(), Disk::examine(&written).err()] {
        let refused = refused.expect("it is only read").to_string();
        let help = format!(
            "`kemari import {} --format qcow2 {}`",
            path.display(),
            path.with_extension("img").display()
        );
        assert!(
            refused.contains(&help) && refused.contains("read_only = true"),
            "{refused}"
        );
    }
    // One that is called as raw ones are is not to be its own copy.
    let other = path.with_extension("img");
    fs::copy(&path, &other).expect("a file");
    let written = DiskConfig {
        path: other,
        ..written
    };
    let refused = Disk::open(&written).err().expect("it is only read").to_string();
    assert!(
        refused.contains("disk.img --format qcow2") && refused.contains("disk.raw`"),
        "{refused}"
    );
    let image = Image::open(&path, Cache::Writeback);
    let (offset, bytes, unmap) = (0, 4096, true);
    let data = vec![1; bytes as usize];
    for change in [
        Operation::Write { offset, data },
        Operation::Zero { offset, bytes, unmap },
    ] {
        image.0.carry_out(&change).expect_err("it is only read");
    }
    image.0.enlarge(16 << 20).expect_err("it is only read");
    image.0.flush().expect("there is nothing to flush");
}

/// Each image shows its own data, those of the ones below where it has none, and zeros where those end.
#[test]
fn a_chain_is_read_down_to_its_last_file() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("base.raw"), &scattered(3)[..6 << 20]).expect("a file");
    let make = |args: &[&str]| qemu_img(directory.path(), args).expect("the image is made");
    let create = ["create", "-q", "-f", "qcow2"];
    make(
        &[
            &create[..],
            &["-b", "base.raw", "-F", "raw", "middle.qcow2", "7M"],
        ]
        .concat(),
    );
    make(
        &[
            &create[..],
            &["-b", "middle.qcow2", "-F", "qcow2", "disk.qcow2", "8M"],
        ]
        .concat(),
    );
    let write = |image: &str, change: &str| {
        let status = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", change, image])
            .current_dir(directory.path())
            .output()
            .expect("qemu-io starts (Debian's package qemu-utils has it)");
        assert!(status.status.success());
    };
    write("middle.qcow2", "write -P 0x21 1M 70k");
    write("disk.qcow2", "write -z 2M 512k");
    write("disk.qcow2", "write -P 0x22 7M 4k");
    let path = directory.path().join("disk.qcow2");
    is_read(&path, &raw_of(directory.path(), "disk.qcow2"));
    fs::remove_file(directory.path().join("base.raw")).expect("it was there");
    refused(&path, "base.raw");
}

/// What is wrong with a base is wrong with the chain, and said of the base.
#[test]
fn a_base_is_looked_at_like_the_image() {
    let kinds: [(usize, &[u8], &str); 4] = [
        (32, &2u32.to_be_bytes(), "is encrypted"),
        (72, &4u64.to_be_bytes(), "in another file"),
        (72, &8u64.to_be_bytes(), "other than zlib"),
        (72, &(1u64 << 50).to_be_bytes(), "not known"),
    ];
    for (at, bytes, says) in kinds {
        let (directory, base) = made(&["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
        let mut image = fs::read(&base).expect("the image");
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(directory.path().join("base.qcow2"), image).expect("a file");
        fs::remove_file(base).expect("it was there");
        let over = ["-u", "-b", "base.qcow2", "-F", "qcow2", "disk.qcow2", "8M"];
        let make = [&["create", "-q", "-f", "qcow2"], &over[..]].concat();
        qemu_img(directory.path(), &make).expect("the image is made");
        let path = directory.path().join("disk.qcow2");
        refused(&path, says);
        refused(&path, "base.qcow2: ");
    }
    // One whose own base is of a format that nobody has said.
    let directory = tempfile::tempdir().expect("a directory");
    let make = |args: &[&str]| qemu_img(directory.path(), args).expect("the image is made");
    make(&["create", "-q", "-f", "raw", "base.raw", "8M"]);
    let create = ["create", "-q", "-f", "qcow2", "-u"];
    make(
        &[
            &create[..],
            &["-b", "base.raw", "-F", "raw", "middle.qcow2", "8M"],
        ]
        .concat(),
    );
    make(
        &[
            &create[..],
            &["-b", "middle.qcow2", "-F", "qcow2", "disk.qcow2", "8M"],
        ]
        .concat(),
    );
    let middle = directory.path().join("middle.qcow2");
    let mut bytes = fs::read(&middle).expect("the image");
    let extension = bytes
        .windows(4)
        .position(|four| four == 0xe279_2acau32.to_be_bytes());
    bytes[extension.expect("it says a format")] = 0;
    fs::write(&middle, bytes).expect("the image");
    refused(
        &directory.path().join("disk.qcow2"),
        "which format its backing file has",
    );
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
    refused(&path, "its own backing file");
}

#[test]
fn damaged_and_wrong_images_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("data.raw"), scattered(1)).expect("a file");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "data.raw", "disk.qcow2"];
    qemu_img(directory.path(), &convert).expect("the image is made");
    let path = directory.path().join("disk.qcow2");
    let sound = fs::read(&path).expect("the image");
    let word = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().expect("eight bytes")) as usize;
    let l1 = word(40);
    let l2 = word(l1) & 0x00ff_ffff_ffff_fe00;
    let damage = |at: usize, bytes: &[u8]| {
        let mut image = sound.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, image).expect("the image");
        eprintln!("{} bytes at {at} are {bytes:x?}", bytes.len());
        refused_at_opening(&path, "");
    };
    damage(0, b"nope");
    damage(4, &9u32.to_be_bytes());
    damage(20, &63u32.to_be_bytes());
    damage(40, &12345u64.to_be_bytes());
    damage(l1, &(word(l1) as u64 | 0x200).to_be_bytes());
    damage(l2, &0x8000_0000_0000_1200u64.to_be_bytes());
    // A part of the disk that lies behind the end of the file.
    damage(l2, &(1u64 << 63 | 1 << 40).to_be_bytes());
    // Marked as damaged by somebody else (the incompatible feature bit 1).
    damage(72, &2u64.to_be_bytes());
    damage(72, &(1u64 << 40).to_be_bytes());
    fs::write(&path, &sound[..1000]).expect("the image");
    refused(&path, "");
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
    // It greets when it has opened the image.
    std::os::unix::net::UnixStream::connect(&socket)
        .and_then(|mut client| std::io::Read::read_exact(&mut client, &mut [0; 18]))
        .expect("it greets");
    for config in [&raw, &reader] {
        let refusal = Disk::open(config).err().expect("QEMU writes it").to_string();
        let user = format!("qemu-nbd (process {})", nbd.id());
        assert!(refusal.contains(&user), "{refusal}");
    }
    nbd.kill().expect("it is a child");
    nbd.wait().expect("it is a child");
    Disk::open(&raw).expect("the locks went with their owner");
}

/// What QEMU makes is read: compressed, with snapshots, with refcounts and clusters of every size.
#[test]
fn sound_images_of_every_kind_are_read() {
    let kinds = [
        "compat=0.10",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=2M,refcount_bits=8",
        "preallocation=metadata",
        "lazy_refcounts=on",
    ];
    for (number, options) in kinds.into_iter().enumerate() {
        eprintln!("{options}");
        let directory = tempfile::tempdir().expect("a directory");
        let make = |args: &[&str]| qemu_img(directory.path(), args).expect("the image is made");
        let data = scattered(number as u8);
        fs::write(directory.path().join("data.raw"), &data).expect("a file");
        let args = [
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            options,
            "data.raw",
            "disk.qcow2",
        ];
        make(&[&["convert"], &args[..]].concat());
        let path = directory.path().join("disk.qcow2");
        if !options.contains("refcount_bits=1") {
            make(&["snapshot", "-c", "before", "disk.qcow2"]);
        }
        is_read(&path, &data);
        if !options.contains("preallocation") {
            make(&[&["convert", "-c"], &args[..]].concat());
            is_read(&path, &data);
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
fn what_is_not_understood_is_refused_by_name() {
    let made =
        |options: &[&str]| made(&[&["create", "-q", "-f", "qcow2"], options, &["disk.qcow2", "8M"]].concat());
    let refused_for = |path: &Path, reason: &str| {
        refused(path, reason);
        refused(path, "qemu-img convert");
    };
    for (option, reason) in [
        ("data_file=data.raw", "in another file"),
        ("compression_type=zstd", "other than zlib"),
        ("extended_l2=on", "extended L2"),
    ] {
        let (_directory, path) = made(&["-o", option]);
        refused_for(&path, reason);
    }
    // The header's word for LUKS alone: before QEMU makes keys it measures processor time, and where that is
    // counted coarsely it gives up.
    let (_directory, path) = made(&[]);
    let image = fs::OpenOptions::new().write(true).open(&path).expect("it opens");
    image
        .write_all_at(&2u32.to_be_bytes(), 32)
        .expect("crypt_method is written");
    refused_for(&path, "encrypted");
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
