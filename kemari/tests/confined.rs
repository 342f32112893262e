//! What a confined process can still do, tried out by one: this program starts itself anew for it.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use kemari::config::Config;
use kemari::{limits, sandbox};
use kemari_vmm::confine::BREACH_STATUS;
use kemari_vmm::disk::{Disk, DiskConfig, Format};
use rustix::process::{Resource, getrlimit};
use tempfile::TempDir;

/// Set in the process that is to be confined: the directory of its files.
const CONFINED: &str = "CONFINED_IN";

/// Bits of <linux/capability.h>.
const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_IPC_LOCK: u64 = 1 << 14;

/// An arbiter that is files, and one that has a name.
const FILES: &str = "kind = \"file\"\npath = \"arbiter\"";
const NAMED: &str = "kind = \"etcd\"\nendpoints = [\"http://arbiter.test:2379\"]";

/// A disk that is written to, and one that is read alone.
const RAW: &str = "";
const QCOW2: &str = "format = \"qcow2\"\nread_only = true";

/// A configuration whose files lie in `directory`, and whose link is at `port`.
fn config(directory: &Path, port: u16, arbiter: &str) -> Config {
    config_with_disk(directory, port, arbiter, RAW)
}

fn config_with_disk(directory: &Path, port: u16, arbiter: &str, disk: &str) -> Config {
    let shown = directory.display();
    let host = |name, port| {
        format!(
            "[hosts.{name}]\nlisten = \"127.0.0.1:{port}\"\ncontrol = \"{shown}/run/{name}.sock\"\n\
             state_dir = \"{shown}/state\"\ndisks = {{ blk0 = \"{shown}/images/disk.img\" }}\n"
        )
    };
    let text = format!(
        "vm = \"confined\"\n[machine]\nmemory_mib = 64\nkernel = \"{shown}/boot/kernel\"\n[[disk]]\n\
         id = \"blk0\"\n{disk}\n[protection]\nplaintext = true\n[arbiter]\n{}\n{}{}",
        arbiter.replace("\"arbiter\"", &format!("\"{shown}/arbiter\"")),
        host("a", port),
        host("b", port + 1),
    );
    Config::parse(&text, "a test").expect("a configuration")
}

/// Runs the test of this name in a process of its own, which finds its files in the directory.
fn in_a_process_of_its_own(test: &str, directory: &TempDir) -> Output {
    let program = std::env::current_exe().expect("this program");
    run(Command::new(program), test, directory)
}

fn run(mut command: Command, test: &str, directory: &TempDir) -> Output {
    for name in ["boot", "images", "arbiter", "elsewhere"] {
        fs::create_dir(directory.path().join(name)).expect("a directory");
    }
    for name in ["boot/kernel", "images/disk.img", "elsewhere/secret"] {
        fs::write(directory.path().join(name), name).expect("a file");
    }
    command
        .args(["--exact", test, "--nocapture"])
        .env(CONFINED, directory.path());
    command.env("KEMARI_BREACHES", directory.path().join("elsewhere/breaches"));
    command.output().expect("it is started")
}

/// The directory of this process's files, if it is the one to be confined; it is, then. Says also whether the
/// kernel can do all of it.
fn confined(port: u16) -> Option<(PathBuf, bool)> {
    confined_with(port, FILES)
}

fn confined_with(port: u16, arbiter: &str) -> Option<(PathBuf, bool)> {
    let directory = PathBuf::from(std::env::var_os(CONFINED)?);
    let lacks = sandbox::lacks();
    limits::raise();
    let mut lacking = sandbox::confine(&config(&directory, port, arbiter), "a").expect("it is confined");
    if may_lock_little() {
        lacking.retain(|word| !word.contains("CAP_IPC_LOCK"));
    }
    assert_eq!(lacking, lacks, "nothing is lacking but what this kernel lacks");
    Some((directory, lacks.is_empty()))
}

/// Whether the limit of locked memory stands, where nobody may lift it: in a container.
fn may_lock_little() -> bool {
    getrlimit(Resource::Memlock).current.is_some()
}

/// Asserts that the calling thread has this capability (its bit), and no others but the one that takes the
/// place of a limit.
fn has_no_capability_but(bits: u64) {
    let own = bits | if may_lock_little() { CAP_IPC_LOCK } else { 0 };
    let status = fs::read_to_string("/proc/thread-self/status").expect("what the kernel tells of it");
    for (set, expected) in [
        ("CapInh", 0),
        ("CapPrm", own),
        ("CapEff", own),
        ("CapBnd", 0),
        ("CapAmb", 0),
    ] {
        let line = format!("{set}:\t{expected:016x}\n");
        assert!(status.contains(&line), "it lacks {line:?}: {status}");
    }
}

