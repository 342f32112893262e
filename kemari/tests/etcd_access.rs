//! The etcd arbiter against real etcds as they are in production: a cluster over TLS whose members die and return, with
//! client certificates, with users; and an answer that is lost on the way.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{slice, thread};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::{TestEtcd, closed_endpoint, free_port, record};
use kemari::arbiter::{Access, Etcd, Unproved};
use kemari::config::{Arbiter as Section, ArbiterKind};
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

/// For one request. Members that are killed answer at once, so this is never waited out.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait until a cluster has a leader (again).
const LEADER_LIMIT: Duration = Duration::from_secs(30);
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

fn swap(arbiter: &mut Etcd, expected: Option<&Record>, new: &Record) -> ArbiterAnswer {
    arbiter.execute(&ArbiterRequest::Swap {
        expected: expected.cloned(),
        new: new.clone(),
    })
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

/// POSTs to etcd's gateway, past the arbiter.
fn post(etcd: &TestEtcd, path: &str, body: &str) {
    etcd.post("", path, body);
}

/// The same as a user.
fn post_as(etcd: &TestEtcd, token: &str, path: &str, body: &str) {
    etcd.post(&format!("Authorization: {token}\r\n"), path, body);
}

fn token_of(etcd: &TestEtcd, user: &str, password: &str) -> String {
    let body = format!(r#"{{"name":"{user}","password":"{password}"}}"#);
    let answer = etcd.post("", "/v3/auth/authenticate", &body);
    answer["token"].as_str().unwrap().to_owned()
}

/// Turns authentication on: a user `kemari` with a role of its own, that may use the keys under `/kemari/`.
fn enable_users(etcd: &TestEtcd) {
    let prefix = BASE64_STANDARD.encode("/kemari/");
    let end = BASE64_STANDARD.encode("/kemari0");
    let perm = format!(
        r#"{{"name":"kemari","perm":{{"permType":"READWRITE","key":"{prefix}","range_end":"{end}"}}}}"#
    );
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"r"}"#),
        ("role/add", r#"{"name":"root"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("user/add", r#"{"name":"kemari","password":"secret"}"#),
        ("role/add", r#"{"name":"kemari"}"#),
        ("role/grant", &perm),
        ("user/grant", r#"{"user":"kemari","role":"kemari"}"#),
        ("enable", "{}"),
    ] {
        post(etcd, &format!("/v3/auth/{path}"), body);
    }
}

/// A section for a user whose password stands in `directory`.
fn user_section(etcd: &TestEtcd, directory: &Path, user: &str, password: &str) -> Section {
    let path = directory.join("password");
    write_secret(&path, password);
    Section {
        kind: ArbiterKind::Etcd,
        endpoints: vec![etcd.endpoint.clone()],
        ca: None,
        certificate: None,
        key: None,
        user: Some(user.into()),
        password_file: Some(path),
        prefix: "/kemari/".into(),
        path: None,
        timeout_ms: TIMEOUT.as_millis() as u32,
    }
}

/// As an administrator does it: a new file takes the name of the old one.
fn write_secret(path: &Path, content: &str) {
    let aside = path.with_extension("new");
    fs::write(&aside, format!("{content}\n")).unwrap();
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(aside, path).unwrap();
}

fn open(section: &Section) -> Etcd {
    Etcd::new(
        &section.endpoints,
        Access::of(section).unwrap(),
        &section.prefix,
        "demo",
        TIMEOUT,
    )
    .unwrap()
}

/// What it answers that is no record.
fn refusal(found: Result<Option<Record>, Unproved>) -> String {
    match found {
        Err(Unproved::Refused(why)) => why,
        other => panic!("that is no refusal: {other:?}"),
    }
}

/// Waits until the arbiter can be asked, and written.
fn await_probe(arbiter: &Etcd, expected: Option<&Record>) {
    let until = Instant::now() + LEADER_LIMIT;
    loop {
        match arbiter.probe() {
            Ok(found) => return assert_eq!(found.as_ref(), expected),
            Err(why) => assert!(Instant::now() < until, "{why:?}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_user_is_authenticated_also_after_the_member_has_forgotten_it() {
    let mut etcd = TestEtcd::start();
    enable_users(&etcd);
    let directory = tempfile::tempdir().unwrap();
    let arbiter = |etcd: &TestEtcd, user: &str, password: &str| {
        open(&user_section(etcd, directory.path(), user, password))
    };
    let mut known = arbiter(&etcd, "kemari", "secret");
    assert_eq!(swap(&mut known, None, &record(1, "a")), ArbiterAnswer::Swapped);
    // Its token lives in the member's memory only.
    etcd.kill();
    etcd.restart();
    assert_eq!(
        swap(&mut known, Some(&record(1, "a")), &record(2, "a")),
        ArbiterAnswer::Swapped
    );
    let refused = |mut arbiter: Etcd| match arbiter.execute(&ArbiterRequest::Read) {
        ArbiterAnswer::Unavailable(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(refused(arbiter(&etcd, "kemari", "wrong")).contains("cannot be authenticated"));
    let elsewhere = Section {
        prefix: "/other/".into(),
        ..user_section(&etcd, directory.path(), "kemari", "secret")
    };
    assert!(refused(open(&elsewhere)).contains("permission denied"));
}

#[test]
fn tokens_that_an_administrators_change_makes_old_are_renewed() {
    let keys = tempfile::tempdir().unwrap();
    let (private, public) = (keys.path().join("private.pem"), keys.path().join("public.pem"));
    let openssl = |arguments: &[&str]| {
        let status = Command::new("openssl")
            .args(arguments)
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("install Debian's package openssl").success());
    };
    let (private, public) = (private.to_str().unwrap(), public.to_str().unwrap());
    openssl(&["genrsa", "-out", private, "2048"]);
    openssl(&["rsa", "-in", private, "-pubout", "-out", public]);
    let jwt = format!("jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m");
    let etcd = TestEtcd::start_with(&["--auth-token", &jwt]);
    enable_users(&etcd);
    let directory = tempfile::tempdir().unwrap();
    let mut arbiter = open(&user_section(&etcd, directory.path(), "kemari", "secret"));
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    for (term, role) in [(2, "one"), (3, "two")] {
        let token = token_of(&etcd, "root", "r");
        post_as(
            &etcd,
            &token,
            "/v3/auth/role/add",
            &format!(r#"{{"name":"{role}"}}"#),
        );
        assert_eq!(arbiter.probe(), Ok(Some(record(term - 1, "a"))));
        let token = token_of(&etcd, "root", "r");
        post_as(
            &etcd,
            &token,
            "/v3/auth/user/add",
            &format!(r#"{{"name":"{role}","password":"x"}}"#),
        );
        assert_eq!(
            swap(&mut arbiter, Some(&record(term - 1, "a")), &record(term, "a")),
            ArbiterAnswer::Swapped
        );
    }
    // A role that is taken away is found out by the probe, and while the record can still be read.
    let token = token_of(&etcd, "root", "r");
    let (key, end) = (
        BASE64_STANDARD.encode("/kemari/"),
        BASE64_STANDARD.encode("/kemari0"),
    );
    let reads =
        format!(r#"{{"name":"kemari","perm":{{"permType":"READ","key":"{key}","range_end":"{end}"}}}}"#);
    post_as(&etcd, &token, "/v3/auth/role/grant", &reads);
    assert_eq!(
        arbiter.execute(&ArbiterRequest::Read),
        ArbiterAnswer::Record(Some(record(3, "a")))
    );
    let why = refusal(arbiter.probe());
    assert!(why.contains("permission denied"), "{why}");
}

#[test]
fn a_changed_password_is_read_again_and_users_may_be_turned_off() {
    let etcd = TestEtcd::start();
    enable_users(&etcd);
    let directory = tempfile::tempdir().unwrap();
    let section = user_section(&etcd, directory.path(), "kemari", "secret");
    let arbiter = open(&section);
    await_probe(&arbiter, None);
    let change = r#"{"name":"kemari","password":"other"}"#;
    post_as(
        &etcd,
        &token_of(&etcd, "root", "r"),
        "/v3/auth/user/changepw",
        change,
    );
    // Unusable for a while: what was read before stays in use, and it is said.
    let path = section.password_file.as_deref().unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let until = Instant::now() + LEADER_LIMIT;
    while arbiter.trouble().is_none() {
        assert!(
            Instant::now() < until,
            "a file that others can read is not noticed"
        );
        thread::sleep(Duration::from_millis(50));
    }
    assert!(
        arbiter.trouble().unwrap().contains("chmod 600"),
        "{:?}",
        arbiter.trouble()
    );
    write_secret(path, "other");
    await_probe(&arbiter, None);
    assert_eq!(arbiter.trouble(), None);
    post_as(&etcd, &token_of(&etcd, "root", "r"), "/v3/auth/disable", "{}");
    await_probe(&arbiter, None);
    // A client that never had a token of this cluster.
    await_probe(&open(&section), None);
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

#[test]
fn an_etcd_without_room_is_found_out_by_the_probe_and_reads_go_on() {
    let etcd = TestEtcd::start();
    let mut arbiter = Etcd::new(
        slice::from_ref(&etcd.endpoint),
        Access::default(),
        "/kemari/",
        "demo",
        TIMEOUT,
    )
    .unwrap();
    assert_eq!(arbiter.probe(), Ok(None));
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    let before = etcd.get("/kemari/demo");
    assert_eq!(arbiter.probe(), Ok(Some(record(1, "a"))));
    assert_eq!(etcd.get("/kemari/demo"), before, "a probe changes nothing");
    let alarm = |action: &str| {
        let body = format!(
            r#"{{"action":"{action}","memberID":"{}","alarm":"NOSPACE"}}"#,
            etcd.member_id()
        );
        post(&etcd, "/v3/maintenance/alarm", &body);
    };
    alarm("ACTIVATE");
    assert_eq!(
        arbiter.execute(&ArbiterRequest::Read),
        ArbiterAnswer::Record(Some(record(1, "a")))
    );
    let why = refusal(arbiter.probe());
    assert!(why.contains("NOSPACE") && why.contains("alarm disarm"), "{why}");
    let refused = swap(&mut arbiter, Some(&record(1, "a")), &record(2, "a"));
    assert!(
        matches!(refused, ArbiterAnswer::Unavailable(_)),
        "nothing was done: {refused:?}"
    );
    alarm("DEACTIVATE");
    assert_eq!(arbiter.probe(), Ok(Some(record(1, "a"))));
}

#[test]
fn names_are_no_reason_to_refuse_and_a_gateway_that_is_off_is_named() {
    let etcd = TestEtcd::start();
    let open = |endpoints: &[&str]| {
        let endpoints: Vec<String> = endpoints.iter().map(|text| (*text).to_owned()).collect();
        Etcd::new(&endpoints, Access::default(), "/kemari/", "demo", TIMEOUT).unwrap()
    };
    let by_name = etcd.endpoint.replace("127.0.0.1", "localhost");
    await_probe(&open(&["http://nobody.invalid:2379", &by_name]), None);
    let away = closed_endpoint();
    for nobody in ["http://nobody.invalid:2379", &away] {
        match open(&[nobody]).probe() {
            Err(Unproved::Silent(why)) => assert!(why.contains("etcd cannot be asked"), "{why}"),
            other => panic!("{nobody}: {other:?}"),
        }
    }
    let off = TestEtcd::start_with(&["--enable-grpc-gateway=false"]);
    let why = refusal(open(&[&off.endpoint]).probe());
    assert!(why.contains("--enable-grpc-gateway"), "{why}");
}

#[test]
fn a_wiped_etcd_is_an_alarm_until_it_is_said_to_be_the_right_one() {
    let mut etcd = TestEtcd::start();
    let mut arbiter = Etcd::new(
        slice::from_ref(&etcd.endpoint),
        Access::default(),
        "/kemari/",
        "demo",
        TIMEOUT,
    )
    .unwrap();
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    assert_eq!(
        swap(&mut arbiter, Some(&record(1, "a")), &record(2, "a")),
        ArbiterAnswer::Swapped
    );
    etcd.kill();
    etcd.wipe();
    etcd.restart();
    let why = refusal(arbiter.probe());
    assert!(
        why.contains("went back in time") && why.contains("kemari adopt-record"),
        "{why}"
    );
    assert!(matches!(
        arbiter.execute(&ArbiterRequest::Read),
        ArbiterAnswer::Unavailable(_)
    ));
    arbiter.forget();
    assert_eq!(
        arbiter.execute(&ArbiterRequest::Read),
        ArbiterAnswer::Record(None)
    );
}

/// Passes requests on, and loses the answer to the `lost`th of them, from 0.
fn lossy_way_to(etcd: &TestEtcd, lost: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let address = etcd.address();
    thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let mut client = client.unwrap();
            let request = common::read_request(&mut client);
            let mut server = TcpStream::connect(&address).unwrap();
            server.write_all(&request).unwrap();
            let mut answer = Vec::new();
            server.read_to_end(&mut answer).unwrap();
            if number != lost {
                client.write_all(&answer).unwrap();
            }
            client.shutdown(Shutdown::Both).unwrap();
        }
    });
    endpoint
}

#[test]
fn a_swap_whose_answer_is_lost_is_unknown_and_read_back_as_done() {
    let etcd = TestEtcd::start();
    // A swap is a read and a transaction: the second answer is that of the transaction.
    let endpoint = lossy_way_to(&etcd, 1);
    let mut arbiter = Etcd::new(&[endpoint], Access::default(), "/kemari/", "demo", TIMEOUT).unwrap();
    let answer = swap(&mut arbiter, None, &record(1, "a"));
    assert!(matches!(answer, ArbiterAnswer::Unknown(_)), "{answer:?}");
    assert_eq!(
        arbiter.execute(&ArbiterRequest::Read),
        ArbiterAnswer::Record(Some(record(1, "a")))
    );
}
