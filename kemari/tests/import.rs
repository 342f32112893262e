//! `kemari import`: images of all formats, made and compared by QEMU's tools; images that cannot be used, and
//! imports that do not come to their end.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use kemari_vmm::disk::hold;
use tempfile::TempDir;

/// Size of a disk.
const BYTES: usize = 16 << 20;

/// A directory with a disk's bytes in `data.raw`, here and there something.
struct World {
    directory: TempDir,
    data: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut data = vec![0; BYTES];
        for (start, length) in [
            (0, 512),
            (1 << 20, 3 << 20),
            (9 << 20, 70_001),
            (BYTES - 512, 512),
        ] {
            for (index, byte) in data[start..start + length].iter_mut().enumerate() {
                *byte = (index as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] | 1;
            }
        }
        let world = Self { directory, data };
        let file = fs::File::create(world.path("data.raw")).expect("a file");
        file.set_len(BYTES as u64).expect("its size");
        for (number, part) in world.data.chunks(4096).enumerate() {
            if part.iter().any(|byte| *byte != 0) {
                file.write_all_at(part, number as u64 * 4096)
                    .expect("it is written");
            }
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn qemu_img(&self, args: &[&str]) {
        let mut command = Command::new("qemu-img");
        let output = command.args(args).current_dir(self.directory.path()).output();
        let output = output.expect("qemu-img starts (Debian's package qemu-utils has it)");
        assert!(output.status.success(), "{args:?}: {}", words(&output));
    }

    fn command(&self, image: &str, format: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kemari"));
        command.current_dir(self.directory.path());
        command
            .args(["import", image, "disk.img", "--format", format])
            .args(more);
        command
    }

    fn import(&self, image: &str, format: &str, more: &[&str]) -> Output {
        self.command(image, format, more).output().expect("it starts")
    }

    /// It is imported, as it is, with its holes; the result goes.
    fn is_imported(&self, image: &str, format: &str) {
        let output = self.import(image, format, &[]);
        assert!(output.status.success(), "{format}: {}", words(&output));
        let made = self.path("disk.img");
        assert!(fs::read(&made).expect("it is made") == self.data, "{format}");
        let stored_bytes = fs::metadata(&made).expect("it is made").blocks() * 512;
        assert!(
            stored_bytes < BYTES as u64 / 2,
            "{format}: {stored_bytes} bytes are stored"
        );
        fs::remove_file(made).expect("it was there");
    }

    /// It is not imported, for a reason with these words, and nothing is left behind.
    fn is_refused(&self, image: &str, format: &str, says: &str) {
        let output = self.import(image, format, &[]);
        let said = words(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(says) && !said.contains("panicked"),
            "{says}: {said}"
        );
        let names = fs::read_dir(self.directory.path())
            .expect("it is there")
            .flatten();
        let left = names.filter(|entry| entry.file_name().to_string_lossy().starts_with("disk.img"));
        assert_eq!(left.count(), 0, "{said}");
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn images_of_every_format_are_imported() {
    let world = World::new();
    world.is_imported("data.raw", "raw");
    for (format, options) in [
        ("qcow2", "compat=0.10"),
        ("qcow2", "cluster_size=4k"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vdi", ""),
        ("vhdx", ""),
        ("vpc", "force_size=on"),
        ("qed", ""),
        ("parallels", ""),
    ] {
        eprintln!("{format} {options}");
        let convert = ["convert", "-f", "raw", "-O", format];
        let option: &[&str] = if options.is_empty() { &[] } else { &["-o", options] };
        world.qemu_img(&[&convert[..], option, &["data.raw", "image"]].concat());
        world.is_imported("image", format);
    }
    world.qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "data.raw", "image"]);
    world.is_imported("image", "qcow2");
}

#[test]
fn a_chain_is_imported_as_one_image() {
    let mut world = World::new();
    let create = ["create", "-q", "-f", "qcow2"];
    world.qemu_img(&[&create[..], &["-b", "data.raw", "-F", "raw", "middle.qcow2"]].concat());
    world.qemu_img(&[&create[..], &["-b", "middle.qcow2", "-F", "qcow2", "image"]].concat());
    for (image, change) in [
        ("middle.qcow2", "write -P 0x21 1M 70k"),
        ("image", "write -z 2M 512k"),
    ] {
        let mut write = Command::new("qemu-io");
        write.args(["-f", "qcow2", "-c", change, image]);
        let output = write.current_dir(world.directory.path()).output();
        assert!(output.expect("qemu-io starts").status.success());
    }
    world.data[1 << 20..(1 << 20) + (70 << 10)].fill(0x21);
    world.data[2 << 20..(2 << 20) + (512 << 10)].fill(0);
    world.is_imported("image", "qcow2");
    world.qemu_img(&["rebase", "-u", "-b", "gone.qcow2", "-F", "qcow2", "image"]);
    world.is_refused("image", "qcow2", "gone.qcow2 cannot be found");
}

/// A disk is whole blocks, and what was in the image stays.
#[test]
fn a_size_is_rounded_up() {
    let world = World::new();
    let odd = &world.data[..(1 << 20) + 700];
    fs::write(world.path("odd"), odd).expect("a file");
    for (block, bytes) in [("512", (1 << 20) + 1024), ("4096", (1 << 20) + 4096)] {
        let output = world.import("odd", "raw", &["--block-size", block, "--force"]);
        assert!(output.status.success(), "{}", words(&output));
        let made = fs::read(world.path("disk.img")).expect("it is made");
        assert!(
            made.len() == bytes && made.starts_with(odd) && made[odd.len()..].iter().all(|byte| *byte == 0)
        );
    }
}

#[test]
fn a_raw_image_that_looks_like_another_format_is_told_of() {
    let world = World::new();
    world.qemu_img(&["create", "-q", "-f", "qcow2", "image", "16M"]);
    let output = world.import("image", "raw", &[]);
    assert!(output.status.success(), "{}", words(&output));
    let said = words(&output);
    assert!(
        said.contains("image begins like a qcow2 image") && said.contains("--format qcow2"),
        "{said}"
    );
}

#[test]
fn what_is_there_is_replaced_only_by_force() {
    let world = World::new();
    fs::write(world.path("disk.img"), "somebody's").expect("a file");
    fs::write(world.path("disk.img.kemari"), "its record").expect("a file");
    let output = world.import("data.raw", "raw", &[]);
    assert!(
        !output.status.success() && words(&output).contains("--force"),
        "{}",
        words(&output)
    );
    assert_eq!(
        fs::read(world.path("disk.img")).expect("it is there"),
        b"somebody's"
    );
    let output = world.import("data.raw", "raw", &["--force"]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(fs::read(world.path("disk.img")).expect("it is made") == world.data);
    assert!(
        !world.path("disk.img.kemari").exists(),
        "the record of another image"
    );
}

#[test]
fn images_in_use_are_not_imported() {
    let world = World::new();
    world.qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "data.raw", "image.vmdk"]);
    let create = ["create", "-q", "-f", "qcow2"];
    world.qemu_img(&[&create[..], &["-b", "data.raw", "-F", "raw", "image.qcow2"]].concat());
    for (image, format, used) in [
        ("data.raw", "raw", "data.raw"),
        ("image.qcow2", "qcow2", "image.qcow2"),
        ("image.qcow2", "qcow2", "data.raw"),
        ("image.vmdk", "vmdk", "image.vmdk"),
    ] {
        let user = hold(&world.path(used), true).expect("nobody has it");
        world.is_refused(image, format, &format!("{used} is in use by"));
        drop(user);
        let reader = hold(&world.path(used), false).expect("nobody has it");
        let output = world.import(image, format, &["--force"]);
        assert!(output.status.success(), "{}", words(&output));
        drop(reader);
        fs::remove_file(world.path("disk.img")).expect("it is made");
    }
}

#[test]
fn bad_images_are_refused() {
    let world = World::new();
    fs::write(world.path("rubbish"), [0x5a; 70_000]).expect("a file");
    for format in ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"] {
        world.is_refused("rubbish", format, "rubbish cannot be");
        world.is_refused("nothing", format, "nothing");
        world.is_refused(".", format, "neither a file nor a block device");
    }
    world.is_refused("nothing", "raw", "nothing");
    world.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "compression_type=zstd",
        "image",
        "1M",
    ]);
    world.is_refused("image", "qcow2", "qemu-img convert");
    // A format that nobody has said, and the name of a protocol in place of a file.
    let output = world.import("data.raw", "probe", &[]);
    assert_eq!(output.status.code(), Some(2));
    world.is_refused("nbd://localhost/x", "vmdk", "nbd://localhost/x");
}

