//! The place of a control socket in the file system.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::ServerError;

/// Longest path of a socket in bytes: `sun_path` of unix(7), with its zero.
const PATH_BYTES_MAX: usize = 107;
/// Names that are tried for a socket before it is in its place.
const ATTEMPTS_MAX: u32 = 16;

/// A socket that was put in its place.
pub(crate) struct Place {
    path: PathBuf,
    /// Device and inode of the socket.
    file: (u64, u64),
}

/// What is in the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The socket.
    It,
    /// Nothing: somebody cleaned up.
    Nothing,
    /// Something else.
    Another,
}

impl Place {
    /// Makes a socket and puts it there, where a dead process may have left one.
    pub(super) fn take(path: &Path) -> Result<(UnixListener, Self), ServerError> {
        check(path)?;
        clear(path)?;
        let failed = |source| ServerError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        // Bound under a name nobody knows and made private before it appears: it is never open to others.
        let (listener, aside) = bind_aside(path).map_err(failed)?;
        let placed = fs::set_permissions(&aside, Permissions::from_mode(0o600))
            .and_then(|()| fs::symlink_metadata(&aside))
            .and_then(|metadata| fs::rename(&aside, path).map(|()| (metadata.dev(), metadata.ino())));
        match placed {
            Ok(file) => Ok((
                listener,
                Self {
                    path: path.to_owned(),
                    file,
                },
            )),
            Err(error) => {
                // The error that counts is the first one.
                let _ = fs::remove_file(&aside);
                Err(failed(error))
            }
        }
    }

    /// Looks what is there now.
    pub(super) fn look(&self) -> Found {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.file => Found::It,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
            _ => Found::Another,
        }
    }

    /// Removes the socket, if it is there.
    pub(super) fn leave(&self) {
        if self.look() == Found::It
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!("cannot remove the control socket: {error}");
        }
    }
}

/// Whether a socket could have this path, with the name that it has at first.
///
/// # Errors
/// If it is too long.
pub(super) fn check(path: &Path) -> Result<(), ServerError> {
    let bytes = |path: &Path| path.as_os_str().as_bytes().len();
    let longest = bytes(path).max(bytes(&aside(path, 0)));
    match longest > PATH_BYTES_MAX {
        true => Err(ServerError::TooLong {
            path: path.to_owned(),
            excess: longest - PATH_BYTES_MAX,
        }),
        false => Ok(()),
    }
}

/// A name beside `path` that is as short as most. All of them have the same length.
fn aside(path: &Path, number: u16) -> PathBuf {
    path.with_file_name(format!(".{number:04x}"))
}

fn bind_aside(path: &Path) -> io::Result<(UnixListener, PathBuf)> {
    let mut attempt = 0;
    loop {
        let aside = aside(path, rand::random());
        attempt += 1;
        match UnixListener::bind(&aside) {
            // One that a dead process left.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < ATTEMPTS_MAX => {}
            result => return result.map(|listener| (listener, aside)),
        }
    }
}

fn clear(path: &Path) -> Result<(), ServerError> {
    let failed = |source| ServerError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServerError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(ServerError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_as_long_as_it_may_be_and_no_longer() {
        let directory = tempfile::tempdir().unwrap();
        let fill = PATH_BYTES_MAX - directory.path().as_os_str().len() - 1;
        let longest = directory.path().join("s".repeat(fill));
        let (_listener, place) = Place::take(&longest).unwrap();
        assert_eq!(place.look(), Found::It);
        let longer = directory.path().join("s".repeat(fill + 3));
        assert!(matches!(
            check(&longer),
            Err(ServerError::TooLong { excess: 3, .. })
        ));
        // Here it is the name at first that is too long.
        let deep = directory.path().join("d".repeat(fill - 3)).join("s");
        assert!(matches!(
            check(&deep),
            Err(ServerError::TooLong { excess: 3, .. })
        ));
    }

    #[test]
    fn only_the_own_socket_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let (_listener, place) = Place::take(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(place.look(), Found::Nothing);
        let (_other, its_place) = Place::take(&path).unwrap();
        assert_eq!(place.look(), Found::Another);
        place.leave();
        assert_eq!(its_place.look(), Found::It);
        its_place.leave();
        assert!(!path.exists());
    }
}
