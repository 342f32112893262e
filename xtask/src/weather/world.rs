//! Two hosts with a VM between them, and the weather around them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::{LocalNet, OUTSIDE_CONTROL, Process, guest_address};
use rustix::process::Signal;
use tempfile::TempDir;

use super::etcd::{Etcd, Flavour, NAME};
use super::mounts::Mounts;
use super::setup::{Arbiter, SERVICE_PORT, Setup};
use crate::demo::pair::Side;
use crate::proof::clients::PATIENCE;
use crate::proof::load::Load;
use crate::tools::{output_of, run_quietly, tail};

/// Size of the guest's disk in bytes.
const DISK_BYTES: u64 = 16 << 20;
/// Connections of a load.
const CONNECTIONS: u16 = 4;
/// Lines of a log that a failed case shows.
const LOG_LINES_MAX: usize = 25;
/// How a host's program is started if a case does not say otherwise: its words are appended to a file.
pub(crate) const TO_FILE: &str = "exec \"$0\" \"$@\" >>{log} 2>&1";

/// What all cases have in common.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// Kemari.
    pub kemari: PathBuf,
    /// The bare guest.
    pub guest: PathBuf,
}

/// The hosts of one case, and what runs on them. All of it ends with the value.
// The order of the fields is the order of their end.
pub(crate) struct World {
    setup: Setup,
    programs: Programs,
    processes: [Option<Process>; 2],
    etcd: Option<Etcd>,
    /// The networks.
    pub net: LocalNet,
    /// What is mounted for this case.
    pub mounts: Mounts,
    sockets: TempDir,
    dir: TempDir,
    seed: u64,
    /// The host that was killed or left after protected and ready was said,
    /// until the VM was seen on the other.
    pub(super) owed: Option<Side>,
    /// Takeovers and switchovers that were seen.
    pub(super) passed: u64,
}

/// The file into which sides write system calls that they should not have made.
const BREACHES: &str = "breaches";

impl World {
    /// Makes hosts with nothing started on them.
    pub(crate) fn new(setup: &Setup, programs: &Programs, seed: u64) -> Result<Self> {
        let net = LocalNet::new(2, 1)?;
        for side in Side::BOTH {
            net.host(side.number()).netns().ip("link set tap0 up")?;
        }
        let (dir, sockets) = (lab::scratch_dir()?, tempfile::tempdir()?);
        for side in Side::BOTH {
            let image = setup.image(dir.path(), side);
            fs::create_dir_all(image.parent().context("an image lies in a directory")?)?;
            File::create(image)?.set_len(DISK_BYTES)?;
        }
        fs::create_dir(dir.path().join("arbiter"))?;
        // The marker that says: this is the storage, and not an empty mount point.
        File::create(dir.path().join("arbiter/kemari-arbiter"))?;
        let mut world = Self {
            setup: *setup,
            programs: programs.clone(),
            processes: [None, None],
            etcd: None,
            net,
            mounts: Mounts::default(),
            sockets,
            dir,
            seed,
            owed: None,
            passed: 0,
        };
        if let Arbiter::Etcd(flavour) = setup.arbiter {
            if matches!(flavour, Flavour::Named | Flavour::OneNameUnknown) {
                world.mounts.names(world.dir.path())?;
                world.name_arbiter()?;
            }
            world.etcd = Some(Etcd::start(world.net.outside(), flavour, world.dir.path())?);
        }
        world.configure("")?;
        Ok(world)
    }

    /// Writes the configuration, with more laid over it than the setup has.
    pub(crate) fn configure(&self, overlay: &str) -> Result<()> {
        let (dir, sockets) = (self.dir.path(), self.sockets.path());
        let text = self.setup.to_toml(dir, sockets, &self.programs.guest, overlay)?;
        Ok(fs::write(self.path("vm.toml"), text)?)
    }

