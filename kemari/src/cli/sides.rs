//! The sides of VMs that run on this machine, found by their control sockets.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::config::is_name;
use crate::control::{Client, ClientError, Status};

/// Where control sockets are by default.
const DIRECTORY: &str = "/run/kemari";
/// Names another directory, beside which nowhere is looked.
const DIRECTORY_VARIABLE: &str = "KEMARI_RUN";
/// Longest time in which a side must say how it stands, to be listed with that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Times as long all of them together may take.
const ROUNDS_MAX: u32 = 4;
/// Sides that are asked at a time: one that hangs holds up no other.
const ASKED_MAX: usize = 32;
/// Sockets that are looked at.
const SOCKETS_MAX: usize = 4096;
/// Names in a directory that are looked at, whatever they are, and in all directories together.
const ENTRIES_MAX: usize = 4096;
const ENTRIES_IN_ALL_MAX: usize = 1 << 16;
/// Directories elsewhere in which there are sockets as a side makes them.
const DIRECTORIES_MAX: usize = 256;
/// Of /proc/net/unix: the flag of a socket that somebody listens at.
const LISTENS: u32 = 1 << 16;

/// A side that runs here, or something that listens where one would.
#[derive(Debug)]
pub(super) struct Side {
    /// Its control socket.
    pub socket: PathBuf,
    /// Whose that is.
    pub owner: u32,
    /// How it stands, or why it does not say.
    pub answer: Result<Status, ClientError>,
}

impl Side {
    /// The name of its VM; of a side that does not answer, that of its socket.
    pub(super) fn vm(&self) -> String {
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
    pub(super) fn host(&self) -> Option<&str> {
        self.answer.as_ref().ok().map(|status| status.host.as_str())
    }

    /// How a person would name it.
    pub(super) fn name(&self) -> String {
        match self.host() {
            Some(host) => format!("`{}` on `{host}`", self.vm()),
            None => format!("`{}` at {}", self.vm(), self.socket.display()),
        }
    }

    /// Speaks to it.
    pub(super) fn client(&self) -> Client {
        Client::found(&self.socket, self.owner)
    }
}

/// A socket where a side may listen.
struct Socket {
    path: PathBuf,
    owner: u32,
    /// Whether it is where nothing else is: who does not answer is a side, too.
    is_among_sides: bool,
}

/// The directory that is looked into.
pub(super) fn directory() -> PathBuf {
    std::env::var_os(DIRECTORY_VARIABLE).map_or_else(|| DIRECTORY.into(), PathBuf::from)
}

/// All sides on this machine, by VM and host. A socket that a dead process left is none.
pub(super) fn all() -> anyhow::Result<Vec<Side>> {
    all_within(ANSWER_TIMEOUT)
}

/// The same, where each side must answer within that time.
pub(crate) fn all_within(timeout: Duration) -> anyhow::Result<Vec<Side>> {
    let sockets = sockets()?;
    let deadline = Instant::now() + timeout * ROUNDS_MAX;
    let mut sides = Vec::new();
    for some in sockets.chunks(ASKED_MAX) {
        thread::scope(|scope| {
            let asked: Vec<_> = some
                .iter()
                .map(|socket| scope.spawn(move || ask(socket, timeout, deadline)))
                .collect();
            // A panic ends the process.
            sides.extend(asked.into_iter().filter_map(|asked| asked.join().ok().flatten()));
        });
    }
    sides.sort_by_cached_key(|side: &Side| (side.vm(), side.host().map(str::to_owned), side.socket.clone()));
    Ok(sides)
}

fn ask(socket: &Socket, timeout: Duration, deadline: Instant) -> Option<Side> {
    let left = deadline.saturating_duration_since(Instant::now());
    let answer = Client::found(&socket.path, socket.owner)
        .status_within(timeout.min(left))
        .and_then(|status| match is_name(&status.vm) && is_name(&status.host) {
            true => Ok(status),
            false => Err(ClientError::OtherVersion(socket.path.clone())),
        });
    let is_side = match &answer {
        // A side that has too many clients says so.
        Ok(_) | Err(ClientError::Refused(_)) => true,
        Err(ClientError::NotRunning { .. } | ClientError::Stranger { .. }) => false,
        Err(_) => socket.is_among_sides,
    };
    is_side.then(|| Side {
        socket: socket.path.clone(),
        owner: socket.owner,
        answer,
    })
}

/// Where sides may listen: the sockets in the directory and in those below it and, unless another directory
/// was named, those in any directory where the kernel knows of one that was made as Kemari makes them.
fn sockets() -> anyhow::Result<Vec<Socket>> {
    let top = directory();
    let mut looks = Looks::default();
    let failed = || format!("cannot look for control sockets in {}", top.display());
    let mut found = match looks.look_into(&top) {
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
            .flat_map(|(path, _)| looks.look_into(path).unwrap_or_default()),
    );
    let among_sides = found.len();
    // A crowd in there, where a VM's user may make what it likes, hides nobody elsewhere.
    let mut looks_elsewhere = Looks::default();
    if std::env::var_os(DIRECTORY_VARIABLE).is_none() {
        found.extend(elsewhere(&mut looks_elsewhere));
    }
    let mut seen = BTreeSet::new();
    let mut sockets: Vec<_> = found
        .into_iter()
        .enumerate()
        .filter(|(_, (_, metadata))| {
            metadata.file_type().is_socket() && seen.insert((metadata.dev(), metadata.ino()))
        })
        .map(|(index, (path, metadata))| Socket {
            path,
            owner: metadata.uid(),
            is_among_sides: index < among_sides,
        })
        .collect();
    if looks.were_cut || looks_elsewhere.were_cut || sockets.len() > SOCKETS_MAX {
        tracing::error!(
            "there are too many files where sides may be, and not all were looked at: name one that is \
             missing by its configuration, or by --socket"
        );
    }
    sockets.truncate(SOCKETS_MAX);
    Ok(sockets)
}

/// Looks into directories, and no longer than a limit.
struct Looks {
    /// Names that may be looked at still.
    left: usize,
    /// Whether there was more than was looked at.
    were_cut: bool,
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            left: ENTRIES_IN_ALL_MAX,
            were_cut: false,
        }
    }
}

