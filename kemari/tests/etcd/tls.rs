//! Over TLS, as in production: a cluster whose members die and return, and who may speak with whom.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kemari::arbiter::{Access, Etcd};
use kemari::config::{Arbiter as Section, ArbiterKind};
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::common::{free_port, record};
use crate::{LEADER_LIMIT, TIMEOUT, await_probe, swap, write_secret};

const MEMBERS: usize = 3;

/// An authority and what it signed for one name, as files.
struct Certificates {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn certificates(directory: &Path) -> Certificates {
    fs::create_dir_all(directory).unwrap();
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let mut host = CertificateParams::default();
    host.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
    let pem = host
        .signed_by(&key, &Issuer::from_params(&ca, ca_key))
        .unwrap()
        .pem();
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    Certificates {
        ca: write("ca.pem", &ca_pem),
        certificate: write("cert.pem", &pem),
        key: write("key.pem", &key.serialize_pem()),
    }
}

/// Three members on loopback that take clients over TLS, with a certificate only.
struct Cluster {
    directory: tempfile::TempDir,
    certificates: Certificates,
    ports: [(u16, u16); MEMBERS],
    members: [Option<Child>; MEMBERS],
}

impl Cluster {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = Self {
            certificates: certificates(&directory.path().join("certificates")),
            directory,
            ports: std::array::from_fn(|_| (free_port(), free_port())),
            members: [const { None }; MEMBERS],
        };
        (0..MEMBERS).for_each(|member| cluster.revive(member));
        cluster.await_answer(&mut cluster.arbiter(cluster.access()), None);
        cluster
    }

    fn revive(&mut self, member: usize) {
        let name = |member: usize| format!("m{member}");
        let peer = |(_, port): (u16, u16)| format!("http://127.0.0.1:{port}");
        let client = self.endpoints()[member].clone();
        let all: Vec<String> = self
            .ports
            .iter()
            .enumerate()
            .map(|(index, ports)| format!("{}={}", name(index), peer(*ports)))
            .collect();
        let log = File::create(self.directory.path().join(format!("{}.log", name(member)))).unwrap();
        let mut command = Command::new("etcd");
        command
            .args(["--name", &name(member)])
            .arg("--data-dir")
            .arg(self.directory.path().join(name(member)))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args(["--listen-peer-urls", &peer(self.ports[member])])
            .args(["--initial-advertise-peer-urls", &peer(self.ports[member])])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .arg("--client-cert-auth")
            .arg("--trusted-ca-file")
            .arg(&self.certificates.ca)
            .arg("--cert-file")
            .arg(&self.certificates.certificate)
            .arg("--key-file")
            .arg(&self.certificates.key)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.members[member] = Some(
            command
                .spawn()
                .expect("cannot start `etcd`: install Debian's package etcd-server"),
        );
    }

    fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn endpoints(&self) -> Vec<String> {
        self.ports
            .iter()
            .map(|(port, _)| format!("https://127.0.0.1:{port}"))
            .collect()
    }

    /// The section of a configuration that knows the authority and has a certificate.
    fn section(&self) -> Section {
        Section {
            kind: ArbiterKind::Etcd,
            endpoints: self.endpoints(),
            ca: Some(self.certificates.ca.clone()),
            certificate: Some(self.certificates.certificate.clone()),
            key: Some(self.certificates.key.clone()),
            user: None,
            password_file: None,
            prefix: "/kemari/".into(),
            path: None,
            timeout_ms: TIMEOUT.as_millis() as u32,
        }
    }

    fn access(&self) -> Access {
        Access::of(&self.section()).unwrap()
    }

    fn arbiter(&self, access: Access) -> Etcd {
        Etcd::new(&self.endpoints(), access, "/kemari/", "demo", TIMEOUT).unwrap()
    }