/// A description of a disk may name any file of the host.
#[test]
fn data_of_others_are_not_imported() {
    let world = World::new();
    let flat = [
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=monolithicFlat",
    ];
    world.qemu_img(&[&flat[..], &["data.raw", "image.vmdk"]].concat());
    let elsewhere = tempfile::tempdir().expect("a directory");
    let secret = elsewhere.path().join("secret");
    fs::copy(world.path("image-flat.vmdk"), &secret).expect("it is there");
    let description = fs::read_to_string(world.path("image.vmdk")).expect("a description");
    let stolen = description.replace("image-flat.vmdk", &secret.display().to_string());
    fs::write(world.path("image.vmdk"), stolen).expect("a file");
    world.is_refused("image.vmdk", "vmdk", "outside its directory");
    // One with a base, whose format would have to be guessed.
    world.qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "data.raw", "base.vmdk"]);
    world.qemu_img(&[
        "create",
        "-q",
        "-f",
        "vmdk",
        "-b",
        "base.vmdk",
        "-F",
        "vmdk",
        "over.vmdk",
    ]);
    world.is_refused("over.vmdk", "vmdk", "differs from base.vmdk");
}

#[test]
fn without_qemu_img_its_package_is_named() {
    let world = World::new();
    let mut command = world.command("data.raw", "vdi", &[]);
    let output = command.env("PATH", "/nonexistent").output().expect("it starts");
    assert!(
        words(&output).contains("apt-get install qemu-utils"),
        "{}",
        words(&output)
    );
}

