//! Files as people write them, and the sentences they get.

use super::*;

pub(super) const EXAMPLE: &str = include_str!("../../../docs/example.toml");

pub(super) fn errors(text: &str) -> Vec<String> {
    match Config::parse(text, "vm.toml") {
        Ok(_) => vec![],
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

/// The example with one line changed; `from` must be in it.
pub(super) fn changed(from: &str, to: &str) -> String {
    assert!(EXAMPLE.contains(from), "the example has no `{from}`");
    EXAMPLE.replacen(from, to, 1)
}

/// The one error of the changed example, which must be at the line of the change.
pub(super) fn error_of(from: &str, to: &str) -> String {
    let text = changed(from, to);
    let line = 1 + EXAMPLE[..EXAMPLE.find(from).unwrap()].matches('\n').count();
    let errors = errors(&text);
    assert_eq!(errors.len(), 1, "{errors:?}");
    let start = format!("vm.toml, line {line}: ");
    errors[0]
        .strip_prefix(&start)
        .unwrap_or_else(|| panic!("not at line {line}: {}", errors[0]))
        .to_owned()
}

#[test]
fn the_example_is_a_configuration() {
    let config = Config::parse(EXAMPLE, "example.toml").unwrap();
    assert_eq!(config.vm, "demo");
    assert_eq!(config.machine.memory_mib, 512);
    assert_eq!(config.nets_of("b")[0].tap, "tap3");
    assert_eq!(
        config.disks_of("a")[0].path,
        Path::new("/dev/disk/by-id/shared-lun-1")
    );
    assert_eq!(config.disks[0].serial(), "demo-root");
    assert_eq!(config.host("a").control(), Path::new("/run/kemari/demo.sock"));
    assert_eq!(config.host("a").state_dir(), Path::new("/var/lib/kemari/demo"));
    assert_eq!(
        config.host("a").fence_against("b"),
        ["/usr/local/sbin/power-off", "b"]
    );
    assert_eq!(config.peers("a").map(|(name, _)| name).collect::<Vec<_>>(), ["b"]);
    assert_eq!(config.select_host(Some("a")).unwrap(), "a");
    let unknown = config.select_host(Some("c")).unwrap_err().to_string();
    assert_eq!(
        unknown,
        "there is no host `c` in the configuration; it knows `a`, `b`"
    );
}

#[test]
fn mistyped_keys_are_named_with_the_nearest_right_one() {
    assert_eq!(
        error_of("memory_mib = 512", "memmory_mib = 512"),
        "unknown key `memmory_mib` in [machine]; did you mean `memory_mib`?"
    );
    assert_eq!(
        error_of("cache =", "cahce ="),
        "unknown key `cahce` in [[disk]]; did you mean `cache`?"
    );
    assert_eq!(
        error_of("console = \"none\"", "consol = 1"),
        "unknown key `consol` in [hosts.a]; did you mean `console`?"
    );
}

#[test]
fn all_mistyped_keys_at_once_in_order() {
    let text = changed("memory_mib = 512", "memmory_mib = 512").replace("[arbiter]", "[arbitre]");
    let errors = errors(&text);
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(
        errors[0].contains("line 7: unknown key `memmory_mib`"),
        "{errors:?}"
    );
    assert!(
        errors[1].contains("unknown key `arbitre` at the top of the file; did you mean `arbiter`?"),
        "{errors:?}"
    );
}

#[test]
fn far_off_keys_get_the_list() {
    let sentence = error_of("vcpus = 1", "colour = 1");
    assert_eq!(
        sentence,
        "unknown key `colour` in [machine]; the keys there are: memory_mib, vcpus, kernel, firmware, initrd, \
         cmdline"
    );
}

#[test]
fn wrong_types_name_their_key() {
    let sentence = error_of("memory_mib = 512", "memory_mib = \"512M\"");
    assert_eq!(
        sentence,
        "`machine.memory_mib` is a whole number, without quotes and unit, and not \"512M\""
    );
    let sentence = error_of("cache = \"direct\"", "cache = \"direkt\"");
    assert_eq!(
        sentence,
        "`disk.cache`: unknown value `direkt`, expected `writeback` or `direct`"
    );
    assert!(
        error_of("52:54:00:12:34:56", "52:54:00:12:34")
            .contains("`net.mac`: `52:54:00:12:34` is no MAC address")
    );
    assert!(error_of("10.0.0.2:7711", "10.0.0").starts_with("`hosts.b.listen`: `10.0.0` is no address"));
    assert!(error_of("console = \"none\"", "console = \"tty\"").contains("write `stdio`, `none`"));
    assert!(error_of("vcpus = 1", "vcpus = -1").starts_with("`machine.vcpus`: "));
}

#[test]
fn what_was_meant_by_a_value_of_another_type_is_said() {
    for (from, to, says) in [
        (
            "memory_mib = 512",
            "memory_mib = \"512\"",
            "`machine.memory_mib` is a number: write 512, without quotes",
        ),
        (
            "memory_mib = 512",
            "memory_mib = 0.5",
            "`machine.memory_mib` is a whole number, without quotes and unit, and not 0.5",
        ),
        (
            "shared = true",
            "shared = \"true\"",
            "`disk.shared` is true or false: write true, without quotes",
        ),
        (
            "kernel = \"vmlinuz\"",
            "kernel = 5",
            "`machine.kernel` is text: write it in quotes, \"5\"",
        ),
        (
            "fence = [\"/usr/local/sbin/power-off\", \"{peer}\"]\nfence_timeout_ms",
            "fence = \"power-off\"\nfence_timeout_ms",
            "`hosts.a.fence` is a list: write it in brackets, [\"power-off\"]",
        ),
        (
            "[[disk]]",
            "[disk]",
            "`disk` is a list of sections: write its heading with two brackets, as [[disk]]",
        ),
        (
            "[machine]",
            "[[machine]]",
            "`machine` is one section: write its heading with one pair of brackets, as [machine]",
        ),
        (
            "[[disk]]",
            "[[disks]]",
            "unknown key `disks` at the top of the file; did you mean `disk`?",
        ),
    ] {
        assert_eq!(error_of(from, to), says);
    }
    assert_eq!(errors("\n\n"), ["vm.toml: the file lacks the key `vm`"]);
}

#[test]
fn hooks_are_no_part_of_what_both_hosts_have_in_common() {
    let with = |hook: &str| changed("[arbiter]", &format!("{hook}\n[arbiter]"));
    let good = "[[hook]]\non = [\"unprotected\", \"arbiter_silent\"]\ncommand = [\"alarm\", \"now\"]";
    let config = Config::parse(&with(good), "vm.toml").unwrap();
    assert_eq!(config.hooks[0].timeout_ms, 10_000);
    assert_eq!(
        config.digest(),
        Config::parse(&with(""), "vm.toml").unwrap().digest()
    );
    for (from, to, says) in [
        (
            "unprotected",
            "unprotekted",
            "`hook.on`: unknown value `unprotekted`, expected one of",
        ),
        (
            "[\"unprotected\", \"arbiter_silent\"]",
            "[]",
            "`hook.on` is empty: say when",
        ),
        ("[\"alarm\", \"now\"]", "[]", "`hook.command` names no program"),
        (
            "[\"alarm\", \"now\"]",
            "\"alarm\"",
            "`hook.command` is a list: write it in brackets, [\"alarm\"]",
        ),
        (
            "command",
            "comand",
            "unknown key `comand` in [[hook]]; did you mean `command`?",
        ),
        (
            "on =",
            "timeout_ms = 5\non =",
            "`hook.timeout_ms` is 5, but must be 100 to 600000",
        ),
        ("[[hook]]", "[hook]", "`hook` is a list of sections"),
    ] {
        let errors = errors(&with(&good.replace(from, to)));
        assert!(errors[0].contains(says), "{errors:?}");
    }
    let many = errors(&with(&[good; 17].join("\n")));
    assert!(many[0].contains("there are 17 hooks, but at most 16"), "{many:?}");
    let command = |words: Vec<String>| good.replace("[\"alarm\", \"now\"]", &format!("{words:?}"));
    let word = |bytes: usize| "x".repeat(bytes);
    for just_right in [vec![word(1); 64], vec![word(4096)]] {
        Config::parse(&with(&command(just_right)), "vm.toml").unwrap();
    }
    for too_long in [vec![word(1); 65], vec![word(4096), word(1)]] {
        let long = errors(&with(&command(too_long)));
        assert!(long[0].contains("but at most 64 of 4096 may be"), "{long:?}");
    }
}

#[test]
fn hosts_may_be_named() {
    let named = |a: &str, b: &str| {
        let text = changed("10.0.0.1:7711", a).replace("10.0.0.2:7711", b);
        Config::parse(&text, "vm.toml")
    };
    let mut config = named("localhost", "localhost:7712").unwrap();
    config.resolve().unwrap();
    assert_eq!(config.host("a").listen.address().port(), 7711);
    // No resolver is asked for it: that could take long.
    let nobody = "x".repeat(64);
    let config = named(&nobody, "10.0.0.2");
    let error = config.unwrap().resolve().unwrap_err().to_string();
    assert!(
        error.starts_with(&format!(
            "`hosts.a.listen`: the name `{nobody}` has no address here"
        )),
        "{error}"
    );
    let same = named("localhost", "127.0.0.1:7711")
        .unwrap()
        .resolve()
        .unwrap_err();
    assert_eq!(
        same.to_string(),
        "`hosts.b.listen`: it is 127.0.0.1:7711, as that of the host `a`"
    );
}

#[test]
fn missing_keys_name_their_section() {
    assert_eq!(
        errors(&changed("kernel = \"vmlinuz\"\n", "")),
        [
            "vm.toml, line 6: `machine` lacks the key `kernel`, or `firmware = \"bios\"` to boot the first \
             disk"
        ]
    );
    assert_eq!(
        errors(&changed("vm = \"demo\"\n", "")),
        ["vm.toml: the file lacks the key `vm`"]
    );
}

/// The example without its kernel, with this line instead.
pub(super) fn with_firmware(line: &str) -> String {
    let kernel =
        "kernel = \"vmlinuz\"\ninitrd = \"initrd.img\"\ncmdline = \"console=ttyS0 root=/dev/vda rw\"\n";
    changed(kernel, &format!("{line}\n"))
}

#[test]
fn a_path_of_firmware_is_relative_to_the_file_but_a_name_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.toml");
    for (line, expected) in [
        (
            "firmware = \"bios\"",
            Path::new("/usr/share/seabios/bios-microvm.bin").to_owned(),
        ),
        ("firmware = \"./bios\"", directory.path().join("./bios")),
        ("firmware = \"bios.bin\"", directory.path().join("bios.bin")),
    ] {
        std::fs::write(&path, with_firmware(line)).unwrap();
        assert_eq!(Config::load(&path).unwrap().machine.begins_with(), expected);
    }
}

#[test]
fn what_is_no_toml_has_a_line() {
    assert!(
        errors("vm = \"demo\"\nmachine = {")
            .first()
            .unwrap()
            .starts_with("vm.toml, line 2: this is not TOML")
    );
    assert!(!errors("\u{0}\u{1}").is_empty());
}

#[test]
fn the_digest_covers_what_is_common_and_nothing_else() {
    let digest = |text: &str| Config::parse(text, "vm.toml").unwrap().digest();
    let original = digest(EXAMPLE);
    for (from, to) in [
        ("memory_mib = 512", "memory_mib = 513"),
        ("34:56", "34:57"),
        ("\"pipelined\"", "\"lockstep\""),
        ("demo-root", "x"),
    ] {
        assert_ne!(digest(&changed(from, to)), original, "{to}");
    }
    for (from, to) in [
        ("tap3", "tap4"),
        ("10.0.0.2:7711", "10.0.0.2:7712"),
        ("# A protected", "# Another"),
        ("\"none\"", "\"stdio\""),
    ] {
        assert_eq!(digest(&changed(from, to)), original, "{to}");
    }
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.toml");
    std::fs::write(&path, EXAMPLE).unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!(config.machine.begins_with(), directory.path().join("vmlinuz"));
    assert_eq!(
        config.disks_of("a")[0].path,
        Path::new("/dev/disk/by-id/shared-lun-1")
    );
    assert_eq!(
        config.digest(),
        Config::parse(EXAMPLE, "").unwrap().digest(),
        "the digest depends on the directory"
    );
    let missing = Config::load(&directory.path().join("none.toml")).unwrap_err();
    assert!(missing.to_string().starts_with("cannot read the configuration"));
}

#[test]
fn every_key_is_documented() {
    use super::fields::fields_of;
    let text = include_str!("../../../docs/configuration.md");
    let keys = [
        fields_of::<Machine>(),
        fields_of::<Disk>(),
        fields_of::<Net>(),
        fields_of::<Rate>(),
        fields_of::<Protection>(),
        fields_of::<Arbiter>(),
        fields_of::<Host>(),
    ];
    for key in keys.concat() {
        assert!(
            text.contains(&format!("| `{key}` |")),
            "docs/configuration.md lacks `{key}`"
        );
    }
    let defaults = Protection::default();
    for (key, default) in [
        ("suspicion_timeout_ms", defaults.suspicion_timeout_ms),
        ("progress_timeout_ms", defaults.progress_timeout_ms),
        ("staging_mib_max", defaults.staging_mib_max),
        ("max_dirty_pages", defaults.max_dirty_pages),
        ("replica_queue_mib_max", defaults.replica_queue_mib_max),
        ("replica_timeout_ms", defaults.replica_timeout_ms),
        ("drill_interval_s", defaults.drill_interval_s),
    ] {
        assert!(
            text.contains(&format!("| `{key}` | {default} |")),
            "docs/configuration.md: default of `{key}`"
        );
    }
}
