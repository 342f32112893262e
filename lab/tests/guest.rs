//! The Linux guest's image, in an ordinary emulator: it must be right before it is protected.
//!
//! Needs root, apt (the first time) and QEMU; where one is missing this fails and says so.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::{
    BootDisk, DiskCopy, GuestImage, LocalNet, Process, Service, boot_disk, guest_address, guest_image,
};

/// Longest boot; measured: 5-8 s, ...
const BOOT_LIMIT: Duration = Duration::from_secs(40);
/// ... and with a boot loader, which reads by the BIOS, 39 s on a busy machine.
const BOOT_LOADER_LIMIT: Duration = Duration::from_secs(150);

#[test]
fn redis_answers_and_keeps_what_it_acknowledged() {
    lab::ensure_packages().unwrap_or_else(|error| panic!("{error}"));
    let image = guest_image(Service::Redis).unwrap_or_else(|error| panic!("{error}"));
    let dir = lab::scratch_dir().unwrap();
    let disk = dir.path().join("disk");
    image.copy_disk(&disk).unwrap();
    let net = LocalNet::new(1, 1).unwrap();
    net.host(0).netns().ip("link set tap0 up").unwrap();

    let started = Instant::now();
    let guest = boot(&net, &disk, &direct(&image, "always"), BOOT_LIMIT);
    println!("guest ready after {:?}", started.elapsed());
    let mut redis = connect(&net);
    assert_eq!(ask(&mut redis, "SET ball mine"), "+OK");
    assert_eq!(
        ask(&mut redis, "CONFIG GET appendfsync"),
        "*2 $11 appendfsync $6 always"
    );
    // A power cut: what was acknowledged is on the disk.
    drop(guest);

    let _guest = boot(&net, &disk, &direct(&image, "everysec"), BOOT_LIMIT);
    let mut redis = connect(&net);
    assert_eq!(ask(&mut redis, "GET ball"), "$4 mine");
    assert_eq!(
        ask(&mut redis, "CONFIG GET appendfsync"),
        "*2 $11 appendfsync $8 everysec"
    );
}

/// The emulator's own firmware, and all that comes after it, from the disk.
#[test]
fn a_disk_with_a_boot_loader_boots_by_itself() {
    lab::ensure_packages().unwrap_or_else(|error| panic!("{error}"));
    let settings = format!("kemari.ip={}/24 kemari.appendfsync=no", guest_address(0));
    let image = boot_disk(Service::Redis, 1, &settings).unwrap_or_else(|error| panic!("{error}"));
    let dir = lab::scratch_dir().unwrap();
    let disk = dir.path().join("disk");
    fs::copy(&image.disk, &disk).unwrap();
    let net = LocalNet::new(1, 1).unwrap();
    net.host(0).netns().ip("link set tap0 up").unwrap();

    let started = Instant::now();
    let guest = boot(&net, &disk, &[], BOOT_LOADER_LIMIT);
    println!("guest ready after {:?}", started.elapsed());
    assert_eq!(
        ask(&mut connect(&net), "CONFIG GET appendfsync"),
        "*2 $11 appendfsync $2 no"
    );
    drop(guest);
    let files = DiskCopy::take_from(&disk, BootDisk::ROOT_AT).unwrap();
    files.check().unwrap();
    assert!(files.open().unwrap().sh("ls /boot").unwrap().contains("vmlinuz"));
}

/// QEMU's words for a kernel that it loads by itself.
fn direct(image: &GuestImage, appendfsync: &str) -> [String; 6] {
    let address = guest_address(0);
    let settings = format!("kemari.ip={address}/24 kemari.appendfsync={appendfsync}");
    [
        "-kernel".into(),
        image.kernel.vmlinux.display().to_string(),
        "-initrd".into(),
        image.initramfs.display().to_string(),
        "-append".into(),
        format!("console=ttyS0 panic=-1 quiet {settings}"),
    ]
}

fn boot(net: &LocalNet, disk: &Path, words: &[String], limit: Duration) -> Process {
    let console = disk.with_file_name("console");
    // That of an earlier boot would be read before QEMU empties it.
    let _ = fs::remove_file(&console);
    let mut command = net.host(0).netns().command("qemu-system-x86_64");
    command.args("-accel tcg -M pc -cpu max -m 128 -nodefaults -display none -no-reboot".split(' '));
    command.args(words);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.arg("-drive").arg(format!(
        "if=none,id=disk,format=raw,cache=none,file={}",
        disk.display()
    ));
    command.args("-device virtio-blk-pci,drive=disk -device virtio-rng-pci".split(' '));
    command.args("-netdev tap,id=net,ifname=tap0,script=no,downscript=no".split(' '));
    command.args("-device virtio-net-pci,netdev=net,romfile=".split(' '));
    let guest = Process::spawn("guest", command).unwrap();
    let deadline = Instant::now() + limit;
    loop {
        let shown = fs::read(&console)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        if shown.contains("guest ready") {
            assert!(!shown.contains("cannot"), "{shown}");
            return guest;
        }
        assert!(
            Instant::now() < deadline,
            "the guest is not ready after {limit:?}:\n{shown}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn connect(net: &LocalNet) -> BufReader<TcpStream> {
    let address = (guest_address(0), 6379);
    let stream = net
        .outside()
        .run(|| TcpStream::connect(address))
        .unwrap()
        .unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    BufReader::new(stream)
}

/// Sends an inline command and returns the answer, its lines joined by spaces.
fn ask(redis: &mut BufReader<TcpStream>, command: &str) -> String {
    redis
        .get_mut()
        .write_all(format!("{command}\r\n").as_bytes())
        .unwrap();
    let mut line = || {
        let mut line = String::new();
        redis.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let first = line();
    let more = match first.split_at(1) {
        ("*", count) => 2 * count.parse::<usize>().unwrap(),
        ("$", _) => 1,
        _ => 0,
    };
    (0..more).fold(first, |answer, _| format!("{answer} {}", line()))
}
