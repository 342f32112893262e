//! Two hosts, an arbiter and a shared disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kemari::control::{Client, Status};
use lab::{LocalNet, Process, guest_address};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tempfile::TempDir;
use xtask::proof::load::Load;
use xtask::tools::{build_bare_guest, output_of, root, tail};

use super::breaches;
use super::plan::{Plan, certificates};
use super::{Clients, PATIENCE, guest, wait_for};

/// The program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_kemari");
/// Port of the guest's service.
pub(crate) const SERVICE_PORT: u16 = 6379;
/// Connections of a load.
const CONNECTIONS: u16 = 4;
/// A request without an answer for so long means that its connection is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Lines of each log that a failed scenario shows.
const LOG_LINES_MAX: usize = 40;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    A,
    B,
}

impl Host {
    pub(crate) const BOTH: [Host; 2] = [Host::A, Host::B];

    /// Its name in the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Host::A => "a",
            Host::B => "b",
        }
    }

    /// Its number in the network.
    pub(crate) fn number(self) -> usize {
        self as usize
    }

    pub(crate) fn other(self) -> Host {
        match self {
            Host::A => Host::B,
            Host::B => Host::A,
        }
    }

    /// The file with the id of its process, for the other one's fence.
    pub(crate) fn pid_file(self) -> String {
        format!("{}.pid", self.name())
    }
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub success: bool,
    /// Its exit status; `None`: a signal ended it.
    pub code: Option<i32>,
    pub text: String,
}

/// The hosts of one scenario, and what runs on them. All of it ends with the value.
// The order of the fields is the order of their end.
pub(crate) struct Scene {
    plan: Plan,
    processes: [Option<Process>; 2],
    third: Option<Process>,
    pub net: LocalNet,
    kernel: PathBuf,
    directory: TempDir,
    /// Paths of sockets must be short.
    sockets: TempDir,
}

/// Plays a scenario on hosts of its own. What failed is told with the end of the logs.
pub(crate) fn play(plan: &Plan, scenario: impl FnOnce(&mut Scene) -> Result<()>) {
    let mut scene = Scene::new(plan).unwrap_or_else(|error| panic!("no hosts for the scenario: {error:#}"));
    let played = scenario(&mut scene);
    // What was beyond the sandbox may be why it failed.
    let played = breaches::none_in(scene.directory.path()).and(played);
    if let Err(error) = played {
        let logs: String = Host::BOTH.into_iter().map(|host| scene.shown_log(host)).collect();
        panic!("{error:#}\n{logs}");
    }
}

