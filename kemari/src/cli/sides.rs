//! The sides of VMs that run on this machine, found by their control sockets.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::control::{Client, ClientError, Status};

/// Where control sockets are by default.
const DIRECTORY: &str = "/run/kemari";
/// Names another directory, beside which nowhere is looked.
const DIRECTORY_VARIABLE: &str = "KEMARI_RUN";
/// Longest time in which a side must say how it stands, to be listed with that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Sides that are asked at a time: one that hangs holds up no other.
const ASKED_MAX: usize = 32;
/// Sockets that are looked at.
const SOCKETS_MAX: usize = 4096;
/// Of /proc/net/unix: the flag of a socket that somebody listens at.
const LISTENS: u32 = 1 << 16;

/// A side that runs here, or something that listens where one would.
#[derive(Debug)]
pub struct Side {
    /// Its control socket.
    pub socket: PathBuf,
    /// How it stands, or why it does not say.
    pub answer: Result<Status, ClientError>,
}

impl Side {
    /// The name of its VM; of a side that does not answer, that of its socket.
    pub fn vm(&self) -> String {
        match &self.answer {
            Ok(status) => status.vm.clone(),
            Err(_) => self
                .socket
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        }
    }

    /// The name of its host in the configuration, if it says so.
    pub fn host(&self) -> Option<&str> {
        self.answer.as_ref().ok().map(|status| status.host.as_str())
    }

    /// How a person would name it.
    pub fn name(&self) -> String {
        match self.host() {
            Some(host) => format!("`{}` on `{host}`", self.vm()),
            None => format!("`{}` at {}", self.vm(), self.socket.display()),
        }
    }

    /// Speaks to it.
    pub fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

/// The directory that is looked into.
pub fn directory() -> PathBuf {
    std::env::var_os(DIRECTORY_VARIABLE).map_or_else(|| DIRECTORY.into(), PathBuf::from)
}

/// All sides on this machine, by VM and host. A socket that a dead process left is none.
pub fn all() -> anyhow::Result<Vec<Side>> {
    all_within(ANSWER_TIMEOUT)
}

/// The same, where each side must answer within that time.
pub fn all_within(timeout: Duration) -> anyhow::Result<Vec<Side>> {
    let sockets = sockets()?;
    let mut sides = Vec::new();
    for some in sockets.chunks(ASKED_MAX) {
        thread::scope(|scope| {
            let asked: Vec<_> = some
                .iter()
                .map(|socket| scope.spawn(move || ask(socket, timeout)))
                .collect();
            // A panic ends the process.
            sides.extend(asked.into_iter().filter_map(|asked| asked.join().ok().flatten()));
        });
    }
    sides.sort_by_cached_key(|side: &Side| (side.vm(), side.host().map(str::to_owned), side.socket.clone()));
    Ok(sides)
}

fn ask(socket: &Path, timeout: Duration) -> Option<Side> {
    let answer = Client::new(socket).status_within(timeout);
    let is_stale = matches!(answer, Err(ClientError::NotRunning { .. }));
    (!is_stale).then(|| Side {
        socket: socket.to_owned(),
        answer,
    })
}

/// Where sides may listen: the sockets in the directory and in those below it and, unless another directory was named,
/// those in any directory where the kernel knows of one that was made as Kemari makes them.
fn sockets() -> anyhow::Result<Vec<PathBuf>> {
    let top = directory();
    let failed = || format!("cannot look for control sockets in {}", top.display());
    let mut found = match look_into(&top) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        found => found.with_context(failed)?,
    };
    let below = found
        .extract_if(.., |(_, metadata)| metadata.is_dir())
        .collect::<Vec<_>>();
    // One that another user keeps to itself is that user's.
    found.extend(
        below
            .iter()
            .flat_map(|(path, _)| look_into(path).unwrap_or_default()),
    );
    if std::env::var_os(DIRECTORY_VARIABLE).is_none() {
        found.extend(elsewhere());
    }
    let mut seen = BTreeSet::new();
    found.retain(|(_, metadata)| {
        metadata.file_type().is_socket() && seen.insert((metadata.dev(), metadata.ino()))
    });
    found.truncate(SOCKETS_MAX);
    Ok(found.into_iter().map(|(path, _)| path).collect())
}

/// What is in a directory, but for hidden files.
fn look_into(directory: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    let names = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(names
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
        })
        .filter_map(|path| fs::metadata(&path).ok().map(|metadata| (path, metadata)))
        .collect())
}

/// Sockets of sides whose `control` is elsewhere. Only those of root and of this user: others could pretend to be a VM.
fn elsewhere() -> Vec<(PathBuf, Metadata)> {
    let own = rustix::process::geteuid().as_raw();
    // A machine without this file has no Unix sockets.
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let directories: BTreeSet<&Path> = text.lines().filter_map(directory_of_side).collect();
    directories
        .iter()
        .flat_map(|directory| look_into(directory).unwrap_or_default())
        .filter(|(_, metadata)| metadata.uid() == 0 || metadata.uid() == own)
        .collect()
}

/// The directory of a socket, from its line in /proc/net/unix, if it was made as a side makes its own: under a dot and
/// four digits. The kernel keeps the name that a socket had at first.
fn directory_of_side(line: &str) -> Option<&Path> {
    let mut rest = line;
    let mut field = || {
        let (field, after) = rest.trim_start().split_once(' ')?;
        rest = after;
        Some(field)
    };
    let flags = u32::from_str_radix(
        field()
            .and_then(|_| field())
            .and_then(|_| field())
            .and_then(|_| field())?,
        16,
    )
    .ok()?;
    field().and_then(|_| field()).and_then(|_| field())?;
    let path = Path::new(rest);
    let digits = path.file_name()?.to_str()?.strip_prefix('.')?;
    let is_one = digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    (flags & LISTENS != 0 && is_one && path.is_absolute()).then(|| path.parent())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_directories_of_sides() {
        let line = |flags: &str, path: &str| {
            let line = format!("00000000e6a1c2b3: 00000002 00000000 {flags} 0001 01 3141592 {path}");
            directory_of_side(&line).map(Path::to_owned)
        };
        assert_eq!(line("00010000", "/srv/db/.01af"), Some("/srv/db".into()));
        assert_eq!(line("00010000", "/srv/my vms/.01af"), Some("/srv/my vms".into()));
        assert_eq!(line("00000000", "/srv/db/.01af"), None, "nobody listens");
        for path in [
            "/srv/db/x.sock",
            "/srv/db/.01a",
            "/srv/db/.x1af",
            "@/srv/.01af",
            ".01af",
            "",
        ] {
            assert_eq!(line("00010000", path), None, "{path}");
        }
        assert_eq!(
            directory_of_side("Num       RefCount Protocol Flags    Type St Inode Path"),
            None
        );
        assert_eq!(directory_of_side("00: 2 0 10000 1 1 7"), None, "it has no name");
    }
}
