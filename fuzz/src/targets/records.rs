//! Records: an image's, and the arbiter's as a file or etcd hold it.
//!
//! The first byte says which. An image's record has checksums that no chance finds: with an odd first byte
//! the input is what they are made of, and they are put right.

use kemari::fuzzing;
use kemari_sync::{Incarnation, Phase, Record, Work};

use super::support::tape::Tape;

/// See `kemari/src/replica/record.rs`.
const SLOT_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;
const MAGIC: &[u8; 8] = b"KMRR\x01\0\0\0";
/// The VM whose record the arbiter holds.
const VM: &str = "vm";

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape::new(bytes);
    match tape.u8() % 4 {
        0 => drop(fuzzing::work_on_image_record(tape.rest(), [0, 1])),
        2 => drop(fuzzing::arbiter_record(tape.rest(), VM)),
        _ => {
            let extents = [tape.u64(), tape.u8().into()];
            let slots = [(); 2].map(|()| {
                let length = tape.u8() as usize * 2;
                tape.bytes(length)
            });
            fuzzing::work_on_image_record(&image_record(slots, tape.rest()), extents);
        }
    }
}

/// The file of two heads and a map, with good checksums.
fn image_record(slots: [&[u8]; 2], map: &[u8]) -> Vec<u8> {
    let mut file = vec![0; SLOT_BYTES * 2];
    for (at, slot) in [0, SLOT_BYTES].into_iter().zip(slots) {
        let sector = &mut file[at..at + SECTOR_BYTES];
        sector[..8].copy_from_slice(MAGIC);
        let length = slot.len().min(SECTOR_BYTES - 12);
        sector[8..8 + length].copy_from_slice(&slot[..length]);
        seal(sector, 0);
    }
    for (number, bits) in map.chunks(SECTOR_BYTES - 4).enumerate() {
        let mut sector = [0; SECTOR_BYTES];
        sector[..bits.len()].copy_from_slice(bits);
        seal(&mut sector, number as u32);
        file.extend(sector);
    }
    file
}

fn seal(sector: &mut [u8], mark: u32) {
    let (content, checksum) = sector.split_at_mut(SECTOR_BYTES - 4);
    checksum.copy_from_slice(&(crc32fast::hash(content) ^ mark).to_le_bytes());
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let file = fuzzing::new_image_record(64 << 20);
    // What a slot holds between its magic number and its checksum, shortened to what is no zero.
    let slot = |at: usize| {
        let content = &file[at + 8..at + SECTOR_BYTES - 4];
        let length = content
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        content[..length.next_multiple_of(2)].to_vec()
    };
    let slots = [slot(0), slot(SLOT_BYTES)];
    let mut parts = vec![1];
    parts.extend([5u64.to_le_bytes().as_slice(), &[2]].concat());
    for slot in &slots {
        parts.push((slot.len() / 2) as u8);
        parts.extend(slot);
    }
    parts.extend(&file[SLOT_BYTES * 2..SLOT_BYTES * 2 + SECTOR_BYTES - 4]);
    let record = Record {
        vm: VM.into(),
        store: 9,
        term: 2,
        base: 2,
        owner: Incarnation {
            host: "a".into(),
            nonce: 1,
        },
        peer: Some(Incarnation {
            host: "b".into(),
            nonce: 2,
        }),
        phase: Phase::Acting,
        work: Work::default(),
    };
    let stored = fuzzing::arbiter_record_bytes(&record);
    vec![[&[0][..], &file].concat(), parts, [&[2][..], &stored].concat()]
}
