//! The bytes of a record in a store: JSON that people can read, with a format number and a checksum.
//!
//! What was added to a record later is left out where it says nothing: so one that an older version can act
//! upon is written in the older form, and an older one is read.

use kemari_sync::{Incarnation, Phase, Record, TERM_MAX, Work};
use serde::{Deserialize, Serialize};

/// Number of the form below. A store written by a later form is refused.
pub(crate) const FORMAT: u32 = 2;
/// The form without what a winner says of its work.
const FORMAT_WITHOUT_WORK: u32 = 1;
/// Longest stored record, in bytes.
pub(crate) const STORED_BYTES_MAX: usize = 4096;

/// Why stored bytes are no record that may be acted upon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoredError {
    /// It is longer than any record.
    #[error("it has {0} bytes, more than a record can have")]
    TooLong(usize),
    /// It cannot be read.
    #[error("it is no record of Kemari ({0}): it was damaged, or something else wrote there")]
    Garbage(String),
    /// It was written by a later version.
    #[error("it has format {0}, and this version of Kemari knows {FORMAT}: use the version that wrote it")]
    Format(u32),
    /// It was changed after it was written.
    #[error("its checksum is wrong: it was damaged, or edited by hand")]
    Checksum,
    /// No VM comes so far.
    #[error("its term is {0}, to which no VM comes: it was damaged, or edited by hand")]
    Term(u64),
    /// It is the record of another VM.
    #[error("it is the record of the VM `{0}`: two VMs are configured to use one place")]
    OtherVm(String),
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    format: u32,
    record: Body,
    crc32: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    vm: String,
    store: String,
    term: u64,
    base: u64,
    phase: Phase,
    owner: Side,
    peer: Option<Side>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    work: Option<Work>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Side {
    host: String,
    nonce: String,
}

impl Side {
    fn of(incarnation: &Incarnation) -> Self {
        Self {
            host: incarnation.host.clone(),
            nonce: format!("{:032x}", incarnation.nonce),
        }
    }

    fn incarnation(self) -> Result<Incarnation, StoredError> {
        Ok(Incarnation {
            nonce: number(&self.nonce)?,
            host: self.host,
        })
    }
}

fn number(text: &str) -> Result<u128, StoredError> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let value = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
    value.ok_or_else(|| StoredError::Garbage(format!("`{text}` are not 32 hex digits")))
}

fn checksum(body: &Body) -> String {
    let text = serde_json::to_vec(body).expect("strings and numbers are always JSON");
    format!("{:08x}", crc32fast::hash(&text))
}

/// The bytes to store for `record`.
pub(super) fn encode(record: &Record) -> Vec<u8> {
    let body = Body {
        vm: record.vm.clone(),
        store: format!("{:032x}", record.store),
        term: record.term,
        base: record.base,
        phase: record.phase,
        owner: Side::of(&record.owner),
        peer: record.peer.as_ref().map(Side::of),
        work: Some(record.work).filter(|work| *work != Work::default()),
    };
    let envelope = Envelope {
        format: match body.work {
            Some(_) => FORMAT,
            None => FORMAT_WITHOUT_WORK,
        },
        crc32: checksum(&body),
        record: body,
    };
    let mut bytes = serde_json::to_vec(&envelope).expect("strings and numbers are always JSON");
    bytes.push(b'\n');
    bytes
}

/// The record of `vm` in stored bytes; never taken as absent when it cannot be read.
pub(super) fn decode(bytes: &[u8], vm: &str) -> Result<Record, StoredError> {
    if bytes.len() > STORED_BYTES_MAX {
        return Err(StoredError::TooLong(bytes.len()));
    }
    let garbage = |error: serde_json::Error| StoredError::Garbage(error.to_string());
    // The format stands outside what it describes: a later one may have another body.
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(garbage)?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) || format == u64::from(FORMAT_WITHOUT_WORK) => {}
        Some(format) => return Err(StoredError::Format(format.try_into().unwrap_or(u32::MAX))),
        None => return Err(StoredError::Garbage("it has no format number".into())),
    }
    let envelope: Envelope = serde_json::from_value(value).map_err(garbage)?;
    if envelope.crc32 != checksum(&envelope.record) {
        return Err(StoredError::Checksum);
    }
    let body = envelope.record;
    if body.vm != vm {
        return Err(StoredError::OtherVm(body.vm));
    }
    let term = body.term.max(body.base);
    if term >= TERM_MAX {
        return Err(StoredError::Term(term));
    }
    Ok(Record {
        store: number(&body.store)?,
        term: body.term,
        base: body.base,
        owner: body.owner.incarnation()?,
        peer: body.peer.map(Side::incarnation).transpose()?,
        phase: body.phase,
        work: body.work.unwrap_or_default(),
        vm: body.vm,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            vm: "demo".into(),
            store: u128::MAX - 5,
            term: TERM_MAX - 1,
            base: 7,
            owner: Incarnation {
                host: "a".into(),
                nonce: 1 << 100,
            },
            peer: Some(Incarnation {
                host: "b".into(),
                nonce: 2,
            }),
            phase: Phase::Won,
            work: Default::default(),
        }
    }

    #[test]
    fn there_and_back() {
        for peer in [record().peer, None] {
            let record = Record { peer, ..record() };
            assert_eq!(decode(&encode(&record), "demo"), Ok(record));
        }
        let work = Work {
            number: u64::MAX,
            beat: 3,
            fence_ms_max: 13_000,
        };
        let record = Record { work, ..record() };
        assert_eq!(decode(&encode(&record), "demo"), Ok(record));
    }

    #[test]
    fn a_record_of_the_form_before_is_read_and_written_as_it_was() {
        let old = concat!(
            r#"{"format":1,"record":{"vm":"demo","store":"fffffffffffffffffffffffffffffffa","#,
            r#""term":9223372036854775806,"base":7,"phase":"won","#,
            r#""owner":{"host":"a","nonce":"00000010000000000000000000000000"},"#,
            r#""peer":{"host":"b","nonce":"00000000000000000000000000000002"}},"crc32":"0edf315b"}"#,
            "\n"
        );
        assert_eq!(decode(old.as_bytes(), "demo"), Ok(record()));
        assert_eq!(encode(&record()), old.as_bytes());
    }

    #[test]
    fn every_torn_or_changed_byte_is_refused() {
        let bytes = encode(&record());
        for length in 0..bytes.len() - 1 {
            assert!(decode(&bytes[..length], "demo").is_err(), "{length} bytes");
        }
        for index in 0..bytes.len() - 1 {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            if let Ok(read) = decode(&changed, "demo") {
                assert_eq!(read, record(), "byte {index} changed the record");
            }
        }
        assert!(decode(&[0; 512], "demo").is_err());
    }

    #[test]
    fn a_term_to_which_no_vm_comes_is_refused() {
        for term in [TERM_MAX, u64::MAX] {
            for record in [
                Record { term, ..record() },
                Record {
                    base: term,
                    ..record()
                },
            ] {
                assert_eq!(decode(&encode(&record), "demo"), Err(StoredError::Term(term)));
            }
        }
    }

    #[test]
    fn others_are_named() {
        assert_eq!(
            decode(&encode(&record()), "other"),
            Err(StoredError::OtherVm("demo".into()))
        );
        assert_eq!(
            decode(br#"{"format":3,"body":[]}"#, "demo"),
            Err(StoredError::Format(3))
        );
        let edited = String::from_utf8(encode(&record()))
            .unwrap()
            .replace("\"base\":7", "\"base\":8");
        assert_eq!(decode(edited.as_bytes(), "demo"), Err(StoredError::Checksum));
    }
}
