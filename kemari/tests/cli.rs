//! The real program with bad input: a sentence that says what to do, and exit status 1 (2 for wrong usage).

mod common;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{TestEtcd, closed_endpoint, free_port};
use kemari::arbiter::MARKER;
use xtask::tools::build_bare_guest;

/// A directory with all that a good configuration needs.
struct World {
    directory: tempfile::TempDir,
    config: String,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::write(path.join("vmlinuz"), "kernel").unwrap();
        std::fs::write(path.join("disk.img"), vec![0; 1 << 20]).unwrap();
        std::fs::create_dir(path.join("arbiter")).unwrap();
        std::fs::write(path.join("arbiter").join(MARKER), "").unwrap();
        let config = format!(
            r#"vm = "demo"
[machine]
memory_mib = 64
kernel = "vmlinuz"
[[disk]]
id = "blk0"
path = "disk.img"
[protection]
staging_mib_max = 128
plaintext = true
allow_cached_shared_disk = true
[arbiter]
kind = "file"
path = "arbiter"
[hosts.a]
listen = "127.0.0.1:{}"
control = "a.sock"
fence = ["true"]
[hosts.b]
listen = "127.0.0.1:{}"
control = "b.sock"
fence = ["true"]
"#,
            free_port(),
            free_port()
        );
        Self { directory, config }
    }

    /// With a kernel that boots: a check finds no error.
    fn bootable() -> Self {
        let world = Self::new();
        std::fs::copy(build_bare_guest().unwrap(), world.path("vmlinuz")).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `kemari WORDS vm.toml --host a` with the configuration as it is now.
    fn kemari(&self, words: &[&str]) -> Output {
        let config = self.path("vm.toml");
        std::fs::write(&config, &self.config).unwrap();
        kemari(&[words, &[config.to_str().unwrap(), "--host", "a"]].concat())
    }

    fn with(mut self, from: &str, to: &str) -> Self {
        assert!(self.config.contains(from), "no `{from}`");
        self.config = self.config.replace(from, to);
        self
    }

    /// The check of the world as it is now must fail and say all of `sentences`.
    fn check_fails(&self, sentences: &[&str]) {
        let output = self.kemari(&["check"]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for sentence in sentences {
            assert!(text.contains(sentence), "no `{sentence}` in\n{text}");
        }
    }
}

fn kemari(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kemari"))
        .args(words)
        .env_remove("KEMARI_LOG")
        .env("COLUMNS", "80")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

/// The line of a finding about the subject, for a check whose other findings depend on the machine.
fn finding<'a>(text: &'a str, about: &str) -> &'a str {
    text.lines()
        .find(|line| line.contains(about))
        .unwrap_or_else(|| panic!("nothing about `{about}` in\n{text}"))
}

#[test]
fn a_good_world_has_no_errors() {
    let world = World::new();
    let text = said(&world.kemari(&["check"]));
    for about in [
        "vmlinuz: 1 KiB",
        "disk `blk0`",
        "arbiter: it answers",
        "memory:",
        "fence command",
        "control socket",
        "is free",
    ] {
        assert!(finding(&text, about).starts_with("ok"), "{text}");
    }
    assert!(finding(&text, "peer `b`").starts_with("warning"), "{text}");
    let json = world.kemari(&["check", "--json"]).stdout;
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&json).unwrap();
    assert!(findings.iter().any(|finding| finding["level"] == "ok"));
    assert!(!world.path("a.sock").exists(), "a check changes nothing");
}

#[test]
fn a_mistyped_key_is_named_with_the_nearest() {
    for words in ["check", "run", "secondary", "status"] {
        let world = World::new().with("memory_mib", "memmory_mib");
        let output = world.kemari(&[words]);
        assert_eq!(output.status.code(), Some(1), "{words}");
        let text = said(&output);
        assert!(
            text.contains("line 3: unknown key `memmory_mib` in [machine]; did you mean `memory_mib`?"),
            "{words}: {text}"
        );
    }
}

