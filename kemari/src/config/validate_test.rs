//! Values that make no sense, alone or together.

use crate::config::tests::{EXAMPLE, changed, errors, with_firmware};
use crate::config::*;

#[test]
fn firmware_stands_in_the_place_of_a_kernel() {
    let config = Config::parse(&with_firmware("firmware = \"bios\""), "vm.toml").unwrap();
    let machine = &config.machine;
    assert_eq!(
        machine.begins_with(),
        Path::new("/usr/share/seabios/bios-microvm.bin")
    );
    assert_eq!(machine.firmware_path(), Some(machine.begins_with()));
    let other = Config::parse(&with_firmware("firmware = \"/boot/bios\""), "vm.toml").unwrap();
    assert_eq!(other.machine.begins_with(), Path::new("/boot/bios"));
    assert_ne!(config.digest(), other.digest());
    assert!(
        Config::parse(EXAMPLE, "vm.toml")
            .unwrap()
            .machine
            .firmware_path()
            .is_none()
    );
}

#[test]
fn firmware_boots_a_disk_and_nothing_else() {
    let both = errors(&changed("vcpus = 1", "vcpus = 1\nfirmware = \"bios\""));
    assert_eq!(both.len(), 3, "{both:?}");
    for (error, sentence) in both.iter().zip([
        "line 9: `machine.kernel` and `machine.firmware` exclude each other",
        "line 11: `machine.initrd` is for a kernel that Kemari loads",
        "line 12: `machine.cmdline` is for a kernel that Kemari loads",
    ]) {
        assert!(error.contains(sentence), "{error}");
    }
    let text = with_firmware("firmware = \"bios\"");
    let wide = errors(&text.replacen("id = \"blk0\"", "id = \"blk0\"\nblock_size = 4096", 1));
    assert!(
        wide.len() == 1 && wide[0].contains("disk `blk0` has blocks of 4096 bytes, but a BIOS boots"),
        "{wide:?}"
    );
    let diskless = "vm = \"vm\"\n[machine]\nmemory_mib = 64\nfirmware = \"bios\"\n[protection]\n\
                    enabled = false\n[arbiter]\nkind = \"none\"\n[hosts.a]\nlisten = \"10.0.0.1:7711\"\n";
    let sentence = "`machine.firmware` boots the first disk, but there is no [[disk]]";
    assert_eq!(errors(diskless), [format!("vm.toml, line 4: {sentence}")]);
}

#[test]
fn values_are_checked() {
    for (from, to, says) in [
        (
            "memory_mib = 512",
            "memory_mib = 63",
            "is 63, but must be 64 to 1048576",
        ),
        ("vcpus = 1", "vcpus = 9", "is 9, but must be 1 to 8"),
        ("vm = \"demo\"", "vm = \"de/mo\"", "the VM's name is `de/mo`"),
        (
            "serial = \"demo-root\"",
            "serial = \"123456789012345678901\"",
            "at most 20 printable",
        ),
        (
            "cache = \"direct\"",
            "read_only = false",
            "must bypass their page caches",
        ),
        (
            "certificates = \"/etc/kemari/certificates\"",
            "plaintext = false",
            "host `a` has no certificates",
        ),
        (
            "heartbeat_interval_ms = 100",
            "heartbeat_interval_ms = 500",
            "at least three times",
        ),
        (
            "heartbeat_interval_ms = 100",
            "staging_mib_max = 100",
            "must hold twice",
        ),
        (
            "shared = true",
            "shared = true\nreplicate = true",
            "both shared and replicated",
        ),
        (
            "shared = true",
            "replicate = false",
            "neither shared nor replicated",
        ),
        ("10.0.0.2:7711", "10.0.0.1:7711", "given twice"),
        ("10.0.0.2:7711", "0.0.0.0:7711", "give one address"),
        ("http://10.0.0.12:2379", "https://10.0.0.12:2379", "needs `ca`"),
        (
            "net0 = \"tap0\"",
            "net0 = \"a-name-too-long-for-linux\"",
            "no name of a network device",
        ),
    ] {
        let errors = errors(&changed(from, to));
        assert_eq!(errors.len(), 1, "{to}: {errors:?}");
        assert!(
            errors[0].contains(says) && errors[0].contains("line "),
            "{to}: {errors:?}"
        );
    }
}

#[test]
fn devices_are_named_once_and_rightly() {
    let errors_of = |from, to| errors(&changed(from, to)).join("\n");
    assert!(
        errors_of("net0 = \"tap3\"", "nte0 = \"tap3\"")
            .contains("no [[net]] has that id; did you mean `net0`?")
    );
    assert!(errors_of("net0 = \"tap3\"", "").contains("card `net0` has no TAP on host `b`"));
    assert!(errors_of("id = \"net0\"", "id = \"blk0\"").contains("the id `blk0` is given twice"));
    assert!(
        errors_of("path = \"/dev/disk/by-id/shared-lun-1\"", "")
            .contains("disk `blk0` has no path on host `a`")
    );
}

#[test]
fn a_shared_disk_needs_a_fence_and_two_hosts() {
    let text = EXAMPLE.replace("fence = [\"/usr/local/sbin/power-off\", \"{peer}\"]", "");
    let errors_found = errors(&text);
    assert_eq!(errors_found.len(), 2, "{errors_found:?}");
    assert!(
        errors_found[0].contains("host `a` needs a `fence`"),
        "{errors_found:?}"
    );
    let alone = &EXAMPLE[..EXAMPLE.find("[hosts.b]").unwrap()];
    assert!(errors(alone)[0].contains("names one host, but a protected VM has two"));
    let unprotected = alone.replace("certificates =", "enabled = false\ncertificates =");
    assert_eq!(errors(&unprotected), [] as [&str; 0]);
}

