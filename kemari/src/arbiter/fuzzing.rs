//! Doors for `fuzz/` to the arbiters' bytes.

use std::time::Duration;

use kemari_sync::Record;

use super::etcd::Etcd;
use super::{Access, stored};

/// The record of `vm` in stored bytes, if it is one: then it is written as bytes that are the same record.
pub fn arbiter_record(bytes: &[u8], vm: &str) -> Option<Record> {
    let record = stored::decode(bytes, vm).ok()?;
    let again = stored::decode(&stored::encode(&record), vm);
    assert_eq!(again.as_ref(), Ok(&record), "a record survives its bytes");
    Some(record)
}

/// The bytes of a record.
pub fn arbiter_record_bytes(record: &Record) -> Vec<u8> {
    stored::encode(record)
}

/// An etcd whose members answer with any bytes.
pub struct Members(Etcd);

impl Members {
    /// The record of `vm`.
    pub fn new(vm: &str) -> Self {
        let nowhere = ["http://127.0.0.1:1".to_owned()];
        let etcd = Etcd::new(&nowhere, Access::default(), "/kemari", vm, Duration::from_secs(1));
        Self(etcd.unwrap_or_else(|error| panic!("it has no member to resolve: {error}")))
    }

    /// Takes what a member sent: to a range, a transaction or an authentication.
    pub fn answer(&self, bytes: &[u8]) {
        self.0.take_any_answer(bytes);
    }
}