/// Whoever is killed in the middle leaves nothing that looks like an image; the next import clears it away.
#[test]
fn an_import_that_is_cut_leaves_no_image() {
    let mut world = World::new();
    world.data = (0..128u64 << 17)
        .flat_map(|number| (number | 1 << 60).to_le_bytes())
        .collect();
    fs::write(world.path("large"), &world.data).expect("a file");
    let mut importing = world.command("large", "raw", &[]).spawn().expect("it starts");
    let part = world.path("disk.img.importing");
    while !fs::metadata(&part).is_ok_and(|part| part.blocks() > 0) {
        assert!(importing.try_wait().expect("a child").is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    importing.kill().expect("a child");
    importing.wait().expect("a child");
    assert!(part.exists() && !world.path("disk.img").exists());
    let output = world.import("large", "raw", &[]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(!part.exists() && fs::read(world.path("disk.img")).expect("it is made") == world.data);
}

/// A small file system.
struct Small(PathBuf);

impl Small {
    fn mounted(at: PathBuf, options: &str) -> Self {
        fs::create_dir(&at).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "small"]).arg(&at);
        assert!(mount.status().expect("mount starts").success());
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_without_room_is_noticed_first() {
    let world = World::new();
    let small = Small::mounted(world.path("small"), "size=2M");
    let import = |image: &Path, format: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kemari"));
        command.arg("import").arg(image).arg(small.0.join("disk.img"));
        command.args(["--format", format]).output().expect("it starts")
    };
    world.qemu_img(&["convert", "-f", "raw", "-O", "vdi", "data.raw", "image.vdi"]);
    for (name, format) in [("data.raw", "raw"), ("image.vdi", "vdi")] {
        let output = import(&world.path(name), format);
        let said = words(&output);
        assert!(!output.status.success() && said.contains("room for"), "{said}");
    }
    // What is large and empty fits.
    let empty = fs::File::create(world.path("empty")).expect("a file");
    empty.set_len(1 << 40).expect("its size");
    let output = import(&world.path("empty"), "raw");
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(fs::read_dir(&small.0).expect("it is there").count(), 1);
}
