//! The record of everything that clients asked and were answered.

use std::time::Instant;

/// Nanoseconds since the start of the run, on the monotonic clock that all clients share.
pub type Nanos = u64;

/// The clock of one run. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn now(&self) -> Nanos {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Time of an instant; 0 if it was before the start.
    pub fn at(&self, instant: Instant) -> Nanos {
        u64::try_from(instant.saturating_duration_since(self.0).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Write the value with this counter: 1, 2, 3, ... for each key.
    Set(u64),
    /// Read.
    Get,
}

/// What it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The write was acknowledged.
    Written,
    /// The read returned the value with this counter; 0: there was none.
    Value(u64),
    /// The answer can be none to this request: a value that nobody wrote under this key,
    /// or another kind of reply.
    Impossible(String),
}

/// One request and, unless it stayed open, its answer.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Number of the connection.
    pub connection: u16,
    /// Number of the key. Only one connection writes a key.
    pub key: u32,
    /// What was asked.
    pub request: Request,
    /// When, just before the request was handed to the socket.
    pub invoked: Nanos,
    /// The answer, and when it was read from the socket. `None`:
    /// the request may or may not have been carried out.
    pub answer: Option<(Nanos, Answer)>,
}

impl Operation {
    /// Whether this is a write that was acknowledged.
    pub fn is_acknowledged_write(&self) -> bool {
        matches!(
            (&self.request, &self.answer),
            (Request::Set(_), Some((_, Answer::Written)))
        )
    }
}

/// What became of one connection.
#[derive(Clone, Debug)]
pub struct ConnectionEnd {
    /// Number of the connection.
    pub connection: u16,
    /// Why it was lost; `None`: it lived until the client closed it.
    pub lost: Option<String>,
    /// Answers for which there was no request.
    pub stray_answers: u64,
}

/// Everything that the clients of one run saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All requests; those of one connection in the order in which it sent them.
    pub operations: Vec<Operation>,
    /// One entry a connection.
    pub connections: Vec<ConnectionEnd>,
}

impl History {
    /// Adds what another client saw.
    pub fn merge(&mut self, other: History) {
        self.operations.extend(other.operations);
        self.connections.extend(other.connections);
    }

    /// Number of acknowledged writes answered in `[from, to)`.
    pub fn acknowledged_between(&self, from: Nanos, to: Nanos) -> u64 {
        let within = |op: &&Operation| {
            op.is_acknowledged_write() && op.answer.as_ref().is_some_and(|(at, _)| (from..to).contains(at))
        };
        self.operations.iter().filter(within).count() as u64
    }

    /// For each connection: number of acknowledged writes that were only asked for at `from` or later.
    pub fn acknowledged_since_by_connection(&self, from: Nanos) -> Vec<u64> {
        let count = |end: &ConnectionEnd| {
            let of_it = self
                .operations
                .iter()
                .filter(|op| op.connection == end.connection);
            of_it
                .filter(|op| op.invoked >= from && op.is_acknowledged_write())
                .count() as u64
        };
        self.connections.iter().map(count).collect()
    }

    /// Number of connections that were lost.
    pub fn connections_lost(&self) -> u64 {
        self.connections.iter().filter(|end| end.lost.is_some()).count() as u64
    }

    /// The longest time that any connection waited between two answers, or from its first request to the
    /// first answer, or for an answer that did not come until the end.
    pub fn longest_gap(&self) -> Nanos {
        let times = |op: &Operation| [Some(op.invoked), op.answer.as_ref().map(|(at, _)| *at)];
        let end = self
            .operations
            .iter()
            .flat_map(times)
            .flatten()
            .max()
            .unwrap_or(0);
        self.connections
            .iter()
            .map(|of| self.longest_gap_of(of.connection, end))
            .max()
            .unwrap_or(0)
    }

    fn longest_gap_of(&self, connection: u16, end: Nanos) -> Nanos {
        let (mut last, mut longest) = (None, 0);
        for op in self.operations.iter().filter(|op| op.connection == connection) {
            let since = last.unwrap_or(op.invoked);
            let at = op.answer.as_ref().map(|(at, _)| *at);
            longest = longest.max(at.unwrap_or(end).saturating_sub(since));
            last = at.or(last);
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_may_lie_before_between_and_behind_answers() {
        let op = |connection, invoked, answered: Option<Nanos>| Operation {
            connection,
            key: 0,
            request: Request::Get,
            invoked,
            answer: answered.map(|at| (at, Answer::Value(0))),
        };
        let connections = [0, 1]
            .map(|connection| ConnectionEnd {
                connection,
                lost: None,
                stray_answers: 0,
            })
            .to_vec();
        let gap = |operations| {
            History {
                operations,
                connections: connections.clone(),
            }
            .longest_gap()
        };
        assert_eq!(gap(vec![op(0, 10, Some(25)), op(0, 26, Some(27))]), 15);
        assert_eq!(
            gap(vec![op(0, 10, Some(11)), op(0, 12, Some(40))]),
            29,
            "since the answer before"
        );
        assert_eq!(
            gap(vec![op(0, 10, Some(11)), op(0, 12, None), op(1, 90, Some(91))]),
            80,
            "until the end"
        );
        assert_eq!(gap(Vec::new()), 0);
    }
}
