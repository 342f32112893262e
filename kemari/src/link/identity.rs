//! Who a host is: its certificate, its key, and the authority that its peers' certificates must come from.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig};

use super::refusal::certificate as why;
use super::validity::ends_s;
use crate::config::certificate_name;

/// The authority's certificate, in a host's directory.
pub const CA_FILE: &str = "ca.pem";
/// The host's certificate, in its directory.
pub const CERTIFICATE_FILE: &str = "host.pem";
/// The key of the host's certificate, in its directory.
pub const KEY_FILE: &str = "host.key";

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is not there, or is no PEM.
    #[error(
        "{} cannot be read ({reason}): `certificates` must name a directory with {CA_FILE}, \
         {CERTIFICATE_FILE} and {KEY_FILE}, as `kemari certs` makes them",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Others may read the key.
    #[error(
        "the key {} can be read by other users: `chmod 600` it, and make a new set if somebody may have",
        .0.display()
    )]
    KeyOpen(PathBuf),
    /// Key and certificate, or the authority, do not go together.
    #[error("the certificates in {} cannot be used: {reason}", directory.display())]
    Unusable {
        /// Where they are.
        directory: PathBuf,
        /// Why.
        reason: String,
    },
}

/// A host's certificate, and what it takes from others.
pub struct Identity {
    host: String,
    chain: Vec<CertificateDer<'static>>,
    /// When what it hangs on ends, in seconds since 1970.
    ends_s: Vec<(&'static str, u64)>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    checks_servers: Arc<WebPkiServerVerifier>,
    checks_clients: Arc<dyn ClientCertVerifier>,
}

impl Identity {
    /// Reads the three files in `directory`, and checks that others will take them for `host` now.
    pub fn load(directory: &Path, host: &str) -> Result<Self, IdentityError> {
        let unusable = |reason: String| IdentityError::Unusable {
            directory: directory.to_owned(),
            reason,
        };
        let failed = |error: Error| unusable(error.to_string());
        let (ca, chain) = (
            certificates(&directory.join(CA_FILE))?,
            certificates(&directory.join(CERTIFICATE_FILE))?,
        );
        let key = key(&directory.join(KEY_FILE))?;
        // While an authority is replaced there are two, and the new one counts; of those between,
        // the first that ends.
        let of_authority = ca.iter().filter_map(|certificate| ends_s(certificate)).max();
        let of_host = chain.iter().filter_map(|certificate| ends_s(certificate)).min();
        let ends_s = [(CERTIFICATE_FILE, of_host), (CA_FILE, of_authority)];
        let mut roots = RootCertStore::empty();
        for certificate in ca {
            roots.add(certificate).map_err(failed)?;
        }
        let (roots, provider) = (Arc::new(roots), provider());
        let checks_servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let checks_clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(failed)?
            .with_client_cert_verifier(checks_clients.clone())
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(failed)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(failed)?
            .with_webpki_verifier(checks_servers.clone())
            .with_client_auth_cert(chain.clone(), key)
            .map_err(failed)?;
        // Each connection shows its certificates anew: nothing outlives one.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let (server, client) = (Arc::new(server), Arc::new(client));
        let identity = Self {
            host: host.to_owned(),
            chain,
            ends_s: ends_s
                .into_iter()
                .filter_map(|(file, ends)| Some((file, ends?)))
                .collect(),
            server,
            client,
            checks_servers,
            checks_clients,
        };
        identity.check_after(Duration::ZERO).map_err(unusable)?;
        Ok(identity)
    }

    /// Whether peers will take this certificate for the host so long from now; if not, why.
    pub fn check_after(&self, duration: Duration) -> Result<(), String> {
        let then = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + duration);
        let name = ServerName::DnsName(certificate_name(&self.host)?);
        let Some((own, between)) = self.chain.split_first() else {
            return Err(format!("{CERTIFICATE_FILE} holds no certificate"));
        };
        let as_client = self
            .checks_clients
            .verify_client_cert(own, between, then)
            .map(drop);
        let as_server = self
            .checks_servers
            .verify_server_cert(own, between, &name, &[], then)
            .map(drop);
        as_client.and(as_server).map_err(|error| match error {
            Error::InvalidCertificate(reason) => {
                format!(
                    "{CERTIFICATE_FILE} is no good for the host `{}`: {}",
                    self.host,
                    why(&reason)
                )
            }
            other => other.to_string(),
        })
    }

    /// When this host's certificate and the authority's end, in seconds since 1970,
    /// each with its file's name.
    pub(crate) fn ends_s(&self) -> &[(&'static str, u64)] {
        &self.ends_s
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}

/// ring, with the cipher first that it is fastest at.
fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider {
        cipher_suites,
        ..default_provider()
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let unreadable = |reason: String| IdentityError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let found = CertificateDer::pem_file_iter(path)
        .and_then(|iter| iter.collect::<Result<Vec<_>, _>>())
        .map_err(|error| unreadable(error.to_string()))?;
    match found.is_empty() {
        true => Err(unreadable("no certificate is in it".into())),
        false => Ok(found),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let unreadable = |reason: String| IdentityError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let mode = std::fs::metadata(path)
        .map_err(|error| unreadable(error.to_string()))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(IdentityError::KeyOpen(path.to_owned()));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(error.to_string()))
}

#[cfg(test)]
#[path = "identity_test.rs"]
mod tests;
