//! Images that a takeover could not open, or could not use for long.

use std::process::Command;

use super::*;

fn target(path: &Path, is_shared: bool) -> Target {
    Target {
        id: "blk0".to_owned(),
        image: DiskConfig::new(path),
        is_shared,
        record: None,
        seen: Mutex::default(),
    }
}

#[test]
fn what_a_takeover_could_not_open_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let in_use = InUse::default();
    let says = |what: &str| {
        let said = target(&path, false).trouble(&in_use).unwrap_or_default();
        assert!(
            said.contains(what) && said.contains("blk0") && !said.is_empty(),
            "{said}"
        );
    };
    says("No such file");
    std::fs::write(&path, [0; 100]).unwrap();
    says("100 bytes");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    assert_eq!(target(&path, false).trouble(&in_use), None);
    in_use.set(Opened::at([("blk0", &*path)]));
    assert_eq!(target(&path, false).trouble(&in_use), None);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((1 << 20) + 4096).unwrap();
    assert_eq!(target(&path, false).trouble(&in_use), None, "it may grow");
    file.set_len(1 << 20).unwrap();
    std::fs::rename(&path, directory.path().join("aside")).unwrap();
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    says("another file");
    std::fs::rename(directory.path().join("aside"), &path).unwrap();
    file.set_len(1 << 19).unwrap();
    says("has shrunk");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    says("neither");
}

#[test]
fn an_image_that_cannot_grow_any_more_is_told_and_one_that_has_all_its_blocks_is_not() {
    std::thread::scope(|threads| {
        threads.spawn(|| {
            // SAFETY: the call has no arguments in memory.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
            let directory = tempfile::tempdir().unwrap();
            let place = directory.path().to_str().unwrap();
            for words in [
                &["--make-rprivate", "/"][..],
                &["-t", "tmpfs", "-o", "size=2m", "tmpfs", place],
            ] {
                assert!(Command::new("mount").args(words).status().unwrap().success());
            }
            let path = directory.path().join("disk.img");
            let has_room = || {
                let file = File::open(&path).unwrap();
                room(&file, &file.metadata().unwrap())
            };
            std::fs::write(&path, vec![1; 1 << 20]).unwrap();
            assert_eq!(has_room(), Ok(()));
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(16 << 20)
                .unwrap();
            assert!(has_room().unwrap_err().contains("no room to grow"));
            // The directory is removed without it.
            assert!(Command::new("umount").arg(place).status().unwrap().success());
        });
    });
}

#[test]
fn an_image_that_was_replaced_under_a_side_that_follows_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (path, aside) = (directory.path().join("disk.img"), directory.path().join("aside"));
    let make = |byte| std::fs::write(&path, vec![byte; 1 << 20]).unwrap();
    make(1);
    let in_use = InUse::default();
    let shared = target(&path, true);
    let read_only = Target {
        image: DiskConfig {
            read_only: true,
            ..DiskConfig::new(&path)
        },
        ..target(&path, false)
    };
    let said = |target: &Target| target.trouble(&in_use).unwrap_or_default();
    assert_eq!((said(&shared), said(&read_only)), Default::default());
    std::fs::rename(&path, &aside).unwrap();
    make(1);
    for target in [&shared, &read_only] {
        assert!(said(target).contains("is another file"), "{}", said(target));
    }
    std::fs::rename(&aside, &path).unwrap();
    assert_eq!((said(&shared), said(&read_only)), Default::default());
    // Somebody writes it: its user a shared one, nobody one that is only read.
    make(2);
    assert_eq!(said(&shared), "");
    assert!(said(&read_only).contains("was changed"), "{}", said(&read_only));
    // Another standby VM begins with what is there.
    in_use.set(Opened::default());
    assert_eq!(said(&read_only), "");
}

#[test]
fn a_backing_file_that_was_replaced_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let (base, top) = (place("base.img"), place("top.qcow2"));
    std::fs::write(&base, vec![1; 1 << 20]).unwrap();
    let [create, quiet, qcow2, format, raw, on] =
        ["create", "-q", "-fqcow2", "-F", "raw", "-b"].map(Path::new);
    ran("qemu-img", &[create, quiet, qcow2, format, raw, on, &base, &top]);
    let overlay = Target {
        image: DiskConfig {
            format: kemari_vmm::disk::Format::Qcow2,
            read_only: true,
            ..DiskConfig::new(&top)
        },
        ..target(&top, false)
    };
    let said = || overlay.trouble(&InUse::default()).unwrap_or_default();
    assert_eq!(said(), "");
    std::fs::rename(&base, place("aside")).unwrap();
    std::fs::write(&base, vec![2; 1 << 20]).unwrap();
    assert!(said().contains("another backing file"), "{}", said());
    std::fs::rename(place("aside"), &base).unwrap();
    assert_eq!(said(), "");
}

/// Takes a loop device, and what is mounted of it, away again.
struct Undo<'a>(&'a [&'a str], &'a Path);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let _ = Command::new(self.0[0]).args(&self.0[1..]).arg(self.1).status();
    }
}

