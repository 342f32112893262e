//! `kemari list`, and orders that name a VM.

use std::fs::{self, DirBuilder, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kemari::config::Mode;
use kemari::control::{Command, PaceChange, Protection, Readiness, Role, Server, Status};

use crate::{Fake, status};

/// A directory with control sockets, as `/run/kemari`.
pub(crate) struct Run {
    directory: tempfile::TempDir,
    sides: Vec<(Server, Arc<Fake>)>,
}

impl Run {
    /// With a side for each of these: the socket's name, the VM and the host.
    pub(crate) fn with(sides: &[(&str, &str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let serve = |&(socket, vm, host): &(&str, &str, &str)| {
            let fake = Arc::new(Fake::saying(Status {
                vm: vm.into(),
                host: host.into(),
                ..status()
            }));
            (
                Server::start(&directory.path().join(socket), fake.clone()).unwrap(),
                fake,
            )
        };
        let sides = sides.iter().map(serve).collect();
        Self { directory, sides }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn kemari(&self, line: &str) -> Output {
        kemari(Some(self.directory.path()), line)
    }

    /// The command must fail with that status, and say that.
    pub(crate) fn fails(&self, line: &str, code: i32, sentence: &str) {
        let output = self.kemari(line);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), told.trim_end()),
            (Some(code), sentence),
            "{line}"
        );
    }

    /// What was ordered of each side.
    fn ordered(&self) -> Vec<Vec<Command>> {
        let orders = |(_, fake): &(Server, Arc<Fake>)| fake.commands.lock().unwrap().clone();
        self.sides.iter().map(orders).collect()
    }
}

fn kemari(run: Option<&Path>, line: &str) -> Output {
    kemari_in(Path::new("."), run, line)
}

fn kemari_in(directory: &Path, run: Option<&Path>, line: &str) -> Output {
    let mut program = Program::new(env!("CARGO_BIN_EXE_kemari"));
    match run {
        Some(run) => program.env("KEMARI_RUN", run),
        None => program.env_remove("KEMARI_RUN"),
    };
    program
        .args(line.split(' '))
        .env_remove("KEMARI_LOG")
        .current_dir(directory)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn all_vms_of_a_host_are_listed() {
    let mut run = Run::with(&[("web.sock", "web", "a"), ("db/x.sock", "db", "a")]);
    let ready = Status {
        vm: "mail".into(),
        role: Role::Secondary,
        protection: Protection::On,
        readiness: Some(Readiness {
            ready: true,
            reasons: Vec::new(),
            checked_ms: 1,
        }),
        since_s: 7200,
        waiting_because: None,
        ..status()
    };
    let mail = Arc::new(Fake::saying(ready));
    run.sides
        .push((Server::start(&run.path("mail.sock"), mail.clone()).unwrap(), mail));
    drop(UnixListener::bind(run.path("dead.sock")).unwrap());
    std::fs::write(run.path("notes.txt"), "").unwrap();
    assert_eq!(
        stdout(&run.kemari("list")).lines().collect::<Vec<_>>(),
        [
            "VM    HOST  ROLE       STATE         FOR  WAITS",
            "db    a     primary    copying 50 %  5 s  the arbiter does not answer",
            "mail  a     secondary  protected     2 h  -",
            "web   a     primary    copying 50 %  5 s  the arbiter does not answer",
        ]
    );
    let rows: serde_json::Value = serde_json::from_str(&stdout(&run.kemari("list --json"))).unwrap();
    let vms: Vec<_> = rows.as_array().unwrap().iter().map(|row| &row["vm"]).collect();
    assert_eq!(vms, ["db", "mail", "web"]);
    assert_eq!(rows[0]["socket"], run.path("db/x.sock").to_str().unwrap());
    assert_eq!(rows[0]["waits"][0], "the arbiter does not answer");
    assert_eq!(
        (&rows[1]["ready"], &rows[1]["role"]),
        (&true.into(), &"secondary".into())
    );

    run.sides.clear();
    assert_eq!(stdout(&run.kemari("list")), "no VM runs here\n");
    assert_eq!(stdout(&run.kemari("list --json")), "[]\n");
}

#[test]
fn a_vm_is_named_by_its_name() {
    // What a socket is called does not matter.
    let run = Run::with(&[("web.sock", "db", "a"), ("db.sock", "web", "a")]);
    assert!(stdout(&run.kemari("status web")).starts_with("web on a: primary"));
    assert_eq!(stdout(&run.kemari("stop db")), "the VM has stopped\n");
    run.fails("switchover web", 1, "kemari: not now");
    run.fails("mode lockstep web", 1, "kemari: not now");
    run.fails("mode --interval-ms 40 web --host a", 1, "kemari: not now");
    let pace = |mode, interval_ms| {
        Command::Pace(PaceChange {
            mode,
            interval_ms,
            ..PaceChange::default()
        })
    };
    let of_web = vec![
        Command::Switchover,
        pace(Some(Mode::Lockstep), None),
        pace(None, Some(40)),
    ];
    assert_eq!(run.ordered(), [vec![Command::Stop], of_web]);
    assert!(stdout(&run.kemari("tap net0.tx web --seconds 1")).contains("3 events"));
    run.fails(
        "mode locktsep web",
        1,
        "kemari: `locktsep` is no mode: lockstep, pipelined or interval",
    );
}

#[test]
fn who_names_no_vm_of_this_host_is_told_which_there_are() {
    let run = Run::with(&[("db.sock", "db", "a"), ("web.sock", "web", "b")]);
    let there_are = "kemari: no VM `dp` runs here; there is `db` on `a`, `web` on `b`";
    run.fails("stop dp", 1, there_are);
    run.fails("status dp --check", 3, there_are);
    run.fails(
        "stop",
        1,
        "kemari: several VMs run here: say which one by its name (`db` on `a`, `web` on `b`)",
    );
    run.fails(
        "stop db --host b",
        1,
        "kemari: no side of the VM `db` runs here as host `b`; there is `db` on `a`",
    );
    run.fails(
        "stop --host c",
        1,
        "kemari: no VM runs here as host `c`; there is `db` on `a`, `web` on `b`",
    );
    // A word that can only be a configuration is none of a VM.
    run.fails(
        "stop ./db",
        1,
        "kemari: cannot read the configuration ./db: No such file or directory (os error 2)",
    );
    assert_eq!(run.ordered(), [vec![], vec![]]);
    // The dead do not count.
    drop(UnixListener::bind(run.path("dead.sock")).unwrap());
    assert_eq!(stdout(&run.kemari("stop --host b")), "the VM has stopped\n");
    run.fails(
        "stop dead",
        1,
        "kemari: no VM `dead` runs here; there is `db` on `a`, `web` on `b`",
    );
    let nobody = Run::with(&[]);
    nobody.fails(
        "status dp --check",
        3,
        "kemari: no VM `dp` runs here: no VM does. `kemari run` and `kemari secondary` start one by its \
         configuration",
    );
}

#[test]
fn of_two_sides_of_a_vm_it_is_said_which() {
    let run = Run::with(&[("1.sock", "db", "a"), ("2.sock", "db", "b")]);
    let which =
        "kemari: several sides of the VM `db` run here: say which one, `db --host a` or `db --host b`";
    run.fails("stop db", 1, which);
    run.fails("stop", 1, which);
    assert_eq!(stdout(&run.kemari("stop db --host b")), "the VM has stopped\n");
    assert_eq!(run.ordered(), [vec![], vec![Command::Stop]]);
}

#[test]
fn a_side_that_hangs_is_listed_and_holds_nobody_up() {
    let run = Run::with(&[("db.sock", "db", "a")]);
    let hung = UnixListener::bind(run.path("hung.sock")).unwrap();
    rustix::net::listen(&hung, 0).unwrap();
    // Nobody takes this client, so that a further one cannot even connect.
    let _waits = UnixStream::connect(run.path("hung.sock")).unwrap();
    let begun = Instant::now();
    let text = stdout(&run.kemari("list"));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let line = text.lines().find(|line| line.starts_with("hung")).unwrap();
    assert!(line.contains("does not answer"), "{text}");
    assert!(line.contains("hung.sock did not answer"), "{text}");
    assert_eq!(stdout(&run.kemari("stop db")), "the VM has stopped\n");
}

/// Each byte of its answer comes in time, and the answer does not.
#[test]
fn a_side_that_answers_without_end_is_waited_for_no_longer() {
    let run = Run::with(&[("db.sock", "db", "a")]);
    let listener = UnixListener::bind(run.path("slow.sock")).unwrap();
    let slow = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        while client.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let text = stdout(&run.kemari("list"));
    assert!(text.contains("slow.sock did not answer"), "{text}");
    slow.join().unwrap();
}

/// `control = "..."` may put it anywhere.
#[test]
fn a_control_socket_elsewhere_is_found() {
    let vm = format!("elsewhere-{}", std::process::id());
    let run = Run::with(&[]);
    let deep = run.path("deep/in/there");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&deep)
        .unwrap();
    let fake = Arc::new(Fake::saying(Status {
        vm: vm.clone(),
        ..status()
    }));
    let side = Server::start(&deep.join("x.sock"), fake).unwrap();
    // What else listens there is no VM, nor is a link to one.
    let other = UnixListener::bind(deep.join("daemon.sock")).unwrap();
    fs::set_permissions(deep.join("daemon.sock"), Permissions::from_mode(0o600)).unwrap();
    symlink(deep.join("x.sock"), deep.join("a.sock")).unwrap();
    assert!(stdout(&kemari(None, &format!("status {vm}"))).starts_with(&format!("{vm} on ")));
    let listed = || stdout(&kemari(None, "list --json"));
    let there = |text: &str, name: &str| text.contains(deep.join(name).to_str().unwrap());
    let text = listed();
    assert!(there(&text, "x.sock"), "{text}");
    assert!(!there(&text, "daemon.sock") && !there(&text, "a.sock"), "{text}");
    drop(other);
    assert_eq!(stdout(&run.kemari("list")), "no VM runs here\n");

    // Others may not have made it.
    fs::set_permissions(side.path(), Permissions::from_mode(0o666)).unwrap();
    assert!(!there(&listed(), "x.sock"));
    fs::set_permissions(side.path(), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&deep, Permissions::from_mode(0o1777)).unwrap();
    assert!(!there(&listed(), "x.sock"));
    fs::set_permissions(&deep, Permissions::from_mode(0o700)).unwrap();
    assert!(there(&listed(), "x.sock"));
}

#[test]
fn of_several_that_say_the_same_name_it_is_the_one_whose_socket_says_it_too() {
    let run = Run::with(&[
        ("0.sock", "db", "a"),
        ("db.sock", "db", "a"),
        ("web.sock", "db", "b"),
    ]);
    assert_eq!(stdout(&run.kemari("stop db")), "the VM has stopped\n");
    assert_eq!(stdout(&run.kemari("stop db --host a")), "the VM has stopped\n");
    assert_eq!(
        run.ordered(),
        [vec![], vec![Command::Stop, Command::Stop], vec![]]
    );
    assert_eq!(stdout(&run.kemari("stop db --host b")), "the VM has stopped\n");
    assert_eq!(run.ordered()[2], [Command::Stop]);
}

#[test]
fn a_side_that_hangs_loses_its_name_to_none_that_says_it_too() {
    let run = Run::with(&[("web.sock", "db", "a")]);
    let hung = UnixListener::bind(run.path("db.sock")).unwrap();
    rustix::net::listen(&hung, 0).unwrap();
    // As above.
    let _waits = UnixStream::connect(run.path("db.sock")).unwrap();
    for line in ["stop db", "stop db --host a", "stop db --host b"] {
        let said = run.kemari(line);
        let told = String::from_utf8_lossy(&said.stderr);
        assert!(told.contains("db.sock did not answer"), "{line}: {told}");
    }
    // Nor does another become the only one of a host.
    for line in ["stop", "stop --host a"] {
        let said = run.kemari(line);
        let told = String::from_utf8_lossy(&said.stderr);
        assert!(
            told.contains("several sides of the VM `db` run here"),
            "{line}: {told}"
        );
    }
    assert_eq!(run.ordered(), [vec![]]);
    let said = run.kemari("status --check --host b");
    let told = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(2), "{told}");
}

