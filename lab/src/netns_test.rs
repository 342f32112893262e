use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::netns::Netns;

#[test]
fn a_listener_in_one_namespace_is_not_reached_from_another() {
    let (one, other) = (Netns::new("one").unwrap(), Netns::new("other").unwrap());
    let listener = one.run(|| TcpListener::bind("127.0.0.1:7001")).unwrap().unwrap();
    assert!(
        other
            .run(|| TcpStream::connect("127.0.0.1:7001"))
            .unwrap()
            .is_err()
    );
    assert!(one.run(|| TcpStream::connect("127.0.0.1:7001")).unwrap().is_ok());
    drop(listener);
}

#[test]
fn a_process_runs_inside_and_dies_with_its_guard() {
    let netns = Netns::new("place").unwrap();
    netns.ip("link add inside type bridge").unwrap();
    let output = netns
        .command("ip")
        .args(["link", "show", "inside"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let mut process = netns.spawn("sleeper", "sleep", &["1000"]).unwrap();
    assert!(process.is_running());
    assert_eq!(process.wait(Duration::ZERO).unwrap(), None);
    let proc_path = format!("/proc/{}", process.pid());
    drop(process);
    assert!(!std::fs::exists(proc_path).unwrap());
}

#[test]
fn a_failing_ip_command_says_which_and_why() {
    let netns = Netns::new("place").unwrap();
    let error = netns.ip("link set nothing up").unwrap_err().to_string();
    assert!(
        error.contains("link set nothing up") && error.contains("nothing"),
        "{error}"
    );
}