fn ran(program: &str, arguments: &[&Path]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program}: {done:?}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_block_device_that_this_host_uses_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mounted) = (
        directory.path().join("disk.img"),
        directory.path().join("mounted"),
    );
    std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
    std::fs::create_dir(&mounted).unwrap();
    ran("mkfs.ext2", &["-q".as_ref(), &path]);
    let device = ran("losetup", &["--find".as_ref(), "--show".as_ref(), &path]);
    let device = Path::new(&device);
    let _detach = Undo(&["losetup", "-d"], device);
    let device = target(device, true);
    let trouble = || device.trouble(&InUse::default());
    assert_eq!(trouble(), None);
    ran("mount", &[device.image().path.as_path(), &mounted]);
    let unmount = Undo(&["umount"], &mounted);
    assert!(Image::open(device.image()).is_err(), "nobody can have it");
    let said = trouble().unwrap();
    assert!(said.contains(mounted.to_str().unwrap()), "{said}");
    drop(unmount);
    assert_eq!(trouble(), None);
    assert!(Image::open(device.image()).is_ok());
}

#[test]
fn a_file_system_that_is_frozen_holds_up_who_looks_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let (file, mounted) = (directory.path().join("fs.img"), directory.path().join("mounted"));
    std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
    std::fs::create_dir(&mounted).unwrap();
    ran("mkfs.ext4", &["-q".as_ref(), &file]);
    ran("mount", &["-o".as_ref(), "loop".as_ref(), &file, &mounted]);
    let _unmount = Undo(&["umount"], &mounted);
    let on_it = mounted.join("disk.img");
    std::fs::write(&on_it, vec![0; 1 << 20]).unwrap();
    let elsewhere = directory.path().join("disk.img");
    std::fs::write(&elsewhere, vec![0; 1 << 20]).unwrap();
    let with_record = Target {
        record: Some(on_it.clone()),
        ..target(&elsewhere, false)
    };
    for target in [target(&on_it, false), target(&on_it, true), with_record] {
        assert_eq!(target.trouble(&InUse::default()), None);
        ran("fsfreeze", &["-f".as_ref(), &mounted]);
        let thaw = Undo(&["fsfreeze", "-u"], &mounted);
        let looks = std::thread::spawn(move || target.trouble(&InUse::default()));
        std::thread::sleep(std::time::Duration::from_millis(200));
        let found_nothing = !looks.is_finished();
        drop(thaw);
        assert_eq!(looks.join().unwrap(), None);
        assert!(found_nothing);
    }
}

#[test]
fn a_record_that_cannot_be_written_is_told_and_one_that_is_not_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let with_record = Target {
        record: Some(directory.path().join("disk.img.kemari")),
        ..target(&path, false)
    };
    assert_eq!(with_record.trouble(&InUse::default()), None);
    std::fs::create_dir(with_record.record.as_ref().unwrap()).unwrap();
    let said = with_record.trouble(&InUse::default()).unwrap_or_default();
    assert!(
        said.contains("record") && said.contains("cannot be written"),
        "{said}"
    );
}

#[test]
fn a_record_that_is_lost_under_a_standby_vm_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let [path, record, aside] = ["disk.img", "record", "aside"].map(|name| directory.path().join(name));
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let with_record = Target {
        record: Some(record.clone()),
        ..target(&path, false)
    };
    let in_use = InUse::default();
    let said = || with_record.trouble(&in_use).unwrap_or_default();
    let make = || std::fs::write(&record, "").unwrap();
    let lose = || std::fs::rename(&record, &aside).unwrap();
    make();
    assert_eq!(said(), "");
    lose();
    assert_eq!(said(), "", "nobody has it open");
    in_use.set(Opened::at([("blk0", &*path)]));
    assert_eq!(said(), "", "a new image has none yet");
    make();
    assert_eq!(said(), "");
    std::fs::rename(&record, directory.path().join("first")).unwrap();
    assert!(said().contains("has lost its record"), "{}", said());
    make();
    assert!(
        said().contains("has lost its record"),
        "it is another one: {}",
        said()
    );
    std::fs::rename(directory.path().join("first"), &record).unwrap();
    assert_eq!(said(), "", "it is back");
    lose();
    in_use.set(Opened::at([("blk0", &*path)]));
    assert_eq!(said(), "", "the next standby VM opens what is there");
}

#[test]
fn an_image_that_somebody_else_has_locked_is_told_wherever_the_lock_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let user = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let trouble = |is_shared| target(&path, is_shared).trouble(&InUse::default());
    for (start, is_foreign) in [(50, true), (1_000, true), (1 << 30, true), (150, false)] {
        let set = |kind: libc::c_int| {
            // SAFETY: a flock of zeros is a valid one.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = kind as libc::c_short;
            (lock.l_start, lock.l_len) = (start, 1);
            // SAFETY: the call reads this flock, and nothing else.
            let result = unsafe { libc::fcntl(user.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
            assert_eq!(result, 0);
        };
        set(libc::F_WRLCK);
        let said = trouble(false).unwrap_or_default();
        assert_eq!(said.contains("is in use"), is_foreign, "{start}: {said}");
        assert_eq!(trouble(true), None, "a shared one is the primary's");
        set(libc::F_UNLCK);
    }
    assert_eq!(trouble(false), None);
}
