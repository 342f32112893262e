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
use super::prober::Unproved;
use super::{OpenError, WENT_BACK_ADVICE, stored};
use crate::config::Endpoint;
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
    seen: Arc<Mutex<Seen>>,
}

/// What is known of the store. A later answer must not be from another one, or from an earlier time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// How often all was forgotten: an answer to what was asked before that says nothing of the store as it
    /// is now.
    forgotten: u64,
    /// The cluster and its latest revision.
    store: Option<(String, i64)>,
}

impl Seen {
    fn forget(&mut self) {
        *self = Self {
            forgotten: self.forgotten + 1,
            store: None,
        };
    }

    /// Checks an answer to what was asked when `before` was known, and notes what it tells. Others may have
    /// been answered meanwhile.
    fn note(&mut self, before: &Self, header: &Header) -> Result<(), String> {
        let revision = header
            .revision
            .parse()
            .map_err(|_| "etcd's answer has no revision".to_owned())?;
        let cluster = &header.cluster_id;
        let is_of_now = before.forgotten == self.forgotten;
        let known = before.store.as_ref();
        if let Some((other, _)) = known.or(self.store.as_ref().filter(|_| is_of_now))
            && other != cluster
        {
            return Err(format!(
                "the endpoints lead to different etcd clusters ({other} and {cluster}): name only members of \
                 one"
            ));
        }
        if let Some((_, latest)) = known.filter(|(_, latest)| revision < *latest) {
            return Err(format!(
                "etcd went back in time (revision {revision}, after {latest} was seen): it was restored or \
                 replaced. {WENT_BACK_ADVICE}"
            ));
        }
        if is_of_now {
            let latest = self
                .store
                .take()
                .map_or(revision, |(_, latest)| latest.max(revision));
            self.store = Some((cluster.clone(), latest));
        }
        Ok(())
    }
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
    pub fn probe(&self) -> Result<Option<Record>, Unproved> {
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
            .map_err(|failed| match failed.silent {
                true => Unproved::Silent(failed.sentence),
                false => Unproved::Refused(failed.sentence),
            })?;
        let found = self.lock().note(&before, &answer.header);
        found
            .and_then(|()| match answer.into_range() {
                Some(kvs) => Ok(self.decode(&kvs)?.record),
                None => Err("etcd's answer to a transaction lacks the record that stood there".into()),
            })
            .map_err(Unproved::Refused)
    }

    /// What is wrong with names and files although the cluster may answer, as a sentence.
    pub fn trouble(&self) -> Option<String> {
        self.caller.care().trouble()
    }

    /// The same, once every name was tried; for at most `limit`.
    pub(crate) fn trouble_within(&self, limit: Duration) -> Option<String> {
        let care = self.caller.care();
        care.await_resolved(Instant::now() + limit);
        care.trouble()
    }

    /// Forgets what was seen of the store: the operator says that it is the right one although it went back.
    pub fn forget(&self) {
        self.lock().forget();
    }

    /// For fuzzing: takes a member's bytes as the answer to each of the calls.
    #[cfg(feature = "fuzzing")]
    pub(super) fn take_any_answer(&self, bytes: &[u8]) {
        let Ok(response) = super::http::read_response(bytes) else {
            return;
        };
        self.forget();
        let before = self.lock().clone();
        if let Ok(answer) = refusal::parse::<RangeAnswer>("m:1", &response) {
            let _ = self.lock().note(&before, &answer.header);
            let _ = self.decode(&answer.kvs);
        }
        if let Ok(answer) = refusal::parse::<TxnAnswer>("m:1", &response) {
            let _ = self.lock().note(&before, &answer.header);
            let _ = answer.into_range().map(|kvs| self.decode(&kvs));
        }
        let _ = refusal::parse::<answers::AuthAnswer>("m:1", &response);
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
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
        self.lock().note(&before, &answer.header)?;
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
        let value = BASE64_STANDARD.encode(stored::encode(new));
        let body = json!({
            "compare": [{
                "key": self.key, "target": "MOD", "result": "EQUAL",
                "mod_revision": current.mod_revision.to_string(),
            }],
            "success": [{ "requestPut": { "key": self.key, "value": value } }],
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
        if let Err(sentence) = self.lock().note(&before, &answer.header) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cluster: &str, revision: i64) -> Header {
        Header {
            cluster_id: cluster.to_owned(),
            revision: revision.to_string(),
        }
    }

    #[test]
    fn an_answer_is_held_against_what_was_known_when_it_was_asked_for_and_what_came_meanwhile() {
        let mut seen = Seen::default();
        let at_first = seen.clone();
        seen.note(&at_first, &header("a", 10)).unwrap();
        // Asked for at the same time as that one: it may be older, and must be of the same cluster.
        seen.note(&at_first, &header("a", 9)).unwrap();
        let other = seen.note(&at_first, &header("b", 11)).unwrap_err();
        assert!(other.contains("different etcd clusters (a and b)"), "{other}");
        // Asked for after it.
        let later = seen.clone();
        assert_eq!(later.store, Some(("a".to_owned(), 10)));
        let earlier = seen.note(&later, &header("a", 9)).unwrap_err();
        assert!(earlier.contains("went back in time"), "{earlier}");
        seen.note(&later, &header("a", 12)).unwrap();
        seen.note(&later, &header("a", 11)).unwrap();
        assert_eq!(seen.store, Some(("a".to_owned(), 12)));
    }

    #[test]
    fn an_answer_from_before_all_was_forgotten_is_not_remembered() {
        let mut seen = Seen::default();
        for asked_with in [None, Some(("a".to_owned(), 10))] {
            seen.store = asked_with;
            let before = seen.clone();
            seen.forget();
            seen.note(&before, &header("a", 10)).unwrap();
            assert_eq!(seen.store, None);
            let now = seen.clone();
            seen.note(&now, &header("b", 3)).unwrap();
            seen.note(&before, &header("a", 11)).unwrap();
            assert_eq!(seen.store, Some(("b".to_owned(), 3)));
        }
    }
}
