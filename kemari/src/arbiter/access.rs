//! How a cluster is spoken to: whose certificates count, which one is shown, and as which user. Files are
//! replaced while a side lives (certificates are renewed, passwords changed), so an access knows what it was
//! read from.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};

use super::OpenError;
use crate::config::Arbiter;

/// What a client of etcd has. The default: plain HTTP, without a user.
#[derive(Clone, Default)]
pub struct Access {
    /// For `https` endpoints.
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) user: Option<User>,
    source: Option<Arc<Source>>,
}

/// The files behind an access, and how they were when it was read.
struct Source {
    section: Arbiter,
    stamps: Vec<Option<Stamp>>,
}

/// What changes when a file is written or another one takes its name: device, inode, length in bytes, and the
/// times of its last change in seconds and nanoseconds (a mode that was mended counts as well).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp([i64; 7]);

impl Stamp {
    /// `None`: the file cannot be looked at.
    fn of(path: &Path) -> Option<Self> {
        let seen = fs::metadata(path).ok()?;
        Some(Self([
            seen.dev() as i64,
            seen.ino() as i64,
            seen.size() as i64,
            seen.mtime(),
            seen.mtime_nsec(),
            seen.ctime(),
            seen.ctime_nsec(),
        ]))
    }
}

fn files(section: &Arbiter) -> Vec<PathBuf> {
    let named = [
        &section.ca,
        &section.certificate,
        &section.key,
        &section.password_file,
    ];
    named.into_iter().flatten().cloned().collect()
}

fn stamps(section: &Arbiter) -> Vec<Option<Stamp>> {
    files(section).iter().map(|path| Stamp::of(path)).collect()
}

/// A user of etcd.
#[derive(Clone)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: String,
}

impl Access {
    /// Reads the files that `arbiter` names.
    pub fn of(arbiter: &Arbiter) -> Result<Self, OpenError> {
        // Looked at before they are read: what changes meanwhile is read again.
        let stamps = stamps(arbiter);
        let tls = match &arbiter.ca {
            None => None,
            Some(ca) => Some(Arc::new(tls(
                ca,
                arbiter.certificate.as_deref(),
                arbiter.key.as_deref(),
            )?)),
        };
        let user = match (&arbiter.user, &arbiter.password_file) {
            (Some(name), Some(path)) => {
                check_private(path)?;
                let password = fs::read_to_string(path).map_err(|error| unusable(path, error))?;
                Some(User {
                    name: name.clone(),
                    password: password.trim_end_matches(['\r', '\n']).to_owned(),
                })
            }
            _ => None,
        };
        Ok(Self {
            tls,
            user,
            source: Some(Arc::new(Source {
                section: arbiter.clone(),
                stamps,
            })),
        })
    }

    /// Whether there are files that may change.
    pub(super) fn has_files(&self) -> bool {
        self.source
            .as_ref()
            .is_some_and(|source| !source.stamps.is_empty())
    }

    /// The access that the files give now, if they have changed since this one was read.
    pub(super) fn renewed(&self) -> Option<Result<Self, OpenError>> {
        let source = self.source.as_ref()?;
        (stamps(&source.section) != source.stamps).then(|| Self::of(&source.section))
    }
}

fn unusable(path: &Path, reason: impl ToString) -> OpenError {
    OpenError::File {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Refuses a secret that other users can read.
fn check_private(path: &Path) -> Result<(), OpenError> {
    let mode = fs::metadata(path)
        .map_err(|error| unusable(path, error))?
        .permissions()
        .mode();
    match mode & 0o077 {
        0 => Ok(()),
        _ => Err(unusable(path, "other users can read it: `chmod 600` it")),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(path, "it holds no certificate in PEM")),
        Err(error) => Err(unusable(path, error)),
    }
}

fn tls(ca: &Path, certificate: Option<&Path>, key: Option<&Path>) -> Result<ClientConfig, OpenError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(ca)? {
        roots.add(root).map_err(|error| unusable(ca, error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unusable(ca, error))?
        .with_root_certificates(roots);
    let mut config = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            check_private(key)?;
            let chain = certificates(certificate)?;
            let read = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error))?;
            builder
                .with_client_auth_cert(chain, read)
                .map_err(|error| unusable(certificate, error))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_anybody_else_can_read_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (mode, is_private) in [
            (0o600, true),
            (0o400, true),
            (0o640, false),
            (0o604, false),
            (0o620, false),
        ] {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).expect("its mode");
            assert_eq!(check_private(file.path()).is_ok(), is_private, "{mode:o}");
        }
    }

    #[test]
    fn a_file_that_was_written_replaced_or_opened_to_others_is_another() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, aside) = (directory.path().join("key"), directory.path().join("aside"));
        let mut seen = vec![Stamp::of(&path)];
        assert!(seen[0].is_none());
        let mut is_new = || {
            let stamp = Stamp::of(&path);
            let is_new = seen.iter().all(|known| *known != stamp);
            seen.push(stamp);
            is_new
        };
        fs::write(&path, "one").expect("a file");
        assert!(is_new() && !is_new());
        fs::write(&aside, "one").expect("a file");
        fs::rename(&aside, &path).expect("another name");
        assert!(is_new(), "another file of the same length");
        fs::write(&path, "three").expect("a file");
        assert!(is_new(), "another length");
    }
}
