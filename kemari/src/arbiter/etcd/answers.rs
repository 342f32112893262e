//! What etcd's JSON gateway answers, as far as it is needed. Fields that have their default value are left
//! out by it.

use serde::Deserialize;

/// Of every answer: from which cluster, and at which revision of its store.
#[derive(Deserialize)]
pub(super) struct Header {
    pub cluster_id: String,
    pub revision: String,
}

#[derive(Deserialize)]
pub(crate) struct KeyValue {
    /// In base64.
    pub value: Option<String>,
    pub mod_revision: String,
}

/// To `/v3/kv/range`.
#[derive(Deserialize)]
pub(crate) struct RangeAnswer {
    pub header: Header,
    #[serde(default)]
    pub kvs: Vec<KeyValue>,
}

/// To `/v3/kv/txn`.
#[derive(Deserialize)]
pub(crate) struct TxnAnswer {
    pub header: Header,
    #[serde(default)]
    pub succeeded: bool,
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

impl TxnAnswer {
    /// What the transaction read, if it did.
    pub(crate) fn into_range(self) -> Option<Vec<KeyValue>> {
        let mut ranges = self
            .responses
            .into_iter()
            .filter_map(|response| response.response_range);
        ranges.next().map(|range| range.kvs)
    }
}

/// To `/v3/auth/authenticate`.
#[derive(Deserialize)]
pub(crate) struct AuthAnswer {
    pub token: String,
}