impl Looks {
    /// What is in a directory, but for hidden files, and for names that are no text or would steer a
    /// terminal.
    fn look_into(&mut self, directory: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
        let is_plain = |path: &Path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| !name.starts_with('.') && !name.contains(char::is_control))
        };
        let mut entries = fs::read_dir(directory)?;
        let some: Vec<_> = entries.by_ref().take(ENTRIES_MAX.min(self.left)).collect();
        self.left -= some.len();
        self.were_cut |= entries.next().is_some();
        Ok(some
            .into_iter()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| is_plain(path))
            .filter_map(|path| fs::symlink_metadata(&path).ok().map(|metadata| (path, metadata)))
            .collect())
    }

    /// The sockets in these directories that a side may have made.
    fn sockets_in<'a>(&mut self, directories: impl Iterator<Item = &'a Path>) -> Vec<(PathBuf, Metadata)> {
        let mut found = Vec::new();
        let mut with_sockets = 0;
        for directory in directories.filter(|directory| is_safe(directory)) {
            if with_sockets == DIRECTORIES_MAX {
                self.were_cut = true;
                break;
            }
            let mut sockets = self.look_into(directory).unwrap_or_default();
            // A side makes its socket for its user alone.
            sockets.retain(|(_, metadata)| {
                metadata.file_type().is_socket() && is_ours(metadata) && metadata.mode() & 0o077 == 0
            });
            with_sockets += usize::from(!sockets.is_empty());
            found.extend(sockets);
        }
        found
    }
}

/// Sockets of sides whose `control` is elsewhere. Anybody can have the kernel name a directory: only what
/// nobody but root and this user can have made counts.
fn elsewhere(looks: &mut Looks) -> Vec<(PathBuf, Metadata)> {
    // A machine without this file has no Unix sockets; a name in it may be no text.
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    let text = String::from_utf8_lossy(&table);
    let directories: BTreeSet<&Path> = text.lines().filter_map(directory_of_side).collect();
    looks.sockets_in(directories.into_iter())
}

/// Whether nobody but root and this user decides what is in the directory, nor which directory that is.
fn is_safe(directory: &Path) -> bool {
    let is_closed = |path: &Path, metadata: &Metadata| {
        // In a sticky one others can add names, and not replace those of root and of this user.
        let is_sticky = path != directory && metadata.mode() & 0o1000 != 0;
        metadata.is_symlink() || is_sticky || metadata.mode() & 0o022 == 0
    };
    let is_safe = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|metadata| is_ours(&metadata) && is_closed(path, &metadata))
    };
    if !directory.ancestors().all(is_safe) {
        return false;
    }
    match fs::canonicalize(directory) {
        Ok(real) if real == directory => true,
        Ok(real) => self::is_safe(&real),
        Err(_) => false,
    }
}

