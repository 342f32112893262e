//! Emulated hosts, all in one lab: they take seconds to boot.
//!
//! Needs root, apt (the first time) and QEMU, which the lab installs;
//! where one is missing this fails and says so.

use std::fs::File;
use std::time::{Duration, Instant};

use lab::{Host, Lab, LabConfig, Network, replication_address};

/// How long one ping may take; measured: 1-2 ms, and a host may stall.
const PING: &str = "3";

#[test]
fn hosts_are_driven_cut_off_and_killed() {
    let dir = lab::scratch_dir().unwrap();
    let disk = dir.path().join("shared.raw");
    File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    let config = LabConfig {
        shared_disks: vec![disk],
        own_disks_mib: vec![8],
        nfs: true,
        ..LabConfig::default()
    };
    let started = Instant::now();
    let lab = Lab::start(config).unwrap_or_else(|error| panic!("{error}"));
    println!("two hosts are up after {:?}", started.elapsed());
    let (a, b) = (lab.host(0), lab.host(1));

    tools_are_there(a);
    programs_run_and_end(a);
    files_travel(a);
    static_tests_run_inside(a);
    what_one_writes_the_other_reads(a, b);
    links_are_cut_one_at_a_time(&lab);
    etcd_answers(a);
    clocks_differ(a, b);
    files_are_shared_over_nfs(&lab);
    power_is_cut_and_comes_back(a, b);
    one_host_fences_the_other(a, b);
}

/// What those who drive hosts count on: a shell takes a program that is missing for one that says no.
fn tools_are_there(host: &Host) {
    for tool in ["grep", "ip", "mount", "pidof", "truncate", "umount"] {
        host.sh(&format!("type {tool} >/dev/null")).unwrap();
    }
}

fn programs_run_and_end(host: &Host) {
    assert_eq!(
        host.sh("test -c /dev/kvm && test -c /dev/net/tun && echo $((6 * 7))")
            .unwrap(),
        "42\n"
    );
    assert!(host.sh("ip link show tap0").unwrap().contains("master br0"));
    let output = host
        .exec_with(
            &["sh", "-c", "cat; echo bad >&2; exit 3"],
            b"in",
            Duration::from_secs(5),
        )
        .unwrap();
    assert_eq!(
        (output.status, &output.stdout[..], &output.stderr[..]),
        (3, "in", "bad\n")
    );
    assert!(
        host.exec(&["no-such-program"])
            .unwrap_err()
            .to_string()
            .contains("no-such-program")
    );
    let slow = host.exec_with(&["sleep", "100"], b"", Duration::from_millis(200));
    assert!(slow.unwrap_err().to_string().contains("longer than 200ms"));

    let pid = host
        .spawn(
            &["sh", "-c", "echo $WORD; exec sleep 100"],
            &[("WORD", "ball")],
            "/tmp/log",
        )
        .unwrap();
    assert_eq!(host.state(pid).unwrap(), None);
    // It may be ended from its start on, which on a busy machine is before it has said anything.
    wait_until("the process has said its word", || {
        host.get("/tmp/log").is_ok_and(|log| log == b"ball\n")
    });
    host.signal(pid, 9).unwrap();
    wait_until("the process is gone", || {
        host.state(pid).unwrap() == Some(128 + 9)
    });
}

fn files_travel(host: &Host) {
    let this = std::env::current_exe().unwrap();
    let content = std::fs::read(&this).unwrap();
    let started = Instant::now();
    host.put(&this, "/a/new/directory/file").unwrap();
    let megabytes = content.len() as f64 / 1e6;
    println!("a file of {megabytes:.1} MB travelled in {:?}", started.elapsed());
    assert!(host.get("/a/new/directory/file").unwrap() == content);
    host.sh("test -x /a/new/directory/file").unwrap();
    assert!(host.get("/nowhere").is_err());
}

fn static_tests_run_inside(host: &Host) {
    let tests = lab::build::static_tests("lab", &[]).unwrap();
    // Cargo calls two of them lab-HASH: the library's and this one.
    let passed = tests.iter().any(|path| {
        host.put(path, "/tmp/tests").unwrap();
        host.sh("/tmp/tests messages_travel")
            .unwrap()
            .contains("1 passed")
    });
    assert!(passed, "{tests:?}");
}