#[test]
fn a_name_that_no_configuration_may_have_is_told_to_nobody() {
    let run = Run::with(&[
        ("1.sock", "d\u{1b}[2J", "a"),
        ("2.sock", "dns", "$(id)"),
        ("3.sock", "db", "a"),
    ]);
    let text = stdout(&run.kemari("list"));
    assert!(!text.contains('\u{1b}') && !text.contains("$("), "{text}");
    assert_eq!(text.matches("it has another version").count(), 2, "{text}");
    completes(&run, "kemari stop d", &["db"]);
}

#[test]
fn a_file_of_a_vms_name_is_not_its_configuration() {
    let run = Run::with(&[("db.sock", "db", "a")]);
    let directory = tempfile::tempdir().unwrap();
    for name in ["db", "web"] {
        fs::write(directory.path().join(name), "").unwrap();
    }
    let said = |run: &Run, line| kemari_in(directory.path(), Some(run.directory.path()), line);
    assert_eq!(stdout(&said(&run, "stop db")), "the VM has stopped\n");
    let refused = |run: &Run| String::from_utf8(said(run, "stop web").stderr).unwrap();
    assert_eq!(
        refused(&run),
        "kemari: no VM `web` runs here; there is `db` on `a`. The configuration in this directory is \
         `./web`\n"
    );
    let nobody = Run::with(&[]);
    assert!(
        refused(&nobody).ends_with("by its configuration. The configuration in this directory is `./web`\n")
    );
    // As no verdict on the VM: a configuration may have been meant, of a side that lives.
    for run in [&run, &nobody] {
        assert_eq!(said(run, "status web --check").status.code(), Some(1));
        assert_eq!(said(run, "status dns --check").status.code(), Some(3));
    }
}

