//! The record in etcd, through the JSON gateway of its v3 API (`/v3/kv/range`, `/v3/kv/txn`,
//! `/v3/auth/authenticate`).
//!
//! A swap names the `mod_revision` at which the expected record was read, so it succeeds only if nobody wrote
//! since, however late it arrives.
//!
//! * `caller`: members in turn, users and their tokens.
//! * `care`: names and files, kept fresh in the background.
//! * `refusal`: what etcd's refusals mean.

mod answers;
mod caller;
mod care;
mod refusal;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};
use serde_json::json;

use super::access::Access;
use super::http::Endpoint;
use super::{OpenError, WENT_BACK_ADVICE, stored};
use answers::{Header, KeyValue, RangeAnswer, TxnAnswer};
use caller::{Call, Caller};
use care::Care;

/// See the module. Clones share what they know of the cluster, and ask at the same time.
#[derive(Clone)]
pub struct Etcd {
    caller: Caller,
    key: String,
    vm: String,
    timeout: Duration,
    /// What the answers so far told about the store.
    seen: Arc<Mutex<Option<Seen>>>,
}

/// A later answer must not be from another store, or from an earlier time.
#[derive(Clone)]
struct Seen {
    cluster: String,
    revision: i64,
}

/// The record and the revision at which it was written (0: there is none).
struct Current {
    record: Option<Record>,
    mod_revision: i64,
}

impl Etcd {
    /// The record of `vm` under `prefix` in the cluster behind `endpoints`. Names are resolved, and files
    /// that `access` was read from looked at again, in the background: no request waits for a resolver that
    /// has answered before.
    pub fn new(
        endpoints: &[String],
        access: Access,
        prefix: &str,
        vm: &str,
        timeout: Duration,
    ) -> Result<Self, OpenError> {
        let parse = |text: &String| {
            Endpoint::parse(text).map_err(|reason| OpenError::Endpoint {
                endpoint: text.clone(),
                reason,
            })
        };
        let endpoints = endpoints.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let care = Care::begin(endpoints, access).map_err(OpenError::Thread)?;
        Ok(Self {
            caller: Caller::new(care),
            key: BASE64_STANDARD.encode(format!("{}/{vm}", prefix.trim_end_matches('/'))),
            vm: vm.to_owned(),
            timeout,
            seen: Arc::default(),
        })
    }

    /// Reads the record, and proves that it could be written: by a transaction that would put it, if a
    /// comparison held that never does. So it goes the whole way of a swap (the right to write this key,
    /// room, a majority that writes its log), and changes nothing.
    pub fn probe(&self) -> Result<Option<Record>, String> {
        let body = json!({
            "compare": [{ "key": self.key, "target": "VERSION", "result": "LESS", "version": "0" }],
            "success": [{ "requestPut": { "key": self.key, "ignore_value": true } }],
            "failure": [{ "requestRange": { "key": self.key } }],
        });
        let before = self.lock().clone();
        let answer: TxnAnswer = self
            .caller
            .call(&Call {
                path: "/v3/kv/txn",
                body: &body,
                deadline: Instant::now() + self.timeout,
                // It changes nothing, however often it is carried out.
                repeated: true,
            })
            .map_err(|failed| failed.sentence)?;
        self.check_header(before, &answer.header)?;
        match answer.into_range() {
            Some(kvs) => Ok(self.decode(&kvs)?.record),
            None => Err("etcd's answer to a transaction lacks the record that stood there".into()),
        }
    }

    /// What is wrong with names and files although the cluster may answer, as a sentence.
    pub fn trouble(&self) -> Option<String> {
        self.caller.care().trouble()
    }

    /// The same, once every name was tried; for at most `limit`.
    pub fn trouble_within(&self, limit: Duration) -> Option<String> {
        let care = self.caller.care();
        care.await_resolved(Instant::now() + limit);
        care.trouble()
    }