    /// The control socket of a host, if the case leaves it so.
    pub(crate) fn socket(&self, side: Side) -> PathBuf {
        self.sockets.path().join(format!("{}.sock", side.name()))
    }

    /// A file or directory of the case.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The image of a host.
    pub(crate) fn image(&self, side: Side) -> PathBuf {
        self.setup.image(self.dir.path(), side)
    }

    /// The etcd of the case.
    pub(crate) fn etcd(&mut self) -> Result<&mut Etcd> {
        self.etcd.as_mut().context("the case has no etcd")
    }

    /// The arbiter has its name.
    pub(crate) fn name_arbiter(&self) -> Result<()> {
        self.set_names(&format!("{OUTSIDE_CONTROL} {NAME}"))
    }

    /// What the hosts' file says, where the case has names.
    pub(crate) fn set_names(&self, lines: &str) -> Result<()> {
        Ok(fs::write(
            self.path("hosts"),
            format!("127.0.0.1 localhost\n{lines}\n"),
        )?)
    }

    /// Runs lines of `ip` on a host.
    pub(crate) fn ip(&self, side: Side, lines: &str) -> Result<()> {
        Ok(self.net.host(side.number()).netns().ip(lines)?)
    }

    /// A command of the program on a host, with the configuration last.
    pub(crate) fn command(&self, side: Side, words: &[&str]) -> Command {
        let netns = self.net.host(side.number()).netns();
        let mut command = netns.command(&self.programs.kemari);
        command
            .env("KEMARI_BREACHES", self.path(BREACHES))
            .args(words)
            .arg(self.path("vm.toml"))
            .args(["--host", side.name()]);
        command
    }

    /// Fails if a side has made a system call that is on no list of its thread's: it died of it.
    pub(crate) fn breaches(&self) -> Result<()> {
        let breaches = fs::read_to_string(self.path(BREACHES)).unwrap_or_default();
        ensure!(breaches.is_empty(), "beyond the sandbox: {breaches}");
        Ok(())
    }

    /// Starts a side by a script of the shell, in which `"$0" "$@"` is the program, and `{dir}` and `{log}`
    /// stand for the directory of the case and the host's log.
    pub(crate) fn start(&mut self, side: Side, subcommand: &str, script: &str) -> Result<()> {
        let process = self.launch(side, subcommand, script, &self.log_path(side))?;
        fs::write(self.path(&side.pid_file()), process.pid().to_string())?;
        self.processes[side.number()] = Some(process);
        Ok(())
    }

