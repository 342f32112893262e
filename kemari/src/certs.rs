//! `kemari certs`: an authority of one's own, and a certificate for each host.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use crate::config::certificate_name;
use crate::link::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};

/// The authority's key, beside the directories of the hosts.
pub(crate) const CA_KEY_FILE: &str = "ca.key";

/// Days for which certificates are valid by default.
pub(crate) const DAYS_DEFAULT: u32 = 3650;

/// Certificates are valid from so long before they are made: clocks of hosts differ.
const SLACK: Duration = Duration::from_secs(24 * 3600);

/// Why no certificates were made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A host's name cannot stand in a certificate, or none was given.
    #[error("{0}")]
    Host(String),
    /// Something is there already.
    #[error("{} exists already and is not overwritten: name another directory, or remove it if nobody uses \
             it", .0.display())]
    Exists(PathBuf),
    /// There is an authority's certificate without its key, or the other way round.
    #[error(
        "{} lacks one of {CA_FILE} and {CA_KEY_FILE}: to add hosts to a set, both are needed",
        .0.display()
    )]
    HalfAuthority(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key of an authority cannot be used.
    #[error("the certificates could not be made: {0}")]
    Making(#[from] rcgen::Error),
}

/// Makes a set in `directory`: `ca.pem`, `ca.key` and, for each host, a directory with what belongs there. If
/// there is an authority already, it signs the new hosts. Nothing that exists is overwritten. Returns the
/// hosts' directories.
pub fn make(directory: &Path, hosts: &[String], days: u32) -> Result<Vec<PathBuf>, CertsError> {
    if hosts.is_empty() {
        return Err(CertsError::Host(
            "name the hosts, as in the configuration: --hosts a,b".into(),
        ));
    }
    let places: Vec<PathBuf> = hosts.iter().map(|host| directory.join(host)).collect();
    for (index, (host, place)) in hosts.iter().zip(&places).enumerate() {
        // A name is a path here: what may stand in a certificate holds no slash.
        certificate_name(host).map_err(CertsError::Host)?;
        if hosts[..index].contains(host) {
            return Err(CertsError::Host(format!("the host `{host}` is named twice")));
        }
        if fs::symlink_metadata(place).is_ok() {
            return Err(CertsError::Exists(place.clone()));
        }
    }
    fs::create_dir_all(directory).map_err(|source| CertsError::Io {
        path: directory.to_owned(),
        source,
    })?;
    let (ca, key) = authority(directory, days)?;
    let params = ca_params(days);
    let issuer = Issuer::from_params(&params, key);
    for (host, place) in hosts.iter().zip(&places) {
        let key = KeyPair::generate()?;
        let certificate = host_params(host, days)?.signed_by(&key, &issuer)?;
        fs::create_dir(place).map_err(|source| CertsError::Io {
            path: place.clone(),
            source,
        })?;
        write(&place.join(CA_FILE), &ca, 0o644)?;
        write(&place.join(KEY_FILE), &key.serialize_pem(), 0o600)?;
        write(&place.join(CERTIFICATE_FILE), &certificate.pem(), 0o644)?;
    }
    Ok(places)
}

/// What goes where, for people.
pub(crate) fn explain(directory: &Path, hosts: &[String]) -> String {
    let mut text = String::new();
    for host in hosts {
        let place = directory.join(host);
        text += &format!(
            "copy {} to the host {host}, as a directory that only root reads\n",
            place.display()
        );
    }
    text + &format!(
        "and name that directory in the configuration: `[protection] certificates = \
         \"/etc/kemari/certificates\"`.\nKeep {} off the hosts: whoever has it can pass for any host. It is \
         needed only to add hosts.",
        directory.join(CA_KEY_FILE).display()
    )
}

/// The authority's certificate, as PEM, and its key: those that are there, or new ones.
fn authority(directory: &Path, days: u32) -> Result<(String, KeyPair), CertsError> {
    let (ca_path, key_path) = (directory.join(CA_FILE), directory.join(CA_KEY_FILE));
    match (ca_path.exists(), key_path.exists()) {
        (true, true) => {
            let read = |path: &Path| {
                fs::read_to_string(path).map_err(|source| CertsError::Io {
                    path: path.to_owned(),
                    source,
                })
            };
            Ok((read(&ca_path)?, KeyPair::from_pem(&read(&key_path)?)?))
        }
        (false, false) => {
            let key = KeyPair::generate()?;
            let ca = ca_params(days).self_signed(&key)?.pem();
            write(&key_path, &key.serialize_pem(), 0o600)?;
            write(&ca_path, &ca, 0o644)?;
            Ok((ca, key))
        }
        _ => Err(CertsError::HalfAuthority(directory.to_owned())),
    }
}

fn ca_params(days: u32) -> CertificateParams {
    let mut params = valid(CertificateParams::default(), days, "Kemari authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn host_params(host: &str, days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut params = valid(CertificateParams::new(vec![host.to_owned()])?, days, host);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Each host is now the primary, which connects, and now the secondary, which is connected to.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn valid(mut params: CertificateParams, days: u32, name: &str) -> CertificateParams {
    #[expect(
        clippy::disallowed_methods,
        reason = "certificates are valid by the wall clock"
    )]
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_1970.saturating_sub(SLACK);
    params.not_after = epoch + since_1970 + Duration::from_secs(u64::from(days) * 24 * 3600);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Writes a file that is not there yet, under its mode from the first byte.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => CertsError::Exists(path.to_owned()),
            _ => CertsError::Io {
                path: path.to_owned(),
                source,
            },
        })
}