    /// Forgets what was seen of the store: the operator says that it is the right one although it went back.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, deadline: Instant) -> Result<Current, String> {
        let before = self.lock().clone();
        let answer: RangeAnswer = self
            .caller
            .call(&Call {
                path: "/v3/kv/range",
                // Without `serializable` a range is linearizable: a member asks the quorum first.
                body: &json!({ "key": self.key }),
                deadline,
                repeated: true,
            })
            .map_err(|failed| failed.sentence)?;
        self.check_header(before, &answer.header)?;
        self.decode(&answer.kvs)
    }

    fn swap(&self, expected: Option<&Record>, new: &Record, deadline: Instant) -> ArbiterAnswer {
        let current = match self.read(deadline) {
            Ok(current) => current,
            Err(sentence) => return ArbiterAnswer::Unavailable(sentence),
        };
        if current.record.as_ref() != expected {
            return ArbiterAnswer::Conflict(current.record);
        }
        let body = json!({
            "compare": [{
                "key": self.key, "target": "MOD", "result": "EQUAL",
                "mod_revision": current.mod_revision.to_string(),
            }],
            "success": [{ "requestPut": { "key": self.key, "value": BASE64_STANDARD.encode(stored::encode(new)) } }],
            "failure": [{ "requestRange": { "key": self.key } }],
        });
        let call = Call {
            path: "/v3/kv/txn",
            body: &body,
            deadline,
            repeated: false,
        };
        let before = self.lock().clone();
        let answer: TxnAnswer = match self.caller.call(&call) {
            Ok(answer) => answer,
            Err(failed) if failed.unclear => return ArbiterAnswer::Unknown(failed.sentence),
            Err(failed) => return ArbiterAnswer::Unavailable(failed.sentence),
        };
        if let Err(sentence) = self.check_header(before, &answer.header) {
            return ArbiterAnswer::Unknown(sentence);
        }
        if answer.succeeded {
            return ArbiterAnswer::Swapped;
        }
        match answer.into_range().map(|kvs| self.decode(&kvs)) {
            Some(Ok(current)) => ArbiterAnswer::Conflict(current.record),
            Some(Err(sentence)) => ArbiterAnswer::Unavailable(sentence),
            None => ArbiterAnswer::Unknown(
                "etcd's answer to a transaction lacks the record that stood there".into(),
            ),
        }
    }

    fn decode(&self, kvs: &[KeyValue]) -> Result<Current, String> {
        let Some(kv) = kvs.first() else {
            return Ok(Current {
                record: None,
                mod_revision: 0,
            });
        };
        let unusable =
            |why: String| format!("what etcd holds for the VM `{}` cannot be used: {why}", self.vm);
        let bytes = BASE64_STANDARD.decode(kv.value.as_deref().unwrap_or_default());
        let bytes = bytes.map_err(|error| unusable(error.to_string()))?;
        let record = stored::decode(&bytes, &self.vm).map_err(|error| unusable(error.to_string()))?;
        let mod_revision = kv
            .mod_revision
            .parse()
            .map_err(|_| unusable("it has no revision".into()))?;
        Ok(Current {
            record: Some(record),
            mod_revision,
        })
    }

    /// Checks an answer against what was seen before its request was sent: another thread's may have come
    /// meanwhile.
    fn check_header(&self, before: Option<Seen>, header: &Header) -> Result<(), String> {
        let revision = header
            .revision
            .parse()
            .map_err(|_| "etcd's answer has no revision".to_owned())?;
        if let Some(before) = before {
            if before.cluster != header.cluster_id {
                return Err(format!(
                    "the endpoints lead to different etcd clusters ({} and {}): name only members of one",
                    before.cluster, header.cluster_id
                ));
            }
            if revision < before.revision {
                return Err(format!(
                    "etcd went back in time (revision {revision}, after {} was seen): it was restored or replaced. \
                     {WENT_BACK_ADVICE}",
                    before.revision
                ));
            }
        }
        let mut seen = self.lock();
        let cluster = header.cluster_id.clone();
        match &mut *seen {
            Some(seen) if seen.cluster == cluster => seen.revision = seen.revision.max(revision),
            _ => *seen = Some(Seen { cluster, revision }),
        }
        Ok(())
    }
}

impl Arbiter for Etcd {
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        let deadline = Instant::now() + self.timeout;
        match request {
            ArbiterRequest::Read => match self.read(deadline) {
                Ok(current) => ArbiterAnswer::Record(current.record),
                Err(sentence) => ArbiterAnswer::Unavailable(sentence),
            },
            ArbiterRequest::Swap { expected, new } => self.swap(expected.as_ref(), new, deadline),
        }
    }
}
