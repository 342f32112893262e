//! A host's identity over time: files that are replaced take effect at the next connection,
//! without a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::identity::{CERTIFICATE_FILE, Identity, IdentityError};

/// The certificates in a directory, as they were last read.
pub struct Credentials {
    directory: PathBuf,
    host: String,
    last: Mutex<Last>,
}

struct Last {
    changed: Option<SystemTime>,
    identity: Arc<Identity>,
}

impl Credentials {
    /// Reads the certificates of `host` in `directory`; see [`Identity::load`].
    pub fn load(directory: &Path, host: &str) -> Result<Self, IdentityError> {
        let changed = changed(directory);
        let identity = Arc::new(Identity::load(directory, host)?);
        let last = Mutex::new(Last { changed, identity });
        Ok(Self {
            directory: directory.to_owned(),
            host: host.to_owned(),
            last,
        })
    }

    /// The identity now. Certificates that were replaced are read again; if they are no good,
    /// the last good ones stay.
    pub fn identity(&self) -> Arc<Identity> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changed(&self.directory);
        if now != last.changed {
            last.changed = now;
            match Identity::load(&self.directory, &self.host) {
                Ok(identity) => {
                    tracing::info!("the certificates in {} were replaced", self.directory.display());
                    last.identity = Arc::new(identity);
                }
                Err(error) => {
                    tracing::warn!(
                        "the old certificates stay in use: {:#}",
                        anyhow::Error::from(error)
                    );
                }
            }
        }
        last.identity.clone()
    }
}

/// When the certificate, which should be replaced last, was changed.
fn changed(directory: &Path) -> Option<SystemTime> {
    std::fs::metadata(directory.join(CERTIFICATE_FILE))
        .and_then(|file| file.modified())
        .ok()
}
