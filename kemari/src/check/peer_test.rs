use super::*;
use crate::check::Level;

const CONFIG: &str = r#"vm = "demo"
[machine]
memory_mib = 64
kernel = "vmlinuz"
[[disk]]
id = "blk0"
path = "disk.img"
[protection]
mode = "pipelined"
plaintext = true
[arbiter]
kind = "file"
path = "arbiter"
[hosts.a]
listen = "10.0.0.1:7711"
fence = ["true"]
[hosts.b]
listen = "10.0.0.2:7711"
fence = ["true"]
"#;

fn config(text: &str) -> Config {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).unwrap()
}

fn host_like(config: &Config) -> About {
    About {
        version: "1".into(),
        keys: config.shared_keys(),
        features: vec![[1, 0, 0, 0, 0b11, 0b111]],
        images: vec![("blk0".into(), 1 << 20)],
        memory_available_mib: 4096,
        wall_clock_ms: 1_000_000,
    }
}

/// What is found of a peer that differs so.
fn found(change: impl FnOnce(&mut About)) -> Vec<Finding> {
    let config = config(CONFIG);
    let ours = host_like(&config);
    let mut theirs = ours.clone();
    change(&mut theirs);
    compare(&config, "b", &ours, &theirs, false)
}

fn assert_told(findings: &[Finding], words: &[&str]) {
    let [finding] = findings else {
        panic!("{findings:?}")
    };
    assert_eq!(finding.level, Level::Error);
    for word in words {
        assert!(finding.sentence.contains(word), "no `{word}` in {finding}");
    }
}

#[test]
fn a_peer_that_is_like_this_host_is_well() {
    assert_eq!(found(|_| ()), []);
    assert_eq!(found(|theirs| theirs.wall_clock_ms += 900), []);
}

/// Looking at this host may take as long as its storage.
#[test]
fn clocks_are_compared_as_of_when_the_peer_answered() {
    let config = config(CONFIG);
    let theirs = host_like(&config);
    let found = |answered_ms| {
        let answer = PeerAnswer {
            holds: None,
            about: Some(theirs.clone()),
        };
        let late = || About {
            wall_clock_ms: theirs.wall_clock_ms + 60_000,
            ..theirs.clone()
        };
        let findings = judge(&config, "b", config.host("b"), (Ok(answer), answered_ms), late);
        findings
            .into_iter()
            .filter(|finding| finding.level != Level::Ok)
            .collect::<Vec<_>>()
    };
    assert_eq!(found(theirs.wall_clock_ms + 900), []);
    assert_told(&found(theirs.wall_clock_ms + 61_000), &["61.0 s apart"]);
}

#[test]
fn a_key_that_differs_is_named() {
    for (from, to, key) in [
        ("mode = \"pipelined\"", "mode = \"lockstep\"", "protection.mode"),
        ("memory_mib = 64", "memory_mib = 65", "machine.memory_mib"),
        (
            "path = \"disk.img\"",
            "path = \"disk.img\"\nqueues = 2",
            "disk.blk0.queues",
        ),
        (
            "kind = \"file\"",
            "timeout_ms = 777\nkind = \"file\"",
            "arbiter.timeout_ms",
        ),
    ] {
        let other = config(&CONFIG.replace(from, to));
        assert_ne!(other.digest(), config(CONFIG).digest(), "{key}");
        let differing = differing(&config(CONFIG).shared_keys(), &other.shared_keys());
        assert!(differing.contains(&key.to_owned()), "{differing:?}");
    }
    assert_told(
        &found(|theirs| theirs.keys.retain(|(key, _)| key != "vm")),
        &["the configuration differs", "in: vm"],
    );
    let many = found(|theirs| theirs.keys.iter_mut().for_each(|(_, sum)| *sum ^= 1));
    assert_told(&many, &["more"]);
}

#[test]
fn what_a_host_lacks_is_told() {
    assert_told(&found(|theirs| theirs.version = "2".into()), &["runs Kemari 2"]);
    assert_told(&found(|theirs| theirs.memory_available_mib = 100), &["100 MiB"]);
    assert_told(&found(|theirs| theirs.wall_clock_ms += 61_000), &["61.0 s apart"]);
    assert_told(
        &found(|theirs| theirs.features[0][4] = 0b01),
        &["peer `b` lacks", "leaf 0x1.0 ecx bits 0x2"],
    );
    assert_told(
        &found(|theirs| theirs.features[0][5] |= 1 << 20),
        &["this host lacks"],
    );
    let unknown = found(|theirs| theirs.features.clear());
    assert!(
        unknown.len() == 1 && unknown[0].level == Level::Warning,
        "{unknown:?}"
    );
    assert_told(
        &found(|theirs| theirs.images[0].1 = 5),
        &["blk0", "one of 5 bytes"],
    );
    assert_told(&found(|theirs| theirs.images.clear()), &["no image"]);
}