fn is_denied<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// The test of this name has passed in a process of its own.
fn passes_confined(test: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    has_passed(&in_a_process_of_its_own(test, &directory), &directory);
}

/// A test was run, and has passed: under another name there is none, which is no failure either.
fn has_passed(ended: &Output, directory: &TempDir) {
    let was_run = String::from_utf8_lossy(&ended.stdout).contains("1 passed");
    assert!(ended.status.success() && was_run, "{}", shown(ended, directory));
}

fn shown(output: &Output, directory: &TempDir) -> String {
    let said = [&output.stdout[..], &output.stderr].concat();
    let breaches = fs::read_to_string(directory.path().join("elsewhere/breaches")).unwrap_or_default();
    format!("{}{breaches}{}", output.status, String::from_utf8_lossy(&said))
}

#[test]
fn files_are_those_of_the_configuration_also_when_they_are_replaced() {
    let Some((directory, is_whole)) = confined(7710) else {
        return passes_confined("files_are_those_of_the_configuration_also_when_they_are_replaced");
    };
    if !is_whole {
        return;
    }
    let path = |name: &str| directory.join(name);
    fs::read(path("boot/kernel")).expect("the kernel");
    assert!(is_denied(fs::write(path("boot/kernel"), "another")));
    fs::write(path("images/disk.img"), "written").expect("the image");
    fs::write(path("images/new"), "a larger one").expect("a file beside it");
    fs::rename(path("images/new"), path("images/disk.img")).expect("the image is replaced");
    assert_eq!(
        fs::read(path("images/disk.img")).expect("the new one"),
        b"a larger one"
    );
    fs::write(path("arbiter/record"), "1").expect("the arbiter's directory");
    fs::hard_link(path("arbiter/record"), path("arbiter/second")).expect("records are linked");
    fs::read_to_string("/proc/self/status").expect("what the kernel tells of it");
    for name in ["elsewhere/secret", "elsewhere"] {
        assert!(is_denied(File::open(path(name))), "{name}");
    }
    assert!(is_denied(File::open("/etc/passwd")) && is_denied(fs::read_dir("/")));
    assert!(is_denied(fs::write("/proc/sys/kernel/hostname", "x")));
    let mode = fs::metadata(path("arbiter/record"))
        .expect("it was made")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn ports_are_those_of_the_configuration() {
    let Some((_, is_whole)) = confined(7720) else {
        return passes_confined("ports_are_those_of_the_configuration");
    };
    if !is_whole {
        return;
    }
    let _own = TcpListener::bind("127.0.0.1:7720").expect("its own port");
    assert!(is_denied(TcpListener::bind("127.0.0.1:7722")));
    // Nobody is there, which is another reason.
    let refused = TcpStream::connect("127.0.0.1:7721").expect_err("nobody listens");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(is_denied(TcpStream::connect("127.0.0.1:22")));
}

#[test]
fn who_makes_a_call_that_is_on_no_list_ends_and_is_told_of() {
    let Some((directory, _)) = confined(7730) else {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).expect("its own");
        let ended = in_a_process_of_its_own(
            "who_makes_a_call_that_is_on_no_list_ends_and_is_told_of",
            &directory,
        );
        assert_eq!(
            ended.status.code(),
            Some(BREACH_STATUS),
            "{}",
            shown(&ended, &directory)
        );
        let told = fs::read_to_string(directory.path().join("elsewhere/breaches")).expect("it is told");
        assert!(
            told.starts_with("system call ") && told.contains(" by the thread "),
            "{told}"
        );
        return;
    };
    let parent = rustix::process::getppid();
    unreachable!("{parent:?} was told in {}", directory.display());
}

/// A name service that knows one address for every name.
fn answer_for_ever(service: &UdpSocket) {
    /// RFC 1035: bytes of the head, the kind of question that asks for an address, and the answer, whose name
    /// is the question's.
    const HEAD: usize = 12;
    const ADDRESS: [u8; 2] = [0, 1];
    const ANSWER: [u8; 16] = [0xc0, HEAD as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1];
    let mut packet = [0; 512];
    while let Ok((bytes, client)) = service.recv_from(&mut packet) {
        let name = packet[HEAD..bytes].iter().position(|byte| *byte == 0);
        let kind = HEAD + name.expect("a name") + 1;
        let mut answer = packet[..kind + 4].to_vec();
        // An answer, without an error; a question each; what follows.
        answer[2..HEAD].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        if packet[kind..kind + 2] == ADDRESS {
            answer[7] = 1;
            answer.extend(ANSWER);
        }
        service.send_to(&answer, client).expect("a client");
    }
}