    /// Waits until the cluster answers a read, with this.
    fn await_answer(&self, arbiter: &mut Etcd, expected: Option<&Record>) {
        let until = Instant::now() + LEADER_LIMIT;
        loop {
            match arbiter.execute(&ArbiterRequest::Read) {
                ArbiterAnswer::Record(found) => return assert_eq!(found.as_ref(), expected),
                other => assert!(Instant::now() < until, "no answer: {other:?}"),
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..MEMBERS).for_each(|member| self.kill(member));
    }
}

#[test]
fn a_cluster_over_tls_keeps_the_record_while_its_members_die_and_return() {
    let mut cluster = Cluster::start();
    let mut arbiter = cluster.arbiter(cluster.access());
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    let mut current = record(1, "a");
    // Each member in turn, so the leader as well.
    for member in 0..MEMBERS {
        cluster.kill(member);
        cluster.await_answer(&mut arbiter, Some(&current));
        let next = record(current.term + 1, "b");
        // An election may swallow the answer: then a read tells what became of it.
        match swap(&mut arbiter, Some(&current), &next) {
            ArbiterAnswer::Swapped => current = next,
            ArbiterAnswer::Unknown(_) | ArbiterAnswer::Unavailable(_) => {
                let ArbiterAnswer::Record(Some(found)) = arbiter.execute(&ArbiterRequest::Read) else {
                    panic!("two of three members do not answer")
                };
                assert!(found == current || found == next, "{found:?}");
                current = found;
            }
            other => panic!("{other:?}"),
        }
        cluster.revive(member);
        cluster.await_answer(&mut arbiter, Some(&current));
    }
    // Without a majority nothing is read and nothing is won.
    cluster.kill(0);
    cluster.kill(1);
    let lonely = arbiter.execute(&ArbiterRequest::Read);
    assert!(matches!(lonely, ArbiterAnswer::Unavailable(_)), "{lonely:?}");
    let lonely = swap(&mut arbiter, Some(&current), &record(99, "b"));
    assert!(
        matches!(lonely, ArbiterAnswer::Unavailable(_) | ArbiterAnswer::Unknown(_)),
        "{lonely:?}"
    );
    cluster.revive(0);
    cluster.await_answer(&mut arbiter, Some(&current));
}

#[test]
fn another_authority_or_no_certificate_is_refused_and_never_unclear() {
    let cluster = Cluster::start();
    let other = certificates(&cluster.directory.path().join("other"));
    // The server's certificate is from an authority that does not count: nothing is ever sent.
    let stranger = Section {
        ca: Some(other.ca.clone()),
        ..cluster.section()
    };
    let mut arbiter = cluster.arbiter(Access::of(&stranger).unwrap());
    for answer in [
        arbiter.execute(&ArbiterRequest::Read),
        swap(&mut arbiter, None, &record(1, "a")),
    ] {
        assert!(
            matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("certificate")),
            "{answer:?}"
        );
    }
    // The server does not take these clients.
    let without = Section {
        certificate: None,
        key: None,
        ..cluster.section()
    };
    let forged = Section {
        certificate: Some(other.certificate.clone()),
        key: Some(other.key.clone()),
        ..cluster.section()
    };
    for section in [without, forged] {
        let mut arbiter = cluster.arbiter(Access::of(&section).unwrap());
        let answer = swap(&mut arbiter, None, &record(1, "a"));
        assert!(matches!(answer, ArbiterAnswer::Unavailable(_)), "{answer:?}");
    }
    // The right one finds that none of them has changed anything.
    cluster.await_answer(&mut cluster.arbiter(cluster.access()), None);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let made = certificates(directory.path());
    let section = |ca: &Path, key: &Path| Section {
        kind: ArbiterKind::Etcd,
        endpoints: vec!["https://127.0.0.1:1".into()],
        ca: Some(ca.into()),
        certificate: Some(made.certificate.clone()),
        key: Some(key.into()),
        user: None,
        password_file: None,
        prefix: "/kemari/".into(),
        path: None,
        timeout_ms: 1000,
    };
    let why = |section: &Section| Access::of(section).err().expect("it is refused").to_string();
    assert!(Access::of(&section(&made.ca, &made.key)).is_ok());
    assert!(why(&section(Path::new("/nonexistent.pem"), &made.key)).contains("/nonexistent.pem"));
    assert!(why(&section(&made.key, &made.key)).contains("no certificate"));
    fs::set_permissions(&made.key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(why(&section(&made.ca, &made.key)).contains("chmod 600"));
}

#[test]
fn a_renewed_certificate_is_shown_without_a_restart() {
    let cluster = Cluster::start();
    let other = certificates(&cluster.directory.path().join("other"));
    let mine = cluster.directory.path().join("mine");
    fs::create_dir(&mine).unwrap();
    let put = |name: &str, from: &Path| {
        write_secret(&mine.join(name), &fs::read_to_string(from).unwrap());
        mine.join(name)
    };
    let section = Section {
        certificate: Some(put("cert.pem", &other.certificate)),
        key: Some(put("key.pem", &other.key)),
        ..cluster.section()
    };
    let arbiter = cluster.arbiter(Access::of(&section).unwrap());
    assert!(arbiter.probe().is_err(), "a stranger's certificate was taken");
    // For a moment the two do not belong together: then neither counts.
    put("cert.pem", &cluster.certificates.certificate);
    let until = Instant::now() + LEADER_LIMIT;
    while arbiter.trouble().is_none() {
        assert!(
            Instant::now() < until,
            "a key without its certificate is not noticed"
        );
        thread::sleep(Duration::from_millis(50));
    }
    put("key.pem", &cluster.certificates.key);
    await_probe(&arbiter, None);
    assert_eq!(arbiter.trouble(), None);
}