/// Bash offers this for the last word of the line: in the end, since a side on a busy machine may take longer
/// to answer than somebody at a keyboard is kept waiting.
fn completes(run: &Run, line: &str, expected: &[&str]) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let offered = completed(run, line);
        if offered == expected {
            return;
        }
        assert!(Instant::now() < until, "{line}: {offered:?}");
    }
}

/// What bash offers at once.
fn completed(run: &Run, line: &str) -> Vec<String> {
    let directory = Path::new(env!("CARGO_BIN_EXE_kemari")).parent().unwrap();
    let script = r#"
        source <(COMPLETE=bash kemari)
        COMP_WORDS=($LINE); [ "${LINE% }" = "$LINE" ] || COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9
        _clap_complete_kemari kemari "${COMP_WORDS[COMP_CWORD]}" 2>/dev/null
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = Program::new("bash")
        .args(["--norc", "-c", script])
        .env("LINE", line)
        .env("KEMARI_RUN", run.directory.path())
        .env("PATH", format!("{}:/usr/bin:/bin", directory.display()))
        .current_dir(run.directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().map(|word| word.trim().to_owned()).collect()
}

#[test]
fn the_shell_completes_commands_vms_hosts_and_channels() {
    let mut run = Run::with(&[("1.sock", "db", "alpha"), ("2.sock", "web", "beta")]);
    let tapped = Arc::new(Fake::saying(Status {
        vm: "dns".into(),
        channels: vec!["net0.tx".into(), "blk0".into()],
        ..status()
    }));
    run.sides.push((
        Server::start(&run.path("3.sock"), tapped.clone()).unwrap(),
        tapped,
    ));
    completes(&run, "kemari sw", &["switchover"]);
    completes(&run, "kemari stop d", &["db", "dns"]);
    completes(&run, "kemari status --host b", &["beta"]);
    completes(&run, "kemari tap n", &["net0.tx"]);
    completes(&run, "kemari mode pipe", &["pipelined"]);
    std::fs::write(run.path("desk.toml"), "").unwrap();
    completes(&run, "kemari stop de", &["desk.toml"]);
    completes(&run, "kemari check de", &["desk.toml"]);
}