fn what_one_writes_the_other_reads(a: &Host, b: &Host) {
    b.sh("dd if=/dev/vda bs=4096 count=1 skip=7 iflag=direct 2>/dev/null | grep -q shared && exit 1; exit 0")
        .unwrap();
    a.sh("yes shared | head -c 4096 | dd of=/dev/vda bs=4096 seek=7 oflag=direct")
        .unwrap();
    b.sh("dd if=/dev/vda bs=4096 count=1 skip=7 iflag=direct 2>/dev/null | grep -q shared")
        .unwrap();
    a.sh("test -b /dev/vdb").unwrap();
}

fn links_are_cut_one_at_a_time(lab: &Lab) {
    let (a, b) = (lab.host(0), lab.host(1));
    let ping = |from: &Host, to: usize| {
        from.exec(&[
            "ping",
            "-c",
            "1",
            "-W",
            PING,
            &replication_address(to).to_string(),
        ])
        .unwrap()
        .status
            == 0
    };
    assert!(ping(a, 1) && ping(b, 0));
    lab.cut(0, Network::Replication).unwrap();
    assert!(!ping(a, 1) && !ping(b, 0));
    lab.join(0, Network::Replication).unwrap();
    assert!(ping(a, 1));
    let carrier = || a.sh("cat /sys/class/net/replication/carrier").unwrap();
    b.set_link(Network::Replication, false).unwrap();
    assert!(!ping(a, 1));
    assert_eq!(carrier(), "1\n", "only the other's cable was pulled");
    b.set_link(Network::Replication, true).unwrap();
    assert!(ping(a, 1));
}

fn etcd_answers(host: &Host) {
    let answer = host.sh("wget -q -O - http://10.78.0.1:2379/health").unwrap();
    assert!(answer.contains("true"), "{answer}");
}

fn clocks_differ(a: &Host, b: &Host) {
    let clock = |host: &Host| host.sh("date +%s").unwrap().trim().parse::<i64>().unwrap();
    let ahead = clock(b) - clock(a);
    assert!(
        (ahead - lab::CLOCK_STEP.as_secs() as i64).abs() < 120,
        "{ahead} s"
    );
}

fn files_are_shared_over_nfs(lab: &Lab) {
    let (a, b, nfs) = (lab.host(0), lab.host(1), lab.nfs().unwrap());
    for host in [a, b] {
        host.sh("lab-nfs /mnt/nfs && lab-nfs /mnt/nfs").unwrap();
        assert!(host.sh("grep /mnt/nfs /proc/mounts").unwrap().contains(" nfs4 "));
    }
    a.sh("cd /mnt/nfs && echo one >1 && ln 1 name").unwrap();
    let link = b
        .exec(&["sh", "-c", "cd /mnt/nfs && echo two >2 && ln 2 name"])
        .unwrap();
    assert_ne!(link.status, 0, "a name is given once");
    assert_eq!(b.sh("cat /mnt/nfs/name").unwrap(), "one\n");
    assert!(nfs.directory().join("name").exists());
    nfs.pause().unwrap();
    let slow = b.exec_with(&["touch", "/mnt/nfs/3"], b"", Duration::from_secs(3));
    assert!(slow.unwrap_err().to_string().contains("longer than 3s"));
    nfs.resume().unwrap();
    wait_until("the server answers again", || b.sh("touch /mnt/nfs/4").is_ok());
}

fn power_is_cut_and_comes_back(a: &Host, b: &Host) {
    a.sh("echo lost >/tmp/file; echo kept | dd of=/dev/vdb bs=512 conv=sync,fsync")
        .unwrap();
    a.power_cut();
    assert!(!a.is_on());
    assert!(a.exec(&["true"]).is_err());
    b.sh("true").unwrap();
    let started = Instant::now();
    a.power_on().unwrap();
    a.wait_ready().unwrap();
    println!("a host that was cut is up again after {:?}", started.elapsed());
    assert!(a.get("/tmp/file").is_err(), "memory went with the power");
    assert!(
        a.sh("head -c 5 /dev/vdb").unwrap().contains("kept"),
        "its own disk stayed"
    );
    assert!(a.serial_log().contains("lab: host ready"));
}

fn one_host_fences_the_other(a: &Host, b: &Host) {
    assert_ne!(
        a.exec(&["lab-fence", "7"]).unwrap().status,
        0,
        "there is no such host"
    );
    assert!(b.is_on());
    a.sh("lab-fence 1").unwrap();
    assert!(!b.is_on());
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