#[test]
fn the_link_is_encrypted_or_said_not_to_be() {
    let common = "certificates = \"/etc/kemari/certificates\"";
    let of = |text: &str, host: &str| {
        let config = Config::parse(text, "vm.toml").unwrap();
        config.certificates_of(host).map(Path::to_owned)
    };
    assert_eq!(of(EXAMPLE, "a"), Some("/etc/kemari/certificates".into()));
    let own = changed("[hosts.a]", "[hosts.a]\ncertificates = \"tls-a\"");
    assert_eq!(of(&own, "a"), Some("tls-a".into()));
    assert_eq!(of(&own, "b"), Some("/etc/kemari/certificates".into()));
    let only_a = own.replacen(common, "", 1);
    assert!(errors(&only_a)[0].contains("host `b` has no certificates"));
    let both = only_a.replacen("[hosts.b]", "[hosts.b]\ncertificates = \"tls-b\"", 1);
    assert_eq!(errors(&both), [] as [&str; 0]);
    let found = errors(&EXAMPLE.replace("hosts.a", "hosts.7"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("line ") && found[0].contains("`7` cannot stand in a certificate"),
        "{found:?}"
    );
    let plaintext = changed(common, "plaintext = true");
    assert_eq!(of(&plaintext, "a"), None);
    for text in [
        changed(common, &format!("plaintext = true\n{common}")),
        both.replacen("[protection]", "[protection]\nplaintext = true", 1),
    ] {
        let found = errors(&text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("line ") && found[0].contains("exclude each other"),
            "{found:?}"
        );
    }
}

#[test]
fn a_disk_is_replicated_unless_it_is_said_to_be_shared_and_then_needs_neither_fence_nor_o_direct() {
    let text = EXAMPLE
        .replace("shared = true", "flush = \"both\"")
        .replace("cache = \"direct\"", "")
        .replace("fence = [\"/usr/local/sbin/power-off\", \"{peer}\"]", "");
    let config = Config::parse(&text, "vm.toml").unwrap();
    assert!(config.replicates(&config.disks[0]) && config.disks[0].flush == Flush::Both);
    let read_only = text.replacen("serial =", "read_only = true\nserial =", 1);
    let config = Config::parse(&read_only, "vm.toml").unwrap();
    assert!(!config.replicates(&config.disks[0]));
    let unprotected = text.replacen("[protection]", "[protection]\nenabled = false", 1);
    let config = Config::parse(&unprotected, "vm.toml").unwrap();
    assert!(!config.replicates(&config.disks[0]));
}

#[test]
fn cached_shared_disks_need_the_word() {
    let text = changed("cache = \"direct\"", "").replace(
        "certificates =",
        "allow_cached_shared_disk = true\ncertificates =",
    );
    assert_eq!(errors(&text), [] as [&str; 0]);
}

#[test]
fn keys_of_a_disk_have_their_values() {
    let disk = |lines: &str| changed("cache = \"direct\"", &format!("cache = \"direct\"\n{lines}"));
    let good = disk(
        "format = \"qcow2\"\nread_only = true\nio = \"threads\"\non_error = \"failover\"\n\
         block_size = 4096\nqueues = 4",
    );
    let config = Config::parse(&good, "vm.toml").unwrap();
    let found = &config.disks[0];
    assert_eq!(
        (found.format, found.io, found.on_error),
        (Format::Qcow2, Io::Threads, OnError::Failover)
    );
    assert_eq!((found.block_size, found.queues), (4096, 4));
    let limited = Config::parse(&disk("rate = { kib_per_s = 100 }"), "vm.toml").unwrap();
    let paced = limited.disks[0].rate.and_then(|rate| rate.bytes());
    assert_eq!(
        paced.map(|paced| (paced.per_s, paced.burst)),
        Some((100 << 10, 10 << 10))
    );
    assert_ne!(
        limited.digest(),
        Config::parse(EXAMPLE, "vm.toml").unwrap().digest()
    );
    let config = Config::parse(EXAMPLE, "vm.toml").unwrap();
    assert_eq!(
        (config.disks[0].format, config.disks[0].block_size),
        (Format::Raw, 512),
        "a format is never guessed"
    );
    for (lines, says) in [
        ("format = \"vmdk\"", "expected `raw` or `qcow2`"),
        ("io = \"aio\"", "expected one of `auto`, `io_uring`, `threads`"),
        (
            "on_error = \"ignore\"",
            "expected one of `report`, `pause`, `failover`",
        ),
        ("block_size = 1024", "must be 512 or 4096"),
        ("queues = 9", "must be 1 to 8"),
        ("queues = 0", "must be 1 to 8"),
        ("format = \"qcow2\"", "`kemari import IMAGE --format qcow2 DEST`"),
        (
            "format = \"qcow2\"\nread_only = true\nio = \"io_uring\"",
            "io_uring is for raw disks only",
        ),
        (
            "rate = { kib_per_s = 0 }",
            "`disk.rate.kib_per_s` is 0, but must be 1 to",
        ),
        (
            "rate = { burst_operations = 5 }",
            "`disk.rate.burst_operations` says nothing without `operations_per_s`",
        ),
        ("rate = { mib_per_s = 5 }", "`mib_per_s`"),
    ] {
        let errors = errors(&disk(lines)).join("\n");
        assert!(errors.contains(says), "{lines}: {errors}");
    }
}