fn is_ours(metadata: &Metadata) -> bool {
    metadata.uid() == 0 || metadata.uid() == rustix::process::geteuid().as_raw()
}

/// The directory of a socket, from its line in /proc/net/unix, if it was made as a side makes its own: under
/// a dot and four digits. The kernel keeps the name that a socket had at first.
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
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_directory_that_another_user_could_change_is_not_looked_into() {
        let tree = tempfile::tempdir().unwrap();
        let (above, inner) = (tree.path().join("above"), tree.path().join("above/inner"));
        fs::create_dir_all(&inner).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let modes = [
            (0o755, 0o700, true),
            (0o755, 0o755, true),
            (0o1777, 0o755, true),
            (0o755, 0o777, false),
            (0o755, 0o770, false),
            (0o755, 0o1777, false),
            (0o777, 0o755, false),
        ];
        for (of_above, of_inner, safe) in modes {
            set(&above, of_above);
            set(&inner, of_inner);
            assert_eq!(is_safe(&inner), safe, "{of_above:o} {of_inner:o}");
        }
        set(&above, 0o755);
        set(&inner, 0o755);
        let link = tree.path().join("link");
        symlink(&inner, &link).unwrap();
        assert!(is_safe(&link));
        set(&inner, 0o1777);
        assert!(!is_safe(&link), "what a link leads to counts");
        set(&inner, 0o755);
        assert!(!is_safe(&tree.path().join("none")));
        assert!(rustix::process::geteuid().is_root(), "this test wants root");
        std::os::unix::fs::lchown(&link, Some(65_533), None).unwrap();
        assert!(!is_safe(&link), "another user's link");
        chown(&above, Some(65_533), None).unwrap();
        assert!(!is_safe(&inner), "below another user's directory");
    }

    #[test]
    fn directories_without_a_socket_hide_none_and_what_was_not_looked_at_is_noticed() {
        let tree = tempfile::tempdir().unwrap();
        let mut directories: Vec<_> = (0..=DIRECTORIES_MAX)
            .map(|number| tree.path().join(format!("{number:03}")))
            .collect();
        directories.push(tree.path().join("last"));
        for directory in &directories {
            fs::create_dir(directory).unwrap();
            fs::set_permissions(directory, Permissions::from_mode(0o700)).unwrap();
            fs::write(directory.join("a"), "").unwrap();
        }
        let bind = |directory: &Path| {
            let socket = directory.join("vm.sock");
            let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            fs::set_permissions(&socket, Permissions::from_mode(0o600)).unwrap();
            listener
        };
        let look = |mut looks: Looks| {
            let found = looks.sockets_in(directories.iter().map(PathBuf::as_path));
            (found.len(), looks.were_cut)
        };
        let _socket = bind(directories.last().unwrap());
        assert_eq!(look(Looks::default()), (1, false));
        let limited = |left| Looks {
            left,
            were_cut: false,
        };
        assert_eq!(look(limited(directories.len() + 1)), (1, false));
        assert_eq!(look(limited(directories.len() - 1)), (0, true));
        let _sockets: Vec<_> = directories[..DIRECTORIES_MAX]
            .iter()
            .map(|directory| bind(directory))
            .collect();
        assert_eq!(look(Looks::default()), (DIRECTORIES_MAX, true));
    }

    #[test]
    fn links_and_names_that_would_steer_a_terminal_are_passed_over() {
        let tree = tempfile::tempdir().unwrap();
        let make = |name: &str| std::os::unix::net::UnixListener::bind(tree.path().join(name)).unwrap();
        let _sockets = [make("vm.sock"), make(".hidden"), make("\u{1b}[2J.sock")];
        symlink(tree.path().join("vm.sock"), tree.path().join("link.sock")).unwrap();
        let found = Looks::default().look_into(tree.path()).unwrap();
        let sockets = found
            .iter()
            .filter(|(_, metadata)| metadata.file_type().is_socket());
        let paths: Vec<_> = sockets.map(|(path, _)| path.clone()).collect();
        assert_eq!(paths, [tree.path().join("vm.sock")]);
    }

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