    /// Starts the program on a host, beside what runs there.
    pub(crate) fn launch(&self, side: Side, subcommand: &str, script: &str, log: &Path) -> Result<Process> {
        let script = script
            .replace("{log}", &log.display().to_string())
            .replace("{dir}", &self.dir.path().display().to_string());
        let mut command = self.net.host(side.number()).netns().command("/bin/sh");
        command
            .env("KEMARI_BREACHES", self.path(BREACHES))
            .args(["-c", &script])
            .arg(&self.programs.kemari)
            .arg(subcommand)
            .arg(self.path("vm.toml"))
            .args(["--host", side.name()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Process::spawn(
            format!("kemari {subcommand} on {}", side.name()),
            command,
        )?)
    }

    /// Starts a side as the secondary, in the usual way.
    pub(crate) fn secondary(&mut self, side: Side) -> Result<()> {
        self.start(side, "secondary", TO_FILE)
    }

    /// The process on a host.
    pub(crate) fn process(&mut self, side: Side) -> Result<&mut Process> {
        self.processes[side.number()]
            .as_mut()
            .with_context(|| format!("nothing was started on {}", side.name()))
    }

    /// Its id.
    pub(crate) fn pid(&mut self, side: Side) -> Result<u32> {
        Ok(self.process(side)?.pid())
    }

    /// Sends a signal to what runs on a host.
    pub(crate) fn signal(&mut self, side: Side, signal: Signal) -> Result<()> {
        Ok(self.process(side)?.signal(signal)?)
    }

    /// Whether the process on a host runs.
    pub(crate) fn is_running(&mut self, side: Side) -> bool {
        self.processes[side.number()]
            .as_mut()
            .is_some_and(Process::is_running)
    }

    /// Waits until the process on a host has ended by itself, as it should.
    pub(crate) fn await_end(&mut self, side: Side) -> Result<()> {
        let status = self.process(side)?.wait(PATIENCE)?;
        self.processes[side.number()] = None;
        let status = status.with_context(|| format!("the process on {} does not end", side.name()))?;
        ensure!(
            status.success(),
            "the process on {} ended with {status}",
            side.name()
        );
        Ok(())
    }

    /// The VM of `side` must be seen on the other one, or what was said was not true.
    pub(crate) fn owe(&mut self, side: Side) {
        self.owed = Some(side);
    }

    /// SIGKILL, without a look at what was said.
    pub(crate) fn end(&mut self, side: Side) -> Result<()> {
        match self.processes[side.number()].take() {
            Some(mut process) => Ok(process.kill()?),
            None => Ok(()),
        }
    }

    /// A load whose keys no other load has.
    pub(crate) fn load(&mut self) -> Load {
        self.seed = self.seed.wrapping_add(1);
        Load {
            netns: Some(self.net.outside().clone()),
            connections: CONNECTIONS,
            keys_per_connection: 2,
            ..Load::new((guest_address(0), SERVICE_PORT).into(), self.seed)
        }
    }

    /// Where a host's program logs, if the case leaves it so.
    pub(crate) fn log_path(&self, side: Side) -> PathBuf {
        self.path(&format!("{}.log", side.name()))
    }

    /// What it has logged there.
    pub(crate) fn log(&self, side: Side) -> String {
        let bytes = fs::read(self.log_path(side)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a failed case shows, and keeps in a directory.
    pub(crate) fn evidence(&mut self, kept: &Path) -> String {
        let _ = fs::remove_dir_all(kept);
        let _ = fs::create_dir_all(kept);
        let mut shown = String::new();
        for side in Side::BOTH {
            let log = self.log(side);
            let status = output_of(&mut self.command(side, &["status"]));
            let status = status.unwrap_or_else(|error| format!("{error:#}"));
            let name = side.name();
            let _ = fs::write(kept.join(format!("{name}.log")), &log);
            let _ = fs::write(kept.join(format!("{name}.status")), &status);
            let _ = fs::copy(self.path("vm.toml"), kept.join("vm.toml"));
            let log = tail(&log, LOG_LINES_MAX);
            shown += &format!(
                "--- {name}: log\n{log}\n--- {name}: status\n{}\n",
                status.trim_end()
            );
        }
        shown
    }
}

/// Writes a file that its owner alone may read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    File::create(path)?.write_all(text.as_bytes())?;
    make_private(path)
}

/// Lets its owner alone read a file.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

/// Fills a file system: a new file takes all the room, and `filled`, which others write to,
/// the rest of its last page.
pub(crate) fn fill(directory: &Path, filled: &[&str]) -> Result<()> {
    for name in [&["filler"], filled].concat() {
        let path = directory.join(name);
        let mut file = File::options().append(true).create(true).open(&path)?;
        for bytes in [64 << 10, 4096, 1] {
            let block = vec![0; bytes];
            while file.write_all(&block).is_ok() {}
        }
        ensure!(file.write(&[0]).is_err(), "{} can still grow", path.display());
    }
    Ok(())
}

/// Ends a [`fill`].
pub(crate) fn make_room(directory: &Path) -> Result<()> {
    Ok(fs::remove_file(directory.join("filler"))?)
}

/// Runs lines of the shell, for what is done to the machine and not to a host.
pub(crate) fn shell(script: &str) -> Result<()> {
    run_quietly(Command::new("/bin/sh").args(["-ec", script]))
}
