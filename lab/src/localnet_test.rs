use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::network::{Network, OUTSIDE_CONTROL, replication_address};
use crate::{LocalNet, Netns};

/// Far more than a datagram takes through two bridges.
const SILENCE: Duration = Duration::from_millis(300);

fn socket(netns: &Netns, address: SocketAddr) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send_to(b"ball", to.local_addr().unwrap()).unwrap();
    to.recv(&mut [0; 16]).is_ok()
}

#[test]
fn links_are_cut_in_silence_both_ways_and_one_way() {
    let net = LocalNet::new(2, 1).unwrap();
    let a = socket(net.host(0).netns(), (replication_address(0), 7002).into());
    let b = socket(net.host(1).netns(), (replication_address(1), 7002).into());
    assert!(arrives(&a, &b) && arrives(&b, &a));

    net.cut_one_way(0, 1).unwrap();
    assert!(!arrives(&a, &b) && arrives(&b, &a));
    net.join_one_way(0, 1).unwrap();
    assert!(arrives(&a, &b) && arrives(&b, &a));

    net.cut(1, Network::Replication).unwrap();
    assert!(!arrives(&a, &b) && !arrives(&b, &a));
    // The cut is in one network only: the arbiter's stays.
    let listener = net
        .outside()
        .run(|| TcpListener::bind((OUTSIDE_CONTROL, 7002)))
        .unwrap()
        .unwrap();
    let to = listener.local_addr().unwrap();
    for host in 0..2 {
        let connection = net
            .host(host)
            .netns()
            .run(|| TcpStream::connect_timeout(&to, SILENCE))
            .unwrap();
        assert!(connection.is_ok(), "host {host}");
    }
    net.join(1, Network::Replication).unwrap();
    assert!(arrives(&a, &b) && arrives(&b, &a));
}

#[test]
fn a_host_that_is_down_is_heard_nowhere() {
    let net = LocalNet::new(1, 2).unwrap();
    let listener = net
        .outside()
        .run(|| TcpListener::bind((OUTSIDE_CONTROL, 7003)))
        .unwrap()
        .unwrap();
    let to = listener.local_addr().unwrap();
    let connect = || {
        net.host(0)
            .netns()
            .run(|| TcpStream::connect_timeout(&to, SILENCE))
            .unwrap()
    };
    assert!(connect().is_ok());
    net.down(0).unwrap();
    assert!(connect().is_err());
    net.up(0).unwrap();
    assert!(connect().is_ok());
}

#[test]
fn taps_stand_on_the_bridge_and_are_down() {
    let net = LocalNet::new(1, 2).unwrap();
    for guest in 0..2 {
        let tap = net.host(0).tap(guest);
        let output = net
            .host(0)
            .netns()
            .command("ip")
            .args(["link", "show", &tap])
            .output()
            .unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(
            shown.contains("master br0") && shown.contains("state DOWN"),
            "{shown}"
        );
    }
}