impl Scene {
    fn new(plan: &Plan) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root"
        );
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        kvm.context("/dev/kvm cannot be opened: the scenarios need this machine's KVM")?;
        let net = LocalNet::new(2, 1)?;
        for host in Host::BOTH {
            let host = net.host(host.number());
            // Administratively up: its carrier comes when the program opens it.
            host.netns().ip(&format!("link set {} up", host.tap(0)))?;
        }
        let directory = match plan.user {
            // Others than root do not get to root's.
            Some(_) => tempfile::tempdir()?,
            None => lab::scratch_dir()?,
        };
        let sockets = tempfile::tempdir()?;
        for host in Host::BOTH {
            let image = plan.image(host, directory.path());
            fs::create_dir_all(image.parent().context("an image lies in a directory")?)?;
            File::create(image)?.set_len(plan.disk_mib << 20)?;
        }
        for (path, program) in plan.fence_programs(directory.path()) {
            fs::write(&path, program)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        fs::create_dir(directory.path().join("arbiter"))?;
        let kernel = bare_guest()?;
        let scene = Self {
            plan: plan.clone(),
            processes: [None, None],
            third: None,
            net,
            kernel,
            directory,
            sockets,
        };
        scene.bring_arbiter_back()?;
        if plan.tls {
            let mut certs = Command::new(PROGRAM);
            certs.arg("certs").arg(certificates(scene.directory.path()));
            certs.args(["--hosts", "a,b", "--days", &plan.certificate_days.to_string()]);
            output_of(&mut certs)?;
        }
        scene.write_config("scene.toml", plan)?;
        if let Some(user) = plan.user {
            let mut give = Command::new("chown");
            give.args(["-R", user])
                .args([scene.directory.path(), scene.sockets.path()]);
            output_of(&mut give)?;
        }
        Ok(scene)
    }

    /// The image of a host that is only read, of [`Plan::reads_qcow2`].
    pub(crate) fn read_only_image(&self, host: Host) -> PathBuf {
        Plan::read_only_image(host, self.directory.path())
    }

    /// Makes them, each over a backing file beside it.
    pub(crate) fn make_read_only_images(&self) -> Result<()> {
        let create = ["create", "-q", "-f", "qcow2"];
        for image in Host::BOTH.map(|host| self.read_only_image(host)) {
            let base = image.with_extension("base");
            output_of(Command::new("qemu-img").args(create).arg(&base).arg("16M"))?;
            let name = base.file_name().context("a name")?;
            let mut over = Command::new("qemu-img");
            over.args(create).args(["-F", "qcow2", "-b"]).arg(name);
            output_of(over.arg(&image))?;
        }
        Ok(())
    }

    /// The image of a host's disk.
    pub(crate) fn image(&self, host: Host) -> PathBuf {
        self.plan.image(host, self.directory.path())
    }

    /// Compares the images of both hosts, byte by byte.
    pub(crate) fn compare_images(&self) -> Result<()> {
        let [a, b] = Host::BOTH.map(|host| written_blocks(&self.image(host)));
        let ((a_bytes, a), (b_bytes, b)) = (a?, b?);
        ensure!(
            a_bytes == b_bytes,
            "the images have {a_bytes} and {b_bytes} bytes"
        );
        let positions: BTreeSet<u64> = a.keys().chain(b.keys()).copied().collect();
        let differ = positions.into_iter().filter(|block| a.get(block) != b.get(block));
        let differ: Vec<u64> = differ.collect();
        ensure!(
            differ.is_empty(),
            "the images differ in {} blocks: {differ:?}",
            differ.len()
        );
        ensure!(!a.is_empty(), "the guest wrote nothing");
        Ok(())
    }

    /// Makes the arbiter unreachable: its directory looks like an empty mount point.
    pub(crate) fn take_arbiter_away(&self) -> Result<()> {
        Ok(fs::remove_file(self.arbiter_marker())?)
    }

    /// Ends a [`Scene::take_arbiter_away`].
    pub(crate) fn bring_arbiter_back(&self) -> Result<()> {
        File::create(self.arbiter_marker())?;
        Ok(())
    }

    /// Takes all records from the arbiter, as an administrator does who makes its directory anew.
    pub(crate) fn wipe_arbiter(&self) -> Result<()> {
        for entry in fs::read_dir(self.directory.path().join("arbiter"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "record") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn arbiter_marker(&self) -> PathBuf {
        self.directory
            .path()
            .join("arbiter")
            .join(kemari::arbiter::MARKER)
    }

    /// Writes a configuration beside the one that is used by default.
    pub(crate) fn write_config(&self, name: &str, plan: &Plan) -> Result<()> {
        let text = plan.to_toml(self.directory.path(), self.sockets.path(), &self.kernel);
        Ok(fs::write(self.directory.path().join(name), text)?)
    }

    /// The path of a configuration.
    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts `kemari run` on a host.
    pub(crate) fn run(&mut self, host: Host) -> Result<()> {
        self.start(host, &["run"], "scene.toml", &[])
    }

    /// Starts `kemari secondary` on a host.
    pub(crate) fn secondary(&mut self, host: Host) -> Result<()> {
        self.start(host, &["secondary"], "scene.toml", &[])
    }

    /// Starts a side; what it says is added to the host's log.
    pub(crate) fn start(
        &mut self,
        host: Host,
        words: &[&str],
        config: &str,
        env: &[(&str, &str)],
    ) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path(host))?;
        let mut command = self.command(host, words, config);
        command
            .stdout(log.try_clone()?)
            .stderr(log)
            .envs(env.iter().copied());
        self.spawn(host, words, command)
    }

    /// Starts a side that logs to something else than the host's log.
    pub(crate) fn start_logging_to(
        &mut self,
        host: Host,
        words: &[&str],
        log: impl Into<Stdio>,
    ) -> Result<()> {
        let mut command = self.command(host, words, "scene.toml");
        command.stdout(Stdio::null()).stderr(log);
        self.spawn(host, words, command)
    }

    fn spawn(&mut self, host: Host, words: &[&str], mut command: Command) -> Result<()> {
        command.stdin(Stdio::null());
        let process = Process::spawn(format!("kemari {} on {}", words.join(" "), host.name()), command)?;
        fs::write(
            self.directory.path().join(host.pid_file()),
            process.pid().to_string(),
        )?;
        self.processes[host.number()] = Some(process);
        Ok(())
    }

    /// Starts `kemari secondary` as the third host.
    pub(crate) fn third(&mut self) -> Result<()> {
        self.start_third("secondary")
    }

    /// Starts the program as the third host.
    pub(crate) fn start_third(&mut self, word: &str) -> Result<()> {
        let log = File::create(self.directory.path().join("c.log"))?;
        let netns = self.net.host(Host::B.number()).netns();
        let mut command = netns.command(PROGRAM);
        command
            .env(breaches::VARIABLE, self.path(breaches::NAME))
            .arg(word)
            .arg(self.config("scene.toml"))
            .args(["--host", "c"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = Process::spawn(format!("kemari {word} on c"), command)?;
        fs::write(self.directory.path().join("c.pid"), process.pid().to_string())?;
        self.third = Some(process);
        Ok(())
    }

    /// What the third host says of itself.
    pub(crate) fn third_status(&self) -> Option<Status> {
        Client::new(&self.sockets.path().join("c.sock")).status().ok()
    }

    /// What it has logged.
    pub(crate) fn third_log(&self) -> String {
        fs::read_to_string(self.path("c.log")).unwrap_or_default()
    }

    /// A file or directory of the scene.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a command of `kemari` on a host to its end.
    pub(crate) fn ask(&self, host: Host, words: &[&str]) -> Result<Ended> {
        self.ask_with(host, words, "scene.toml")
    }

    /// The same with another configuration.
    pub(crate) fn ask_with(&self, host: Host, words: &[&str], config: &str) -> Result<Ended> {
        let path = self.directory.path().join(format!("{}.asked", host.name()));
        let file = File::create(&path)?;
        let mut command = self.command(host, words, config);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let mut process = Process::spawn(format!("kemari {}", words.join(" ")), command)?;
        let status = process.wait(PATIENCE)?;
        let text = fs::read_to_string(&path)?;
        let status = status.with_context(|| format!("`kemari {}` did not end: {text}", words.join(" ")))?;
        Ok(Ended {
            success: status.success(),
            code: status.code(),
            text,
        })
    }

    fn command(&self, host: Host, words: &[&str], config: &str) -> Command {
        let netns = self.net.host(host.number()).netns();
        let mut command = netns.command(PROGRAM);
        command
            .env(breaches::VARIABLE, self.path(breaches::NAME))
            .args(words)
            .arg(self.config(config))
            .args(["--host", host.name()]);
        command
    }

    fn process(&mut self, host: Host) -> Result<&mut Process> {
        self.processes[host.number()]
            .as_mut()
            .with_context(|| format!("nothing runs on {}", host.name()))
    }

    /// Runs `kemari status --check` on a host: it must end with this status.
    pub(crate) fn ask_check(&self, host: Host, code: i32) -> Result<()> {
        let ended = self.ask(host, &["status", "--check"])?;
        ensure!(
            ended.code == Some(code),
            "`kemari status --check` on {} ended with {:?}, not {code}: {}",
            host.name(),
            ended.code,
            ended.text
        );
        Ok(())
    }

    /// Sends a signal to what runs on a host.
    pub(crate) fn signal(&mut self, host: Host, signal: rustix::process::Signal) -> Result<()> {
        Ok(self.process(host)?.signal(signal)?)
    }

    /// The id of what runs on a host.
    pub(crate) fn pid(&mut self, host: Host) -> Result<u32> {
        Ok(self.process(host)?.pid())
    }

    /// Starts `kemari up` on a host.
    pub(crate) fn up(&mut self, host: Host) -> Result<()> {
        self.start(host, &["up"], "scene.toml", &[])
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, host: Host) -> Result<()> {
        self.process(host)?.kill()?;
        self.processes[host.number()] = None;
        Ok(())
    }

    /// Whether the process on a host runs.
    pub(crate) fn is_running(&mut self, host: Host) -> bool {
        self.processes[host.number()]
            .as_mut()
            .is_some_and(Process::is_running)
    }

    /// Waits until the process on a host has ended by itself, with an error.
    pub(crate) fn await_refusal(&mut self, host: Host) -> Result<()> {
        let status = self.process(host)?.wait(PATIENCE)?;
        self.processes[host.number()] = None;
        ensure!(
            status.is_some_and(|status| !status.success()),
            "the process on {} should have been refused: {status:?}",
            host.name()
        );
        Ok(())
    }

    /// Waits until the process on a host has ended by itself, with status 0.
    pub(crate) fn await_clean_end(&mut self, host: Host) -> Result<()> {
        let status = self.process(host)?.wait(PATIENCE)?;
        self.processes[host.number()] = None;
        match status {
            Some(status) => ensure!(
                status.success(),
                "the process on {} ended with {status}",
                host.name()
            ),
            None => bail!("the process on {} did not end within {PATIENCE:?}", host.name()),
        }
        Ok(())
    }

    /// The control socket of a host.
    pub(crate) fn socket(&self, host: Host) -> PathBuf {
        self.sockets.path().join(format!("{}.sock", host.name()))
    }

    /// Speaks with the side on a host.
    pub(crate) fn client(&self, host: Host) -> Client {
        Client::new(&self.socket(host))
    }

    /// What the side on a host says of itself; `None` while it says nothing.
    pub(crate) fn status(&self, host: Host) -> Option<Status> {
        self.client(host).status().ok()
    }

    /// A load whose keys no other load has.
    pub(crate) fn load(&self) -> Load {
        static SEED: AtomicU64 = AtomicU64::new(1);
        let seed = SEED.fetch_add(1, Ordering::Relaxed);
        Load {
            netns: Some(self.net.outside().clone()),
            connections: CONNECTIONS,
            answer_timeout: ANSWER_TIMEOUT,
            ..Load::new((guest_address(0), SERVICE_PORT).into(), seed)
        }
    }

    /// Sets clients to work, and waits until each of them was answered.
    pub(crate) fn clients(&self) -> Result<Clients> {
        let clients = Clients::start(self.load())?;
        clients.go_on()?;
        Ok(clients)
    }

    /// Sends the guest one request.
    pub(crate) fn order(&self, words: &[&str]) -> Result<()> {
        guest::ask(&self.load(), words).map(drop)
    }

    /// A number of what the guest says in `INFO`.
    pub(crate) fn info(&self, name: &str) -> Result<u64> {
        guest::info(&self.load(), name)
    }

    fn log_path(&self, host: Host) -> PathBuf {
        self.directory.path().join(format!("{}.log", host.name()))
    }

    /// What the processes of a host said, all of them.
    pub(crate) fn log(&self, host: Host) -> String {
        fs::read_to_string(self.log_path(host)).unwrap_or_default()
    }

    /// Waits until the log of a host holds a text.
    pub(crate) fn await_log(&self, host: Host, text: &str) -> Result<()> {
        wait_for(
            &format!("`{text}` in the log of {}", host.name()),
            PATIENCE,
            || Ok(self.log(host).contains(text).then_some(())),
        )
    }

    fn shown_log(&self, host: Host) -> String {
        let status = self
            .status(host)
            .map_or("no status".into(), |status| status.to_string());
        let log = tail(&self.log(host), LOG_LINES_MAX);
        let console = fs::read_to_string(self.directory.path().join(format!("{}.console", host.name())));
        let console = tail(&console.unwrap_or_default(), 10);
        format!(
            "--- {}: log\n{log}\n--- its status\n{status}\n--- its console\n{console}\n",
            host.name()
        )
    }
}

/// Bytes of a block of [`written_blocks`].
const BLOCK_BYTES: u64 = 4096;

/// Length of an image in bytes, and its blocks that are not zeros, by their numbers. Its holes are not read.
pub(crate) fn written_blocks(image: &Path) -> Result<(u64, BTreeMap<u64, Vec<u8>>)> {
    let file = File::open(image)?;
    let bytes = seek(&file, SeekFrom::End(0))?;
    let mut blocks = BTreeMap::new();
    let mut at = 0;
    loop {
        // A block device knows of no holes.
        let data = match seek(&file, SeekFrom::Data(at)) {
            Err(Errno::INVAL) if at < bytes => at,
            Err(Errno::INVAL | Errno::NXIO) => return Ok((bytes, blocks)),
            found => found?,
        };
        let hole = match seek(&file, SeekFrom::Hole(data)) {
            Err(Errno::INVAL) => bytes,
            found => found?,
        };
        // The file system's blocks may be smaller.
        let begin = data / BLOCK_BYTES * BLOCK_BYTES;
        at = hole.next_multiple_of(BLOCK_BYTES);
        for offset in (begin..hole).step_by(BLOCK_BYTES as usize) {
            let mut block = vec![0; BLOCK_BYTES.min(bytes - offset) as usize];
            file.read_exact_at(&mut block, offset)?;
            if block.iter().any(|byte| *byte != 0) {
                blocks.insert(offset / BLOCK_BYTES, block);
            }
        }
    }
}

/// The bare guest, built if it is missing.
fn bare_guest() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let path = root().join("guests/bare/target/release/bare-guest");
        if path.exists() {
            Ok(path)
        } else {
            build_bare_guest().map_err(|error| format!("{error:#}"))
        }
    });
    built.clone().map_err(anyhow::Error::msg)
}
