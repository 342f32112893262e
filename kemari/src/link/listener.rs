//! Where a secondary is reached: it takes connections, reads their prefaces, and pairs them into sessions.

use std::io;
use std::mem::take;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

use super::{Connection, LinkError, Preface, Purpose, Security};
use crate::rest::{self, Rest};

/// Most connections that have not become a session yet.
const PENDING_MAX: usize = 16;
/// Longest time that a connection may take to become part of a session, or to read why it is refused,
/// in milliseconds.
const PENDING_MS_MAX: u64 = 3000;

/// A connection that is not part of a session yet.
struct Pending {
    connection: Connection,
    /// Where from. Of a connection that was reset the kernel does not know it any more.
    address: SocketAddr,
    stage: Stage,
    since_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its preface has not come; a TLS handshake may be under way.
    Fresh,
    /// It was told that it is accepted.
    Accepted(Preface),
    /// It may still read why it was refused.
    Refused,
}

/// What came in.
pub enum Arrival {
    /// Both connections of a new session.
    Session {
        /// Everything but heartbeats.
        main: Connection,
        /// Heartbeats.
        heartbeat: Connection,
    },
    /// Somebody asks what this side holds.
    Query(Connection),
    /// Somebody was sent away.
    Refused {
        /// Where from.
        address: String,
        /// Why.
        reason: LinkError,
    },
}

/// The listening socket.
pub struct Listener {
    socket: TcpListener,
    security: Security,
    pending: Vec<Pending>,
    rest: Rest,
}

impl Listener {
    /// Listens at `address`.
    pub fn bind(address: SocketAddr, security: Security) -> io::Result<Self> {
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            security,
            pending: Vec::new(),
            rest: Rest::default(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The socket, for polling; none while it rests, since a connection that cannot be taken stays readable.
    pub fn fd(&self, now_ms: u64) -> Option<BorrowedFd<'_>> {
        self.rest.until_ms(now_ms).is_none().then(|| self.socket.as_fd())
    }

    /// Connections to poll beside it.
    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        let waiting = |pending: &&Pending| !matches!(pending.stage, Stage::Accepted(_));
        self.pending
            .iter()
            .filter(waiting)
            .map(|pending| &pending.connection)
    }

    /// When a pending connection is given up, or the socket's rest is over.
    pub(crate) fn due_ms(&self, now_ms: u64) -> Option<u64> {
        self.pending
            .iter()
            .map(|pending| pending.since_ms + PENDING_MS_MAX)
            .chain(self.rest.until_ms(now_ms))
            .min()
    }

