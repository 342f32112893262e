//! An NFS server outside the hosts, for an arbiter of files.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::error::{Context, Error, Result, tail};
use crate::netns::Netns;
use crate::network::OUTSIDE_CONTROL;
use crate::packages::{ensure_installed, tool};
use crate::process::Process;
use crate::scratch::scratch_dir;

/// Its port (`image/host-nfs.sh` relies on the default).
const PORT: u16 = 2049;
/// The program and its package: NFS-Ganesha, which serves from user space.
const PROGRAM: (&str, &str) = ("ganesha.nfsd", "nfs-ganesha-vfs");
/// Longest wait until it listens; measured: 1 s.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running NFS 4 server; killed when dropped. Inside a host `lab-nfs DIRECTORY` mounts what it serves.
#[derive(Debug)]
pub struct Nfs {
    process: Process,
    dir: TempDir,
}

impl Nfs {
    /// Serves an empty directory, and waits until it listens. Needs root, and apt the first time.
    pub(crate) fn start(outside: &Netns) -> Result<Nfs> {
        ensure_installed(&[PROGRAM])?;
        let dir = scratch_dir()?;
        let path = |name: &str| dir.path().join(name);
        for name in ["export", "recovery"] {
            fs::create_dir(path(name)).context(|| format!("make {}", path(name).display()))?;
        }
        let text = config(&path("export"), &path("recovery"));
        fs::write(path("config"), text).context(|| "write the NFS server's configuration".into())?;
        let log = File::create(path("out")).context(|| "make the NFS server's log".into())?;
        let mut command = outside.command(tool(PROGRAM.0));
        command.arg("-F");
        for (option, name) in [("-f", "config"), ("-L", "log"), ("-p", "pid")] {
            command.arg(option).arg(path(name));
        }
        command
            .stdout(log.try_clone().context(|| "share the NFS server's log".into())?)
            .stderr(log);
        let mut nfs = Nfs {
            process: Process::spawn("the NFS server", command)?,
            dir,
        };
        let deadline = Instant::now() + START_LIMIT;
        while outside
            .run(|| TcpStream::connect((OUTSIDE_CONTROL, PORT)))?
            .is_err()
        {
            if Instant::now() >= deadline || !nfs.process.is_running() {
                return Err(Error::Timeout {
                    what: "the NFS server did not start".into(),
                    waited: START_LIMIT,
                    log_tail: tail(&nfs.log(), 20),
                });
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(nfs)
    }

    /// The directory that it serves, as this machine sees it.
    pub fn directory(&self) -> PathBuf {
        self.dir.path().join("export")
    }

    /// Stops answering (SIGSTOP), with connections left open.
    pub fn pause(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Ends a [`Nfs::pause`].
    pub fn resume(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        read("log") + &read("out")
    }
}

fn config(export: &Path, recovery: &Path) -> String {
    format!(
        "NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = {PORT}; Enable_NLM = false; Enable_RQUOTA = false; }}\n\
         NFSv4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = {}; Only_Numeric_Owners = true; }}\n\
         EXPORT {{ Export_Id = 1; Path = {}; Pseudo = /kemari; Access_Type = RW; Squash = No_Root_Squash; \
         SecType = sys; Protocols = 4; Transports = TCP; FSAL {{ Name = VFS; }} }}\n",
        recovery.display(),
        export.display(),
    )
}
