//! Where a secondary is reached: it takes connections, reads their prefaces, and pairs them into sessions.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;

use crate::link::{Connection, Preface, Purpose};

/// Most connections that have not become a session yet.
const PENDING_MAX: usize = 16;
/// Longest time that a connection may take to become part of a session, in milliseconds.
const PENDING_MS_MAX: u64 = 3000;

/// A connection that is not part of a session yet.
struct Pending {
    connection: Connection,
    preface: Option<Preface>,
    since_ms: u64,
}

/// What came in.
pub enum Arrival {
    /// Both connections of a new session.
    Session { main: Connection, heartbeat: Connection },
    /// Somebody asks what this side holds.
    Query(Connection),
}

/// The listening socket.
pub struct Listener {
    socket: TcpListener,
    pending: Vec<Pending>,
}

impl Listener {
    pub fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(address).with_context(|| {
            format!(
                "cannot listen on {address}; is another secondary running, or is `listen` not an address of this host?"
            )
        })?;
        socket.set_nonblocking(true).context("cannot set up the listening socket")?;
        Ok(Self { socket, pending: Vec::new() })
    }

    /// The socket, for polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Connections to poll beside it.
    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.pending.iter().filter(|pending| pending.preface.is_none()).map(|pending| &pending.connection)
    }

    /// When a pending connection is given up.
    pub fn due_ms(&self) -> Option<u64> {
        self.pending.iter().map(|pending| pending.since_ms + PENDING_MS_MAX).min()
    }

    /// Takes what has come.
    pub fn poll(&mut self, now_ms: u64) -> Vec<Arrival> {
        self.accept(now_ms);
        self.pending.retain_mut(|pending| {
            if pending.since_ms + PENDING_MS_MAX <= now_ms {
                tracing::warn!("{} sent no whole greeting in time", pending.connection.peer_address());
                return false;
            }
            if pending.preface.is_none() {
                match pending.connection.receive_preface() {
                    Ok(preface) => pending.preface = preface,
                    Err(error) => {
                        // A port scan, a health check, `kemari check`: not worth a warning.
                        tracing::info!("{} was refused: {error}", pending.connection.peer_address());
                        return false;
                    }
                }
            }
            true
        });
        let mut arrivals = Vec::new();
        while let Some(index) = self.position(|preface| preface.purpose == Purpose::Query) {
            arrivals.push(Arrival::Query(self.pending.swap_remove(index).connection));
        }
        while let Some((main, heartbeat)) = self.matching() {
            arrivals.push(Arrival::Session { main, heartbeat });
        }
        arrivals
    }

    fn accept(&mut self, now_ms: u64) {
        while self.pending.len() < PENDING_MAX {
            match self.socket.accept().and_then(|(stream, _)| Connection::new(stream)) {
                Ok(connection) => self.pending.push(Pending { connection, preface: None, since_ms: now_ms }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return tracing::warn!("a connection could not be taken: {error}"),
            }
        }
    }

    fn position(&self, wanted: impl Fn(&Preface) -> bool) -> Option<usize> {
        self.pending.iter().position(|pending| pending.preface.as_ref().is_some_and(&wanted))
    }

    fn matching(&mut self) -> Option<(Connection, Connection)> {
        let nonces = self.pending.iter().filter_map(|pending| pending.preface);
        let nonce = nonces
            .filter(|preface| preface.purpose == Purpose::Main)
            .map(|preface| preface.session_nonce)
            .find(|nonce| self.place(Purpose::Heartbeat, *nonce).is_some())?;
        let main = self.place(Purpose::Main, nonce)?;
        let main = self.pending.remove(main).connection;
        let heartbeat = self.place(Purpose::Heartbeat, nonce)?;
        Some((main, self.pending.remove(heartbeat).connection))
    }

    fn place(&self, purpose: Purpose, session_nonce: u128) -> Option<usize> {
        self.position(|preface| *preface == Preface { purpose, session_nonce })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::connect;
    use std::io::Write;
    use std::net::TcpStream;

    #[test]
    fn two_connections_become_a_session_and_rubbish_does_not() {
        let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.socket.local_addr().unwrap();
        let _mute = TcpStream::connect(address).unwrap();
        let mut rubbish = TcpStream::connect(address).unwrap();
        rubbish.write_all(&[7; 64]).unwrap();
        let open = |purpose, session_nonce| connect(address, &Preface { purpose, session_nonce }).unwrap();
        let _kept = [
            open(Purpose::Heartbeat, 1),
            open(Purpose::Main, 2),
            open(Purpose::Main, 1),
            open(Purpose::Query, 0),
        ];
        std::thread::sleep(std::time::Duration::from_millis(50));
        let arrivals = listener.poll(0);
        assert!(matches!(arrivals[..], [Arrival::Query(_), Arrival::Session { .. }]));
        assert_eq!(listener.pending.len(), 2, "the mute one and the half session wait");
        listener.poll(PENDING_MS_MAX);
        assert_eq!(listener.pending.len(), 0);
    }
}
