//! Certificates that are good for one thing only, or end one before the other.

use std::fs;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::*;
use crate::certs;

const DAY_S: u64 = 24 * 3600;

/// A set whose host's certificate is good for these purposes.
fn set_for(purposes: &[ExtendedKeyUsagePurpose]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = KeyPair::generate().expect("a key");
    let ca = authority
        .self_signed(&authority_key)
        .expect("a certificate")
        .pem();
    let issuer = Issuer::from_params(&authority, authority_key);
    let mut host = CertificateParams::new(vec!["a".to_owned()]).expect("a name");
    host.extended_key_usages = purposes.to_vec();
    let key = KeyPair::generate().expect("a key");
    let certificate = host.signed_by(&key, &issuer).expect("a certificate").pem();
    for (file, text) in [
        (CA_FILE, ca),
        (CERTIFICATE_FILE, certificate),
        (KEY_FILE, key.serialize_pem()),
    ] {
        let path = directory.path().join(file);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    }
    directory
}

#[test]
fn a_certificate_must_be_good_for_both_ends() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    for (purposes, is_good) in [
        (&[ClientAuth, ServerAuth][..], true),
        (&[ClientAuth], false),
        (&[ServerAuth], false),
    ] {
        let set = set_for(purposes);
        assert_eq!(Identity::load(set.path(), "a").is_ok(), is_good, "{purposes:?}");
    }
}

#[test]
fn the_first_certificate_that_ends_counts_of_a_chain() {
    let directory = tempfile::tempdir().expect("a directory");
    certs::make(directory.path(), &["a".to_owned()], 1000).expect("a set");
    let places = certs::make(directory.path(), &["b".to_owned()], 10).expect("another host of it");
    let place = &places[0];
    let [own, ca] =
        [CERTIFICATE_FILE, CA_FILE].map(|file| fs::read_to_string(place.join(file)).expect("a file"));
    fs::write(place.join(CERTIFICATE_FILE), format!("{own}{ca}")).expect("a chain");
    let identity = Identity::load(place, "b").expect("a good one");
    let ends: Vec<(&str, u64)> = identity.ends_s().to_vec();
    let [(CERTIFICATE_FILE, of_host), (CA_FILE, of_authority)] = ends[..] else {
        panic!("{ends:?}");
    };
    let between_days = (of_authority - of_host) / DAY_S;
    assert!((980..=990).contains(&between_days), "{between_days}");
    assert!(identity.check_after(Duration::from_secs(9 * DAY_S)).is_ok());
    assert!(identity.check_after(Duration::from_secs(11 * DAY_S)).is_err());
}
