use super::*;

#[test]
fn a_superblock_is_read_as_it_was_written_and_a_damaged_one_is_refused() {
    let superblock = Superblock {
        boots: 7 << 33,
        ..Superblock::plan(64 << 20, 512).unwrap()
    };
    assert_eq!(superblock.slots, SLOTS_MAX);
    let block = superblock.encode();
    assert_eq!(Superblock::decode(&block), Ok(Some(superblock)));
    assert_eq!(Superblock::decode(&vec![0; BLOCK_BYTES]), Ok(None));
    for byte in 0..36 {
        let mut block = block.clone();
        block[byte] ^= 0x10;
        assert!(Superblock::decode(&block).is_err(), "byte {byte}");
    }
}

#[test]
fn a_small_disk_has_fewer_slots_and_keeps_room_behind_them() {
    for (disk_bytes, block_bytes) in [(4 << 20, 512), (4 << 20, 4096), (64 << 10, 512), (16 << 10, 4096)] {
        let superblock = Superblock::plan(disk_bytes, block_bytes).unwrap();
        assert!(superblock.slots >= 1 && superblock.rest_offset() <= disk_bytes);
    }
    assert_eq!(Superblock::plan(4096, 512), None);
}

#[test]
fn a_record_is_read_as_it_was_written_and_every_changed_bit_is_noticed() {
    let (key, value) = ([b'k'; KEY_BYTES_MAX], [b'v'; VALUE_BYTES_MAX]);
    let mut slot = [0; 512];
    assert_eq!(decode_slot(&slot), Slot::Empty);
    encode_record(&mut slot, 1 << 40, &key, &value);
    assert_eq!(decode_slot(&slot), Slot::Record(1 << 40, &key, &value));
    for byte in 0..RECORD_HEADER_BYTES + key.len() + value.len() {
        let mut slot = slot;
        slot[byte] ^= 1;
        assert_eq!(decode_slot(&slot), Slot::Damaged, "byte {byte}");
    }
    encode_record(&mut slot, 2, b"", b"short");
    assert_eq!(decode_slot(&slot), Slot::Record(2, b"", b"short"));
}

#[test]
fn the_index_survives_a_reboot() {
    let mut disk = vec![[0; 512]; 16];
    let mut index = Index::new(16);
    for i in 0..40u8 {
        let (key, value) = (vec![i % 16], vec![i; 3]);
        let slot = index.reserve(&key).unwrap();
        let sequence = index.next_sequence();
        encode_record(&mut disk[slot], sequence, &key, &value);
        index.apply(slot, sequence, key, value);
    }
    assert_eq!((index.len(), index.reserve(b"one too many")), (16, None));
    // A stale copy of key 3 in the slot of key 15, as an interrupted write may leave it:
    // the newer one counts.
    let slot = index.reserve(&[15]).unwrap();
    encode_record(&mut disk[slot], 1, &[3], b"stale");
    let mut index = Index::new(16);
    disk.iter()
        .enumerate()
        .for_each(|(slot, bytes)| index.load(slot, bytes));
    for i in 0..15u8 {
        let newest = if i < 8 { 32 + i } else { 16 + i };
        assert_eq!(index.get(&[i]), Some(&[newest; 3][..]));
    }
    assert_eq!((index.get(&[15]), index.damaged()), (None, 0));
    assert_eq!(index.next_sequence(), 41);
    assert_eq!(
        index.reserve(b"new"),
        Some(slot),
        "the slot of the stale copy is free again"
    );
}

#[test]
fn a_slot_of_a_failed_write_is_free_again_but_that_of_an_old_value_is_not() {
    let mut index = Index::new(1);
    let slot = index.reserve(b"a").unwrap();
    assert_eq!(index.reserve(b"b"), None);
    index.release(slot, b"a");
    let slot = index.reserve(b"b").unwrap();
    index.apply(slot, 1, b"b".to_vec(), b"1".to_vec());
    assert_eq!(index.reserve(b"b"), Some(slot));
    index.release(slot, b"b");
    assert_eq!(index.reserve(b"a"), None);
}
