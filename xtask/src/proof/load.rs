//! What the clients do, and the values that they write.

use std::net::SocketAddr;
use std::time::Duration;

use lab::Netns;

/// Fewest connections of a demo.
pub const CONNECTIONS_MIN: u16 = 8;
/// Most connections (the bare guest serves 64, one stays free for the final read).
pub const CONNECTIONS_MAX: u16 = 63;
/// Longest value, in bytes (the bare guest's limit).
pub const VALUE_BYTES_MAX: usize = 256;

/// How clients speak with the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// As with Redis: keys and values.
    Resp,
    /// As with PostgreSQL: transactions.
    Postgres,
}

/// What the clients of one run do.
#[derive(Clone, Debug)]
pub struct Load {
    /// How they speak.
    pub protocol: Protocol,
    /// Where the service listens.
    pub service: SocketAddr,
    /// The network namespace to connect from; `None`: this process's own.
    pub netns: Option<Netns>,
    /// Number of connections.
    pub connections: u16,
    /// Number of keys that each connection writes (with PostgreSQL each transaction is a key of its own).
    pub keys_per_connection: u32,
    /// Requests that a connection keeps outstanding (with PostgreSQL: one).
    pub pipeline: usize,
    /// Share of reads among the requests, in percent. Half of them read keys of other connections.
    pub reads_percent: u32,
    /// A request without an answer for so long means that the connection is lost.
    pub answer_timeout: Duration,
    /// Makes what the clients do repeatable.
    pub seed: u64,
    /// Tells the keys and values of this run from those of any other.
    pub run: u32,
}

impl Load {
    /// The usual load on a service.
    pub fn new(service: SocketAddr, seed: u64) -> Self {
        Self {
            protocol: Protocol::Resp,
            service,
            netns: None,
            connections: CONNECTIONS_MIN,
            keys_per_connection: 4,
            pipeline: 1,
            reads_percent: 50,
            answer_timeout: Duration::from_secs(60),
            seed,
            run: (mix(seed) >> 32) as u32,
        }
    }

    /// Number of all keys.
    pub fn keys(&self) -> u32 {
        u32::from(self.connections) * self.keys_per_connection
    }

    /// The number of the `n`-th key that a connection writes.
    pub fn own_key(&self, connection: u16, n: u32) -> u32 {
        u32::from(connection) * self.keys_per_connection + n
    }

    /// A key as the server sees it.
    pub fn key_name(&self, key: u32) -> String {
        format!("k{:08x}:{key}", self.run)
    }

    /// The value of a key with a counter: unique, of varying length, and every byte of it can be checked.
    pub fn value(&self, key: u32, counter: u64) -> Vec<u8> {
        let mut state = mix(u64::from(self.run) << 32 | u64::from(key)) ^ mix(counter);
        let mut value = format!("{:08x}:{key}:{counter}:", self.run);
        let padding_bytes = (state % 160) as usize;
        for _ in 0..padding_bytes {
            state = mix(state);
            value.push(char::from(b'a' + (state % 26) as u8));
        }
        debug_assert!(
            value.len() <= VALUE_BYTES_MAX,
            "padding leaves room for the longest prefix"
        );
        value.into_bytes()
    }

    /// The counter of a value read under a key, or why nobody can have written it.
    pub fn counter_of(&self, key: u32, value: &[u8]) -> Result<u64, String> {
        let shown = || String::from_utf8_lossy(&value[..value.len().min(48)]).into_owned();
        let counter = || -> Option<u64> { std::str::from_utf8(value).ok()?.split(':').nth(2)?.parse().ok() };
        let counter = counter().ok_or_else(|| format!("a value that is none of ours: `{}`", shown()))?;
        if counter == 0 || self.value(key, counter) != value {
            return Err(format!("a value that nobody wrote under this key: `{}`", shown()));
        }
        Ok(counter)
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        Load::new("127.0.0.1:1".parse().unwrap(), 7)
    }

    #[test]
    fn a_value_tells_its_counter_and_nothing_else_passes() {
        let load = load();
        let value = load.value(3, 41);
        assert_eq!(load.counter_of(3, &value), Ok(41));
        assert!(load.counter_of(2, &value).is_err(), "the value of another key");
        assert!(
            Load {
                run: 1,
                ..load.clone()
            }
            .counter_of(3, &value)
            .is_err(),
            "the value of another run"
        );
        assert!(load.counter_of(3, b"").is_err());
        let mut torn = value.clone();
        torn.truncate(value.len() - 1);
        assert!(load.counter_of(3, &torn).is_err(), "a torn value");
    }

    #[test]
    fn values_fit_the_smallest_service() {
        let load = load();
        for counter in [1, 2, 1000, u64::MAX] {
            assert!(load.value(u32::MAX, counter).len() <= VALUE_BYTES_MAX);
        }
    }
}
