//! The record under power cuts: at every step, with every part of what was not yet synced lost.

use std::sync::{Arc, Mutex};

use super::*;

/// Writes, beyond the end, too: what lies between is zeros.
fn put(target: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    target.resize(target.len().max(offset + bytes.len()), 0);
    target[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Stable storage that forgets: what was written since the last sync survives a cut in whole sectors or not
/// at all.
#[derive(Clone, Default)]
struct Forgetful(Arc<Mutex<Inner>>);

#[derive(Clone, Default)]
struct Inner {
    durable: Vec<u8>,
    /// Sectors that were written since the last sync, in order.
    volatile: Vec<(usize, Vec<u8>)>,
    /// Operations left until the power is cut.
    left: Option<usize>,
}

impl Forgetful {
    fn new(bytes: u64) -> Self {
        let store = Self::default();
        store.0.lock().unwrap().durable = vec![0; bytes as usize];
        store
    }

    fn cut_after(&self, operations: usize) {
        self.0.lock().unwrap().left = Some(operations);
    }

    /// How many sectors a cut could lose now.
    fn volatile(&self) -> usize {
        self.0.lock().unwrap().volatile.len()
    }

    /// What is there after a cut that spares the sectors with a bit in `spared`.
    fn after_cut(&self, spared: u64) -> Self {
        let inner = self.0.lock().unwrap();
        let mut durable = inner.durable.clone();
        for (index, (offset, bytes)) in inner.volatile.iter().enumerate() {
            if spared & 1 << index != 0 {
                put(&mut durable, *offset, bytes);
            }
        }
        Self(Arc::new(Mutex::new(Inner {
            durable,
            ..Inner::default()
        })))
    }
}

impl Inner {
    /// All that is there while the power is.
    fn whole(&self) -> Vec<u8> {
        let mut whole = self.durable.clone();
        for (offset, bytes) in &self.volatile {
            put(&mut whole, *offset, bytes);
        }
        whole
    }

    fn step(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("the power is cut")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Store for Forgetful {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let inner = self.0.lock().unwrap();
        let whole = inner.whole();
        let offset = offset as usize;
        match whole.get(offset..offset + bytes.len()) {
            Some(part) => bytes.copy_from_slice(part),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.step()?;
        for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            inner
                .volatile
                .push((offset as usize + index * SECTOR_BYTES, sector.to_vec()));
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.step()?;
        for (offset, bytes) in std::mem::take(&mut inner.volatile) {
            put(&mut inner.durable, offset, &bytes);
        }
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().whole().len() as u64)
    }
}

/// An image whose map has three sectors.
const IMAGE_BYTES: u64 = 10_000 * EXTENT_BYTES;

fn head(term: u64) -> Head {
    Head {
        vm: "vm".into(),
        disk: "blk0".into(),
        image_bytes: IMAGE_BYTES,
        history: ImageHistory::first(1, 2, term),
    }
}

fn fresh() -> (Forgetful, Record) {
    let store = Forgetful::new(Record::bytes_for(IMAGE_BYTES));
    let record = Record::create(Box::new(store.clone()), head(1)).unwrap();
    (store, record)
}

/// Every store that a cut now can leave.
fn cuts(store: &Forgetful) -> impl Iterator<Item = Forgetful> + '_ {
    let volatile = store.volatile();
    assert!(volatile < 12, "{volatile} sectors are too many to try all");
    (0..1u64 << volatile).map(|spared| store.after_cut(spared))
}

#[test]
fn what_is_written_is_read_again() {
    let (store, mut record) = fresh();
    record.mark([0, 63, 64, 4063, 4064, 9999]).unwrap();
    record.clear(&[63]).unwrap();
    record.set_head(head(5)).unwrap();
    let loaded = Record::load(Box::new(store)).unwrap();
    assert_eq!(loaded.head(), &head(5));
    assert_eq!(loaded.map().iter().collect::<Vec<_>>(), [0, 64, 4063, 4064, 9999]);
    let bytes = loaded.map().to_bytes();
    assert_eq!(Map::from_bytes(IMAGE_BYTES, &bytes).as_ref(), Some(loaded.map()));
    assert!(Map::from_bytes(IMAGE_BYTES, &bytes[1..]).is_none());
}

#[test]
fn a_mark_that_is_set_survives_every_cut_from_then_on() {
    for operations in 0..12 {
        let (store, mut record) = fresh();
        store.cut_after(operations);
        let mut set = Vec::new();
        for extents in [vec![1, 5000], vec![2], vec![9999]] {
            if record.mark(extents.iter().copied()).is_ok() {
                set.extend(extents);
            }
        }
        let _ = record.set_head(head(2));
        for after in cuts(&store) {
            let loaded = Record::load(Box::new(after)).expect("a whole head");
            for extent in &set {
                assert!(
                    loaded.map().has(*extent),
                    "the mark of {extent} was lost ({operations} operations)"
                );
            }
        }
    }
}

#[test]
fn a_mark_that_could_not_be_set_does_not_look_set() {
    let (store, mut record) = fresh();
    store.cut_after(1);
    assert!(record.mark([7]).is_err());
    assert!(
        !record.map().has(7),
        "the extent would be written without a durable mark"
    );
}

#[test]
fn a_head_is_the_old_or_the_new_one_after_every_cut() {
    for operations in 0..6 {
        let (store, mut record) = fresh();
        record.set_head(head(2)).unwrap();
        store.cut_after(operations);
        let mut durable = 2;
        for term in 3..6 {
            match record.set_head(head(term)) {
                Ok(()) => durable = term,
                Err(_) => break,
            }
        }
        for after in cuts(&store) {
            let term = Record::load(Box::new(after))
                .expect("a whole head")
                .head()
                .history
                .word
                .term;
            assert!(
                term == durable || term == durable + 1,
                "term {term} after {durable}"
            );
        }
    }
}

/// Some disks tear a sector: what is half written is neither head.
#[test]
fn a_head_that_is_half_written_leaves_the_one_before() {
    let (store, mut record) = fresh();
    for term in 2..4 {
        let before = store.0.lock().unwrap().durable.clone();
        record.set_head(head(term)).unwrap();
        let after = store.0.lock().unwrap().durable.clone();
        let differ = |place: &usize| before[*place] != after[*place];
        let first = (0..after.len()).find(differ).expect("the new head is there");
        for torn_at in first + 1..first + SECTOR_BYTES {
            let torn = [&after[..torn_at], &before[torn_at..]].concat();
            let inner = Inner {
                durable: torn,
                ..Inner::default()
            };
            let loaded =
                Record::load(Box::new(Forgetful(Arc::new(Mutex::new(inner))))).expect("a whole head");
            let found = loaded.head().history.word.term;
            assert!(found == term || found == term - 1, "term {found} at {torn_at}");
        }
    }
}

#[test]
fn a_record_whose_first_writing_is_cut_is_none_or_counts_too_much_as_changed() {
    for operations in 0..6 {
        let store = Forgetful::new(Record::bytes_for(IMAGE_BYTES));
        store.cut_after(operations);
        let created = Record::create(Box::new(store.clone()), head(1)).is_ok();
        for after in cuts(&store) {
            match Record::load(Box::new(after)) {
                Ok(loaded) => assert_eq!(loaded.head(), &head(1)),
                Err(RecordError::Damaged) => assert!(!created, "it was lost"),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_cleared_mark_may_come_back_but_takes_no_other_with_it() {
    let (store, mut record) = fresh();
    record.mark([3, 4]).unwrap();
    record.clear(&[3]).unwrap();
    for after in cuts(&store) {
        assert!(Record::load(Box::new(after)).unwrap().map().has(4));
    }
}

#[test]
fn a_damaged_sector_of_the_map_counts_as_all_changed() {
    let (store, record) = fresh();
    drop(record);
    store.0.lock().unwrap().durable[MAP_OFFSET as usize + SECTOR_BYTES + 9] ^= 1;
    let map = Record::load(Box::new(store)).unwrap().map().clone();
    let per_sector = 8 * MAP_SECTOR_BYTES as u64;
    assert_eq!(map.count(), per_sector);
    assert!(map.has(per_sector) && !map.has(0) && !map.has(2 * per_sector));
}

#[test]
fn the_last_head_is_read_also_when_the_numbers_begin_anew() {
    let (store, mut record) = fresh();
    record.sequence = u32::MAX - 1;
    for term in 2..6 {
        record.set_head(head(term)).unwrap();
        let loaded = Record::load(Box::new(store.clone())).unwrap();
        assert_eq!(loaded.head(), &head(term));
    }
}

/// Another one with that number in its place would be read beside its successors for ever.
#[test]
fn a_head_in_the_place_of_another_number_is_none() {
    let (store, _) = fresh();
    let swapped = store.after_cut(0);
    let mut inner = swapped.0.lock().unwrap();
    let (first, second) = inner.durable.split_at_mut(SLOT_BYTES as usize);
    first[..SECTOR_BYTES].swap_with_slice(&mut second[..SECTOR_BYTES]);
    drop(inner);
    assert!(matches!(
        Record::load(Box::new(swapped)),
        Err(RecordError::Damaged)
    ));
}

#[test]
fn rubbish_is_no_record() {
    let nothing = Forgetful::new(Record::bytes_for(IMAGE_BYTES));
    assert!(matches!(
        Record::load(Box::new(nothing)),
        Err(RecordError::Damaged)
    ));
    let short = Forgetful::new(100);
    assert!(matches!(Record::load(Box::new(short)), Err(RecordError::Damaged)));
    let (store, _) = fresh();
    let cut = store.after_cut(0);
    cut.0.lock().unwrap().durable.truncate(MAP_OFFSET as usize + 100);
    assert!(matches!(Record::load(Box::new(cut)), Err(RecordError::Damaged)));
    // No memory is asked for before the store was found to be as long as it says.
    for image_bytes in [u64::MAX, 1 << 60] {
        let head = Head {
            image_bytes,
            ..head(1)
        };
        let mut short = Record::create(
            Box::new(Forgetful::new(MAP_OFFSET)),
            Head {
                image_bytes: 0,
                ..head.clone()
            },
        )
        .unwrap();
        short.set_head(head).unwrap();
        assert!(matches!(Record::load(short.store), Err(RecordError::Damaged)));
    }
    let later = store.after_cut(0);
    for slot in [0, SLOT_BYTES as usize] {
        let mut inner = later.0.lock().unwrap();
        inner.durable[slot + 4] = 9;
        let checksum = crc32fast::hash(&inner.durable[slot..slot + SECTOR_BYTES - 4]);
        inner.durable[slot + SECTOR_BYTES - 4..slot + SECTOR_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }
    assert!(Record::load(Box::new(later)).is_err());
}

/// At every step of a growth, and with every part lost of what was not yet synced: the record is that of the
/// smaller image with its marks, or that of the larger one with all marked that is new. Either can be grown
/// (again).
#[test]
fn a_record_grows_whole_or_not_at_all() {
    const LARGER_BYTES: u64 = IMAGE_BYTES + 5_000 * EXTENT_BYTES + 4096;
    let marks: [u64; 3] = [1, 9_990, 9_999];
    let new = IMAGE_BYTES / EXTENT_BYTES..LARGER_BYTES.div_ceil(EXTENT_BYTES);
    let mut seen = [0, 0];
    for step in 0.. {
        let (store, mut record) = fresh();
        record.mark(marks).unwrap();
        store.cut_after(step);
        let is_done = record.grow(LARGER_BYTES).is_ok();
        for cut in cuts(&store) {
            let mut found = Record::load(Box::new(cut)).unwrap();
            let is_larger = found.head().image_bytes == LARGER_BYTES;
            assert!(is_larger || (found.head().image_bytes == IMAGE_BYTES && !is_done));
            seen[usize::from(is_larger)] += 1;
            if !is_larger {
                assert!(marks.iter().all(|extent| found.map().has(*extent)), "step {step}");
                found.grow(LARGER_BYTES).unwrap();
            }
            assert!(marks.iter().all(|extent| found.map().has(*extent)), "step {step}");
            assert!(new.clone().all(|extent| found.map().has(extent)), "step {step}");
        }
        if is_done {
            break;
        }
    }
    assert!(seen[0] > 1 && seen[1] > 0, "{seen:?}");
}

/// What the smaller image had of its last extent is not all that the larger one has.
#[test]
fn a_growth_within_an_extent_marks_it() {
    let bytes = 2 * EXTENT_BYTES - 4096;
    let store = Forgetful::new(Record::bytes_for(bytes));
    let head = Head {
        image_bytes: bytes,
        ..head(1)
    };
    let mut record = Record::create(Box::new(store.clone()), head).unwrap();
    record.grow(2 * EXTENT_BYTES).unwrap();
    assert_eq!(record.map().iter().collect::<Vec<_>>(), [1]);
    let found = Record::load(Box::new(store)).unwrap();
    assert_eq!(found.map().iter().collect::<Vec<_>>(), [1]);
}

/// Records of Kemari before there was a type for an image's history are read, and theirs read these.
#[test]
fn a_head_is_laid_out_as_ever() {
    let mut head = head(7);
    head.history.announce(8);
    head.history.word.state = kemari_sync::ImageState::Stopped;
    head.history.paired_term = 6;
    // Lineage, term, next term, state (Whole, Target, Stopped), base, the last pair's term.
    let fields = (
        "vm",
        "blk0",
        IMAGE_BYTES,
        1_u128,
        7_u64,
        8_u64,
        2_u8,
        2_u128,
        6_u64,
    );
    assert_eq!(postcard::to_allocvec(&head), postcard::to_allocvec(&fields));
}