#[test]
fn names_are_looked_up_as_before() {
    let is_apart = std::env::var_os(CONFINED).is_some();
    if is_apart {
        let service = UdpSocket::bind("127.0.0.1:53").expect("the name service's port");
        thread::spawn(move || answer_for_ever(&service));
    }
    if confined_with(7740, NAMED).is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        // With a network and names of its own.
        let script = "ip link set lo up && echo nameserver 127.0.0.1 >\"$CONFINED_IN/names\" && \
                      mount --bind \"$CONFINED_IN/names\" /etc/resolv.conf && exec \"$@\"";
        let mut apart = Command::new("unshare");
        apart.args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ]);
        apart.arg(std::env::current_exe().expect("this program"));
        let ended = run(apart, "names_are_looked_up_as_before", &directory);
        return has_passed(&ended, &directory);
    }
    let found = ("arbiter.test", 2379).to_socket_addrs().expect("an answer");
    let wanted: SocketAddr = "192.0.2.1:2379".parse().expect("an address");
    assert_eq!(found.collect::<Vec<_>>(), [wanted]);
}

#[test]
fn no_capability_is_left_and_none_can_be_had_again() {
    let directory = std::env::var_os(CONFINED).map(PathBuf::from);
    let of_another = directory.map(|directory| directory.join("images/of-another"));
    if let Some(path) = &of_another {
        fs::write(path, "what is not its user's").expect("a file");
        give_away(path);
    }
    let (Some(_), Some(of_another)) = (confined(7750), of_another) else {
        return passes_confined("no_capability_is_left_and_none_can_be_had_again");
    };
    let tried = move || {
        has_no_capability_but(0);
        assert!(is_denied(File::open(&of_another)));
    };
    tried();
    thread::spawn(tried).join().expect("a thread has no more");
}

/// The file is somebody else's, and nobody else may use it.
fn give_away(path: &Path) {
    let nobody = Some(65_534);
    std::os::unix::fs::chown(path, nobody, nobody).expect("this is root");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("this is root");
}

#[test]
fn images_of_others_are_reached_with_the_one_capability_that_takes() {
    if let Some(directory) = std::env::var_os(CONFINED).map(PathBuf::from) {
        give_away(&directory.join("images/disk.img"));
        limits::raise();
        let lacking = sandbox::confine(&config(&directory, 7760, FILES), "a").expect("it is confined");
        let said = lacking
            .iter()
            .any(|word| word.contains("CAP_DAC_OVERRIDE") && word.contains("disk.img"));
        assert!(said, "{lacking:?}");
        fs::write(directory.join("images/disk.img"), "written").expect("the image");
        has_no_capability_but(CAP_DAC_OVERRIDE);
        return;
    }
    passes_confined("images_of_others_are_reached_with_the_one_capability_that_takes");
}

#[test]
fn a_backing_file_of_another_is_reached_with_that_capability_too() {
    let Some(directory) = std::env::var_os(CONFINED).map(PathBuf::from) else {
        return passes_confined("a_backing_file_of_another_is_reached_with_that_capability_too");
    };
    let path = |name: &str| directory.join(name);
    let image = path("images/disk.img");
    File::create(path("images/base.img"))
        .and_then(|base| base.set_len(1 << 20))
        .expect("a file");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.img"])
        .arg(&image)
        .status();
    assert!(made.expect("qemu-img is there").success());
    give_away(&path("images/base.img"));
    limits::raise();
    let config = config_with_disk(&directory, 7770, FILES, QCOW2);
    let lacking = sandbox::confine(&config, "a").expect("it is confined");
    let said = lacking
        .iter()
        .any(|word| word.contains("CAP_DAC_OVERRIDE") && word.contains("base.img"));
    assert!(said, "{lacking:?}");
    let config = DiskConfig {
        format: Format::Qcow2,
        read_only: true,
        ..DiskConfig::new(&image)
    };
    Disk::examine(&config).expect("all of its files");
    has_no_capability_but(CAP_DAC_OVERRIDE);
}