    /// Takes what has come.
    pub fn poll(&mut self, now_ms: u64) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        self.accept(now_ms, &mut arrivals);
        for mut pending in take(&mut self.pending) {
            if pending.is_over(now_ms, &mut arrivals) {
                continue;
            }
            if let Err(reason) = pending.greet() {
                pending.stage = Stage::Refused;
                pending.connection.refuse();
                arrivals.push(Arrival::Refused {
                    address: pending.address.to_string(),
                    reason,
                });
            }
            self.pending.push(pending);
        }
        while let Some(index) = self.position(|preface| preface.purpose == Purpose::Query) {
            arrivals.push(Arrival::Query(self.pending.swap_remove(index).connection));
        }
        while let Some((main, heartbeat)) = self.matching() {
            arrivals.push(Arrival::Session { main, heartbeat });
        }
        arrivals
    }

    fn accept(&mut self, now_ms: u64, arrivals: &mut Vec<Arrival>) {
        if self.rest.until_ms(now_ms).is_some() {
            return;
        }
        // More than wait at a time would only push each other out, and whoever connects without end would
        // keep this side from everything else.
        for _ in 0..PENDING_MAX {
            let (stream, address) = match self.socket.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.rest.end(),
                Err(error) if rest::is_of_connection(&error) => continue,
                Err(error) => {
                    if self.rest.begin(now_ms) {
                        tracing::warn!("no connection can be taken: {error}; it is tried again");
                    }
                    return;
                }
            };
            self.make_room();
            match Connection::accept(stream, &self.security) {
                Ok(connection) => self.pending.push(Pending {
                    connection,
                    address,
                    stage: Stage::Fresh,
                    since_ms: now_ms,
                }),
                Err(reason) => arrivals.push(Arrival::Refused {
                    address: address.to_string(),
                    reason,
                }),
            }
        }
    }

    /// The oldest connection gives way: one that was mute for long must not keep the right primary waiting.
    fn make_room(&mut self) {
        if self.pending.len() < PENDING_MAX {
            return;
        }
        let ages = self
            .pending
            .iter()
            .enumerate()
            .map(|(index, pending)| (pending.since_ms, index));
        if let Some((_, oldest)) = ages.min() {
            self.pending.swap_remove(oldest);
        }
    }

    fn position(&self, wanted: impl Fn(&Preface) -> bool) -> Option<usize> {
        self.pending
            .iter()
            .position(|pending| matches!(&pending.stage, Stage::Accepted(preface) if wanted(preface)))
    }

    fn matching(&mut self) -> Option<(Connection, Connection)> {
        let nonces: Vec<u128> = self.pending.iter().filter_map(Pending::session).collect();
        let nonce = nonces
            .into_iter()
            .find(|nonce| self.place(Purpose::Heartbeat, *nonce).is_some())?;
        let main = self.place(Purpose::Main, nonce)?;
        let main = self.pending.remove(main).connection;
        let heartbeat = self.place(Purpose::Heartbeat, nonce)?;
        Some((main, self.pending.remove(heartbeat).connection))
    }

    fn place(&self, purpose: Purpose, session_nonce: u128) -> Option<usize> {
        self.position(|preface| {
            *preface
                == Preface {
                    purpose,
                    session_nonce,
                }
        })
    }
}

impl Pending {
    /// Whether it is given up, or has read why it was refused.
    fn is_over(&mut self, now_ms: u64, arrivals: &mut Vec<Arrival>) -> bool {
        let is_late = self.since_ms + PENDING_MS_MAX <= now_ms;
        if self.stage == Stage::Refused {
            return is_late || self.connection.has_left();
        }
        if is_late {
            let reason = LinkError::Refused("it sent no whole greeting in time".into());
            arrivals.push(Arrival::Refused {
                address: self.address.to_string(),
                reason,
            });
        }
        is_late
    }

    /// Reads the preface, if it is there, and says that it is accepted.
    fn greet(&mut self) -> Result<(), LinkError> {
        if self.stage != Stage::Fresh {
            return Ok(());
        }
        if let Some(preface) = self.connection.receive_preface()? {
            self.stage = Stage::Accepted(preface);
            self.connection.send(preface.encode().to_vec());
        }
        self.connection.flush();
        Ok(())
    }

