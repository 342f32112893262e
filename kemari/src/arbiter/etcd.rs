//! The record in etcd, through the JSON gateway of its v3 API (`/v3/kv/range`, `/v3/kv/txn`, `/v3/auth/authenticate`).
//!
//! A swap names the `mod_revision` at which the expected record was read, so it succeeds only if nobody wrote since,
//! however late it arrives.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::access::Access;
use super::http::{Endpoint, Post, Response};
use super::{OpenError, stored};

/// HTTP statuses that say that a transaction was certainly not carried out. Others, as 503, may come after it was.
const REFUSALS: [u16; 7] = [400, 401, 403, 404, 405, 413, 501];

/// See the module.
pub struct Etcd {
    members: Vec<(Endpoint, SocketAddr)>,
    /// The member that answered last, asked first.
    favourite: usize,
    key: String,
    vm: String,
    timeout: Duration,
    access: Access,
    /// Of the user, if there is one. A member that was restarted knows it no more.
    token: Option<String>,
    seen: Option<Seen>,
}

/// What an answer told about the store: a later answer must not be from another one, or from an earlier time.
struct Seen {
    cluster: String,
    revision: i64,
}

/// The record and the revision at which it was written (0: there is none).
struct Current {
    record: Option<Record>,
    mod_revision: i64,
}

#[derive(Deserialize)]
struct Header {
    cluster_id: String,
    revision: String,
}

#[derive(Deserialize)]
struct KeyValue {
    value: Option<String>,
    mod_revision: String,
}

#[derive(Deserialize)]
struct RangeAnswer {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct TxnAnswer {
    header: Header,
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<TxnResponse>,
}

#[derive(Deserialize)]
struct TxnResponse {
    response_range: Option<TxnRange>,
}

#[derive(Deserialize)]
struct TxnRange {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

/// Why a call brought no answer.
struct Failed {
    sentence: String,
    /// Whether it may have been carried out.
    unclear: bool,
    /// Whether a member does not know the token (any more).
    unauthorized: bool,
}

impl Failed {
    fn certain(sentence: String) -> Self {
        Self {
            sentence,
            unclear: false,
            unauthorized: false,
        }
    }
}

impl Etcd {
    /// The record of `vm` under `prefix` in the cluster behind `endpoints`. Names are resolved now, and only now, so
    /// that no request waits for a resolver.
    pub fn new(
        endpoints: &[String],
        access: Access,
        prefix: &str,
        vm: &str,
        timeout: Duration,
    ) -> Result<Self, OpenError> {
        let mut members = Vec::new();
        for text in endpoints {
            let wrong = |reason: String| OpenError::Endpoint {
                endpoint: text.clone(),
                reason,
            };
            let endpoint = Endpoint::parse(text).map_err(wrong)?;
            let addresses = endpoint.resolve().map_err(|error| wrong(error.to_string()))?;
            members.extend(addresses.into_iter().map(|address| (endpoint.clone(), address)));
        }
        if members.is_empty() {
            let reason = "there is no address to ask".into();
            return Err(OpenError::Endpoint {
                endpoint: endpoints.join(", "),
                reason,
            });
        }
        let key = BASE64_STANDARD.encode(format!("{}/{vm}", prefix.trim_end_matches('/')));
        Ok(Self {
            members,
            favourite: 0,
            key,
            vm: vm.to_owned(),
            timeout,
            access,
            token: None,
            seen: None,
        })
    }

    fn read(&mut self, deadline: Instant) -> Result<Current, String> {
        // Without `serializable` a range is linearizable: a member asks the quorum first.
        let body = json!({ "key": self.key });
        let answer: RangeAnswer = self
            .call("/v3/kv/range", &body, deadline, true)
            .map_err(|f| f.sentence)?;
        self.check_header(&answer.header)?;
        self.decode(&answer.kvs)
    }

