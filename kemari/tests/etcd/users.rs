//! Users of etcd: tokens that a member forgets or an administrator makes old, passwords that change,
//! rights that end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kemari::arbiter::{Access, Etcd};
use kemari::config::{Arbiter as Section, ArbiterKind};
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest};

use crate::common::{TestEtcd, record};
use crate::{LEADER_LIMIT, TIMEOUT, await_probe, refusal, swap, write_secret};

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