    /// The session whose main connection this is.
    fn session(&self) -> Option<u128> {
        match &self.stage {
            Stage::Accepted(preface) if preface.purpose == Purpose::Main => Some(preface.session_nonce),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::connect;
    use std::io::Write;
    use std::net::TcpStream;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn mute_connections_do_not_keep_the_right_primary_out() {
        let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Security::Plaintext).unwrap();
        let address = listener.address().unwrap();
        let _mute: Vec<_> = (0..PENDING_MAX)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        std::thread::sleep(std::time::Duration::from_millis(50));
        listener.poll(0);
        assert_eq!(listener.pending.len(), PENDING_MAX);
        let _late = TcpStream::connect(address).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        listener.poll(1);
        assert_eq!(listener.pending.len(), PENDING_MAX);
        assert!(listener.pending.iter().any(|pending| pending.since_ms == 1));
        let _later = TcpStream::connect(address).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        listener.poll(2);
        let late = |since_ms| {
            listener
                .pending
                .iter()
                .any(|pending| pending.since_ms == since_ms)
        };
        assert!(late(1) && late(2), "the oldest give way");
    }

    #[test]
    fn who_comes_and_resets_is_named() {
        let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Security::Plaintext).unwrap();
        let mut client = TcpStream::connect(listener.address().unwrap()).unwrap();
        let ours = client.local_addr().unwrap().to_string();
        let preface = Preface {
            purpose: Purpose::Main,
            session_nonce: 1,
        };
        client.write_all(&preface.encode()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(listener.poll(0).is_empty());
        std::thread::sleep(Duration::from_millis(50));
        // It has not read that it is accepted: the kernel resets the connection.
        drop(client);
        std::thread::sleep(Duration::from_millis(50));
        let arrivals = listener.poll(PENDING_MS_MAX);
        assert!(matches!(&arrivals[..], [Arrival::Refused { address, .. }] if *address == ours));
    }

    #[test]
    fn who_connects_without_end_does_not_hold_the_side() {
        let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Security::Plaintext).unwrap();
        let address = listener.address().unwrap();
        let first = TcpStream::connect(address).unwrap();
        let many: Vec<_> = (0..2 * PENDING_MAX)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        std::thread::sleep(std::time::Duration::from_millis(50));
        listener.poll(0);
        let ours = first.local_addr().unwrap().to_string();
        let has = |listener: &Listener, ours: &str| {
            let pending = listener.pending.iter();
            pending
                .filter(|pending| pending.connection.peer_address() == ours)
                .count()
        };
        assert_eq!(has(&listener, &ours), 1, "one turn takes no more than may wait");
        let last = many.last().unwrap().local_addr().unwrap().to_string();
        listener.poll(1);
        listener.poll(2);
        assert_eq!(has(&listener, &last), 1, "the others have their turns");
    }

    #[test]
    fn two_connections_become_a_session_and_rubbish_does_not() {
        let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Security::Plaintext).unwrap();
        let address = listener.address().unwrap();
        let _mute = TcpStream::connect(address).unwrap();
        let mut rubbish = TcpStream::connect(address).unwrap();
        rubbish.write_all(&[7; 64]).unwrap();
        let openers = [
            (Purpose::Heartbeat, 1),
            (Purpose::Main, 2),
            (Purpose::Main, 1),
            (Purpose::Query, 0),
        ]
        .map(|(purpose, session_nonce)| {
            let preface = Preface {
                purpose,
                session_nonce,
            };
            thread::spawn(move || connect(&Security::Plaintext, "b", address, &preface).unwrap())
        });
        let mut arrivals = Vec::new();
        for _ in 0..100 {
            arrivals.extend(listener.poll(0));
            thread::sleep(Duration::from_millis(10));
            if openers.iter().all(thread::JoinHandle::is_finished) && arrivals.len() >= 3 {
                break;
            }
        }
        let count = |wanted: fn(&Arrival) -> bool| arrivals.iter().filter(|arrival| wanted(arrival)).count();
        assert_eq!(count(|arrival| matches!(arrival, Arrival::Session { .. })), 1);
        assert_eq!(count(|arrival| matches!(arrival, Arrival::Query(_))), 1);
        assert_eq!(count(|arrival| matches!(arrival, Arrival::Refused { .. })), 1);
        let kept = openers.map(|opener| opener.join().unwrap());
        let ours = |opener: &Connection| {
            let address = rustix::net::getsockname(opener.fd()).unwrap();
            SocketAddr::try_from(address).unwrap().to_string()
        };
        let session = arrivals.iter().find_map(|arrival| match arrival {
            Arrival::Session { main, heartbeat } => Some([heartbeat.peer_address(), main.peer_address()]),
            _ => None,
        });
        assert_eq!(
            session,
            Some([ours(&kept[0]), ours(&kept[2])]),
            "both of one nonce"
        );
        assert_eq!(
            listener.pending.len(),
            3,
            "the mute one and the half session wait, the refused one may read why"
        );
        assert_eq!(listener.poll(PENDING_MS_MAX).len(), 2, "both are told about");
        assert_eq!(listener.pending.len(), 0);
    }
}