    fn swap(&mut self, expected: Option<&Record>, new: &Record, deadline: Instant) -> ArbiterAnswer {
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
        let answer: TxnAnswer = match self.call("/v3/kv/txn", &body, deadline, false) {
            Ok(answer) => answer,
            Err(failed) if failed.unclear => return ArbiterAnswer::Unknown(failed.sentence),
            Err(failed) => return ArbiterAnswer::Unavailable(failed.sentence),
        };
        if let Err(sentence) = self.check_header(&answer.header) {
            return ArbiterAnswer::Unknown(sentence);
        }
        if answer.succeeded {
            return ArbiterAnswer::Swapped;
        }
        let range = answer
            .responses
            .into_iter()
            .find_map(|response| response.response_range);
        match range.map(|range| self.decode(&range.kvs)) {
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

    fn check_header(&mut self, header: &Header) -> Result<(), String> {
        let revision = header
            .revision
            .parse()
            .map_err(|_| "etcd's answer has no revision".to_owned())?;
        if let Some(seen) = &self.seen {
            if seen.cluster != header.cluster_id {
                return Err(format!(
                    "the endpoints lead to different etcd clusters ({} and {}): name only members of one",
                    seen.cluster, header.cluster_id
                ));
            }
            if revision < seen.revision {
                return Err(format!(
                    "etcd went back in time (revision {revision}, after {} was seen): it was restored or replaced. \
                     Stop both sides and find out which VM state is the last",
                    seen.revision
                ));
            }
        }
        self.seen = Some(Seen {
            cluster: header.cluster_id.clone(),
            revision,
        });
        Ok(())
    }

    /// Calls as the user, if there is one, with a new token if the old one is refused.
    fn call<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &serde_json::Value,
        deadline: Instant,
        repeated: bool,
    ) -> Result<T, Failed> {
        if self.access.user.is_none() {
            return self.ask(path, body, deadline, repeated);
        }
        if self.token.is_some() {
            match self.ask(path, body, deadline, repeated) {
                // Refused for certain: nothing was carried out.
                Err(failed) if failed.unauthorized => {}
                outcome => return outcome,
            }
        }
        self.authenticate(deadline)?;
        self.ask(path, body, deadline, repeated)
    }

    fn authenticate(&mut self, deadline: Instant) -> Result<(), Failed> {
        #[derive(Deserialize)]
        struct Answer {
            token: String,
        }
        let Some(user) = &self.access.user else {
            return Ok(());
        };
        let body = json!({ "name": user.name, "password": user.password });
        self.token = None;
        let answer: Answer = self
            .ask("/v3/auth/authenticate", &body, deadline, true)
            .map_err(|failed| Failed {
                sentence: format!("the arbiter's user cannot be authenticated: {}", failed.sentence),
                // Whatever happened: the call that it was for was not made.
                unclear: false,
                ..failed
            })?;
        // It goes into a header.
        if !answer.token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failed::certain(
                "etcd's token is no word of printable characters".into(),
            ));
        }
        self.token = Some(answer.token);
        Ok(())
    }

    /// Asks one member after another until one answers. A call that may not be `repeated` ends with the first member
    /// that may have received it.
    fn ask<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &serde_json::Value,
        deadline: Instant,
        repeated: bool,
    ) -> Result<T, Failed> {
        let body = body.to_string();
        let count = self.members.len();
        let (mut sentences, mut unauthorized) = (Vec::new(), false);
        for attempt in 0..count {
            let index = (self.favourite + attempt) % count;
            let (endpoint, address) = &self.members[index];
            let now = Instant::now();
            let share = deadline.saturating_duration_since(now) / (count - attempt) as u32;
            let until = now + share;
            let answer_until = if repeated { until } else { deadline };
            let post = Post {
                endpoint,
                address: *address,
                tls: self.access.tls.as_ref(),
                token: self.token.as_deref(),
                path,
                body: body.as_bytes(),
            };
            let result = match post.send(until, answer_until) {
                Ok(response) => parse(endpoint.authority(), &response),
                Err(failure) => Err(Failed {
                    sentence: failure.sentence,
                    unclear: failure.sent,
                    unauthorized: false,
                }),
            };
            match result {
                Ok(answer) => {
                    self.favourite = index;
                    return Ok(answer);
                }
                Err(failed) if failed.unclear && !repeated => return Err(failed),
                Err(failed) => {
                    unauthorized |= failed.unauthorized;
                    sentences.push(failed.sentence);
                }
            }
        }
        Err(Failed {
            unauthorized,
            ..Failed::certain(format!("etcd cannot be asked: {}", sentences.join("; ")))
        })
    }
}

fn parse<T: DeserializeOwned>(name: &str, response: &Response) -> Result<T, Failed> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    if response.status == 200 {
        return serde_json::from_slice(&response.body).map_err(|error| Failed {
            sentence: format!("{name} answers, but not as etcd does ({error}): is it the right endpoint?"),
            unclear: true,
            unauthorized: false,
        });
    }
    let why = serde_json::from_slice::<Refusal>(&response.body).map_or_else(|_| String::new(), |r| r.error);
    Err(Failed {
        sentence: format!("{name} refused with status {}: {why}", response.status),
        unclear: !REFUSALS.contains(&response.status),
        unauthorized: response.status == 401,
    })
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