#[test]
fn a_missing_configuration_or_host() {
    let output = kemari(&["run", "/nowhere/vm.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        said(&output),
        "kemari: cannot read the configuration /nowhere/vm.toml: No such file or directory (os error 2)\n"
    );
    let world = World::new().with("[hosts.a]", "[hosts.x]");
    let output = world.kemari(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("no host `a` in the configuration; it knows `b`, `x`"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_missing_disk() {
    let world = World::new();
    std::fs::remove_file(world.path("disk.img")).unwrap();
    world.check_fails(&["disk `blk0`", "does not exist", "-> mount its storage"]);
}

#[test]
fn a_disk_in_use() {
    let world = World::new();
    let user = std::fs::File::open(world.path("disk.img")).unwrap();
    rustix::fs::flock(&user, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    world.check_fails(&[
        "is in use: another process has locked it",
        "-> end the other user",
    ]);
}

#[test]
fn a_missing_kernel() {
    let world = World::new();
    std::fs::remove_file(world.path("vmlinuz")).unwrap();
    world.check_fails(&["the kernel", "cannot be opened", "-> correct its path"]);
}

#[test]
fn a_missing_tap_and_a_device_that_is_none() {
    let net =
        |tap| format!("[[net]]\nid = \"net0\"\nmac = \"52:54:00:00:00:01\"\ntap = \"{tap}\"\n[protection]");
    World::new()
        .with("[protection]", &net("no-such-tap"))
        .check_fails(&[
            "there is no TAP device `no-such-tap`",
            "-> make it: `ip tuntap add dev no-such-tap mode tap",
        ]);
    World::new()
        .with("[protection]", &net("lo"))
        .check_fails(&["the network device `lo` is no TAP"]);
}

#[test]
fn an_unreachable_arbiter() {
    let etcd = |endpoint: &str| {
        World::new().with(
            "kind = \"file\"\npath = \"arbiter\"",
            &format!("kind = \"etcd\"\nendpoints = [\"{endpoint}\"]"),
        )
    };
    etcd(&closed_endpoint()).check_fails(&[
        "the arbiter cannot be used",
        "cannot connect to",
        "-> start it, mend what it says, or correct [arbiter]",
    ]);

    let real = TestEtcd::start();
    let text = said(&etcd(&real.endpoint).kemari(&["check"]));
    assert!(finding(&text, "arbiter: it answers").starts_with("ok"), "{text}");
    real.put("/kemari/demo", "rubbish");
    etcd(&real.endpoint).check_fails(&["it is no record of Kemari"]);
}

#[test]
fn a_file_arbiter_that_is_not_mounted() {
    let world = World::new();
    std::fs::remove_file(world.path("arbiter").join(MARKER)).unwrap();
    world.check_fails(&["holds no file `kemari-arbiter`: mount the shared storage"]);
}

#[test]
fn no_arbiter_is_warned_of() {
    let world = World::new().with("kind = \"file\"\npath = \"arbiter\"", "kind = \"none\"");
    let text = said(&world.kemari(&["check"]));
    assert!(
        finding(&text, "there is no arbiter").starts_with("warning"),
        "{text}"
    );
}

#[test]
fn a_port_in_use_or_of_another_machine() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World::new();
    let line = world
        .config
        .lines()
        .find(|line| line.starts_with("listen"))
        .unwrap()
        .to_owned();
    let address = other.local_addr().unwrap();
    let port = address.port();
    world
        .with(&line, &format!("listen = \"{address}\""))
        .check_fails(&[
            &format!("port {port} of 127.0.0.1 is in use by another process"),
            "-> end that process, or give this host another port",
        ]);
    // 192.0.2.0/24 is for documentation: nobody has it.
    let world = World::new();
    let line = world
        .config
        .lines()
        .find(|line| line.starts_with("listen"))
        .unwrap()
        .to_owned();
    world
        .with(&line, "listen = \"192.0.2.1:7711\"")
        .check_fails(&["192.0.2.1 is no address of this machine"]);
}

#[test]
fn a_fence_that_is_no_program() {
    World::new()
        .with("[\"true\"]", "[\"cut-the-power\"]")
        .check_fails(&["`cut-the-power` is no program of this host"]);
}

#[test]
fn too_little_memory() {
    World::new()
        .with("memory_mib = 64", "memory_mib = 1048576")
        .check_fails(&["MiB available, but the guest, staging"]);
}

#[test]
fn limits_that_a_start_would_meet_are_seen() {
    let world = World::bootable();
    let unlimited = world.kemari(&["check"]);
    assert!(unlimited.status.success(), "{}", said(&unlimited));
    let limited = |limit: &str| {
        let output = Command::new("sh")
            .args(["-c", &format!("{limit} && exec \"$@\""), "sh"])
            .args([env!("CARGO_BIN_EXE_kemari"), "check"])
            .arg(world.path("vm.toml"))
            .args(["--host", "a"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{limit}");
        said(&output)
    };
    // In units of 512 bytes.
    let text = limited("ulimit -f 1024");
    assert!(finding(&text, "disk `blk0` has 1 MiB").contains("may write no file beyond 0 MiB"));
    let text = limited("ulimit -n 32");
    assert!(finding(&text, "32 files open").starts_with("error"), "{text}");
}

#[test]
fn the_control_sockets_path_must_fit_a_socket() {
    let world = World::new();
    // One byte more than a socket's address takes. What it is made under first is no longer.
    let length = world.path("").as_os_str().len();
    let name = "s".repeat(108 - length);
    let world = world.with("control = \"a.sock\"", &format!("control = \"{name}\""));
    world.check_fails(&[
        "the path of the control socket",
        "is too long",
        "-> set a shorter `control`",
    ]);
}

#[test]
fn nothing_runs_here() {
    let world = World::new();
    for words in ["status", "stop", "protect", "unprotect", "takeover", "switchover"] {
        let output = world.kemari(&[words]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            said(&output).contains("no side of the VM runs here"),
            "{}",
            said(&output)
        );
    }
    let output = kemari(&["tap", "net0.tx", "--socket", "/nowhere/x.sock"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("nothing answers at /nowhere/x.sock"),
        "{}",
        said(&output)
    );
}

#[test]
fn wrong_usage_has_status_2_and_help_teaches() {
    for words in [
        &["dance"][..],
        &["run"],
        &["tap", "net0", "--direction", "up"],
        &[],
    ] {
        assert_eq!(kemari(words).status.code(), Some(2), "{words:?}");
    }
    let help = said(&kemari(&["--help"]));
    for part in [
        "Examples (",
        "kemari secondary vm.toml",
        "another goes on",
        "KEMARI_LOG",
    ] {
        assert!(help.contains(part), "no `{part}` in\n{help}");
    }
    assert_eq!(help, said(&kemari(&["-h"])), "one screen is enough");
    assert!(help.lines().count() <= 46, "{help}");
    assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    assert!(help.find("  run ") < help.find("  certs ") && help.find("  certs ") < help.find("--sandbox"));
    let version = said(&kemari(&["--version"]));
    assert_eq!(version, format!("kemari {}\n", kemari::VERSION_AND_COMMIT));
    let output = kemari(&["check", "x.toml", "--log", "kemari=loud"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("is no log filter"), "{}", said(&output));
}

#[test]
fn certificates_are_made_checked_and_not_overwritten() {
    let world = World::new();
    let set = world.path("set");
    let make = |hosts: &str| kemari(&["certs", set.to_str().unwrap(), "--hosts", hosts]);
    let output = make("a,b");
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for part in [
        "set/a to the host a",
        "set/b to the host b",
        "certificates =",
        "ca.key off the hosts",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let again = make("a,b");
    assert_eq!(again.status.code(), Some(1));
    assert!(
        said(&again).contains("set/a exists already and is not overwritten"),
        "{}",
        said(&again)
    );

    let text = said(&world.kemari(&["check"]));
    assert!(
        finding(&text, "the link is not encrypted").starts_with("warning"),
        "{text}"
    );
    let world = world.with("plaintext = true", "certificates = \"set/a\"");
    let text = said(&world.kemari(&["check"]));
    assert!(
        finding(&text, "certificates: those of host `a`").starts_with("ok"),
        "{text}"
    );
    let world = world.with("set/a", "set/b");
    world.check_fails(&[
        "host.pem is no good for the host `a`",
        "-> make a set with `kemari certs`",
    ]);
    let output = world.kemari(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    let world = world.with("set/b", "nowhere");
    world.check_fails(&["nowhere/ca.pem cannot be read"]);
}

#[test]
fn several_mistakes_each_have_a_line() {
    let world = World::new()
        .with("memory_mib = 64", "memory_mib = 1")
        .with("id = \"blk0\"", "id = \"b k\"");
    let text = said(&world.kemari(&["check"]));
    let name = world.path("vm.toml");
    for line in [3, 6] {
        assert!(
            text.contains(&format!("{}, line {line}: ", Path::new(&name).display())),
            "{text}"
        );
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error_and_hides_none() {
    let (good, bad) = (World::bootable(), World::new().with("vmlinuz", "nowhere"));
    for (world, status) in [(good, 0), (bad, 1)] {
        let whole = world.kemari(&["check"]);
        assert_eq!(whole.status.code(), Some(status), "{}", said(&whole));
        for format in [None, Some("--json")] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let ended = Command::new(env!("CARGO_BIN_EXE_kemari"))
                .arg("check")
                .arg(world.path("vm.toml"))
                .args(["--host", "a"])
                .args(format)
                .stdout(writer)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!((ended.status.code(), &*said), (Some(status), ""), "{format:?}");
        }
    }
}

#[test]
fn hosts_are_named_and_their_addresses_looked_up() {
    let world = World::bootable();
    let port = |host: &str| {
        let section = world.config.split(&format!("[hosts.{host}]")).nth(1).unwrap();
        section.split('"').nth(1).unwrap().to_owned()
    };
    let (a, b) = (port("a"), port("b"));
    let named = a.replace("127.0.0.1", "localhost");
    let world = world.with(&a, &named);
    let text = said(&world.kemari(&["check"]));
    assert!(
        finding(&text, "is free").contains(&format!("address {a}")),
        "{text}"
    );
    // No resolver is asked for it: that could take long.
    let nobody = "x".repeat(64);
    let world = world.with(&b, &nobody);
    for words in ["check", "run", "secondary", "up"] {
        let output = world.kemari(&[words]);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(
            said(&output).contains(&format!(
                "`hosts.b.listen`: the name `{nobody}` has no address here"
            )),
            "{}",
            said(&output)
        );
    }
    // Who asks a side that runs needs no names.
    assert!(said(&world.kemari(&["status"])).contains("no side of the VM runs here"));
}

#[test]
fn one_of_a_kind_is_no_plural() {
    let world = World::bootable().with("[\"true\"]", "[\"cut-the-power\"]");
    let text = said(&world.kemari(&["check"]));
    let count = |level: &str| text.lines().filter(|line| line.starts_with(level)).count();
    let plural = |level: &str| {
        format!(
            "{} {level}{}",
            count(level),
            if count(level) == 1 { "" } else { "s" }
        )
    };
    let last = text.lines().last().unwrap();
    assert_eq!(count("error"), 1, "{text}");
    assert_eq!(
        last,
        format!("{}, {}", plural("error"), plural("warning")),
        "{text}"
    );
}

#[test]
fn manual_pages_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let into = directory.path().join("man/man1");
    let output = kemari(&["man", into.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    for (page, part) in [
        ("kemari.1", "kemari\\-switchover(1)"),
        ("kemari-run.1", "Run the VM as the primary"),
        ("kemari-list.1", "\\-\\-json"),
    ] {
        let text = std::fs::read_to_string(into.join(page)).unwrap();
        assert!(
            text.starts_with(".ie") && text.contains(".TH kemari"),
            "{page}: {text}"
        );
        assert!(text.contains(part), "{page}: no `{part}` in\n{text}");
    }
    let output = kemari(&["man", "/dev/null/man"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("cannot write the manual pages into /dev/null/man: "),
        "{}",
        said(&output)
    );
}
