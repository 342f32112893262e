//! A small key-value server that speaks RESP, and lies on demand.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use xtask::proof::resp::{Decoder, Reply};

/// What a server does wrong, at each n-th request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lie {
    /// Nothing.
    None,
    /// Acknowledges a write and does not carry it out.
    ForgetEvery(u64),
    /// Answers a read with the value before the last one.
    StaleEvery(u64),
    /// Sends an answer twice.
    AnswerTwiceEvery(u64),
    /// Refuses.
    RefuseEvery(u64),
}

/// All versions of each key, with the time of their writing.
type Store = HashMap<Vec<u8>, Vec<(Instant, Vec<u8>)>>;

struct Shared {
    lie: Lie,
    requests: AtomicU64,
    store: Mutex<Store>,
}

/// The server; its threads end with the connections.
pub(crate) struct Liar {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Liar {
    pub(crate) fn start(lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            lie,
            requests: AtomicU64::new(0),
            store: Mutex::default(),
        });
        let served = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || served.serve(stream));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forgets everything that was written in the last so many milliseconds.
    pub(crate) fn go_back_ms(&self, ms: u64) {
        let mut store = self.shared.store.lock().unwrap();
        for versions in store.values_mut() {
            versions.retain(|(at, _)| at.elapsed().as_millis() > u128::from(ms));
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let mut decoder = Decoder::default();
        let mut bytes = [0; 4096];
        loop {
            match stream.read(&mut bytes) {
                Ok(n) if n > 0 => decoder.feed(&bytes[..n]),
                _ => return,
            }
            let mut out = Vec::new();
            while let Some(request) = decoder.next_reply().unwrap() {
                let Reply::Array(Some(words)) = request else {
                    panic!("no request: {request:?}")
                };
                let words = words.into_iter().map(|word| match word {
                    Reply::Bulk(Some(bytes)) => bytes,
                    other => panic!("no word: {other:?}"),
                });
                out.extend(self.answer(words.collect()));
            }
            if stream.write_all(&out).is_err() {
                return;
            }
        }
    }

    fn answer(&self, words: Vec<Vec<u8>>) -> Vec<u8> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let every = |n: u64| number.is_multiple_of(n);
        let mut store = self.store.lock().unwrap();
        let versions = store.entry(words[1].clone()).or_default();
        if let Lie::RefuseEvery(n) = self.lie
            && every(n)
        {
            return b"-ERR not now\r\n".to_vec();
        }
        let answer = if words[0] == b"SET" {
            if !matches!(self.lie, Lie::ForgetEvery(n) if every(n)) {
                versions.push((Instant::now(), words[2].clone()));
            }
            b"+OK\r\n".to_vec()
        } else {
            let back = usize::from(matches!(self.lie, Lie::StaleEvery(n) if every(n)));
            match versions.len().checked_sub(1 + back) {
                Some(index) => {
                    let value = &versions[index].1;
                    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
                }
                None => b"$-1\r\n".to_vec(),
            }
        };
        match self.lie {
            Lie::AnswerTwiceEvery(n) if every(n) => answer.repeat(2),
            _ => answer,
        }
    }
}
