//! Headers with something in them that is not understood.

use super::*;

/// Bytes that are others, and where.
type Changes<'a> = &'a [(usize, &'a [u8])];

const LENGTH: u64 = 1 << 20;

/// A header of version 3 as QEMU makes it: a disk of 64 MiB in clusters of 64 KiB.
fn header() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &(64u64 << 20).to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &0x30000u64.to_be_bytes());
    put(48, &0x10000u64.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &112u32.to_be_bytes());
    bytes
}

/// Why a header is refused in which these bytes are others.
fn refusal(changes: Changes<'_>) -> String {
    let mut bytes = header();
    for (at, value) in changes {
        bytes[*at..*at + value.len()].copy_from_slice(value);
    }
    Header(&bytes).check(LENGTH).expect_err("it is to be refused")
}

fn word(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

#[test]
fn a_plain_header_is_taken() {
    assert_eq!(Header(&header()).check(LENGTH), Ok(None));
    let mut old = header();
    old[4..8].copy_from_slice(&word(2));
    old[72..].fill(0);
    assert_eq!(Header(&old).check(LENGTH), Ok(None));
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let cases: [(Changes<'_>, &str); 12] = [
        (&[(0, b"KDMV")], "does not begin as one"),
        (&[(4, &word(4))], "version 4"),
        (&[(32, &word(1))], "encrypted"),
        (&[(32, &word(2))], "encrypted"),
        (&[(76, &word(1))], "not closed"),
        (&[(76, &word(2))], "qemu-img check -r all"),
        (&[(76, &word(4))], "in another file"),
        (&[(76, &word(8))], "other than zlib"),
        (&[(76, &word(16))], "extended L2"),
        (&[(76, &word(1 << 20))], "not known"),
        (&[(72, &word(1))], "not known"),
        (&[(96, &word(7))], "64 bits"),
    ];
    for (changes, reason) in cases {
        let refusal = refusal(changes);
        assert!(refusal.contains(reason), "{refusal}");
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let pebibyte = (1u64 << 50).to_be_bytes();
    let cases: [(Changes<'_>, &str); 11] = [
        (&[(20, &word(8))], "2^8"),
        (&[(20, &word(63))], "2^63"),
        (&[(24, &pebibyte)], "is not what a disk"),
        (&[(24, &pebibyte), (36, &word(u32::MAX))], "is not what a disk"),
        (&[(36, &word(1 << 20))], "ends before its tables"),
        (&[(40, &[0xff; 8])], "ends before its tables"),
        (&[(40, &0x30001u64.to_be_bytes())], "where none can"),
        (&[(40, &[0; 8])], "where none can"),
        (&[(56, &word(0))], "no refcounts"),
        (&[(56, &word(u32::MAX))], "ends before its tables"),
        (&[(100, &word(9999))], "9999"),
    ];
    for (changes, reason) in cases {
        let refusal = refusal(changes);
        assert!(refusal.contains(reason), "{refusal}");
    }
    assert_eq!(Header(&header()[..71]).check(LENGTH), Err(short()));
}

#[test]
fn a_backing_file_says_its_format() {
    let named: [(usize, &[u8]); 2] = [(8, &512u64.to_be_bytes()), (16, &word(9))];
    assert!(refusal(&named).contains("qemu-img rebase -u -F"));
    let format = |name: &[u8], bytes: u32| {
        let mut changed = header();
        for (at, value) in named {
            changed[at..at + value.len()].copy_from_slice(value);
        }
        changed[112..116].copy_from_slice(&word(EXTENSION_BACKING_FORMAT));
        changed[116..120].copy_from_slice(&word(bytes));
        changed[120..120 + name.len()].copy_from_slice(name);
        Header(&changed).check(LENGTH)
    };
    for (name, is_qcow2) in [(&b"raw"[..], false), (b"qcow2", true)] {
        let backing = format(name, name.len() as u32).expect("it is known");
        assert_eq!(backing.map(|backing| backing.is_qcow2), Some(is_qcow2));
    }
    assert!(
        format(b"vmdk", 4)
            .expect_err("it is not known")
            .contains("`vmdk`")
    );
    // Of an extension that is not known, and one that leads out of the header.
    assert!(format(b"r", 1).is_err());
    assert!(
        format(b"raw", u32::MAX)
            .expect_err("it is long")
            .contains("longer than")
    );
}

/// The library panics at an entry of one byte.
#[test]
fn names_of_features_are_whole() {
    let named = |bytes: u32| {
        let mut changed = header();
        changed[112..116].copy_from_slice(&word(EXTENSION_FEATURE_NAMES));
        changed[116..120].copy_from_slice(&word(bytes));
        Header(&changed).check(LENGTH)
    };
    for bytes in [1, 47, 49] {
        let refusal = named(bytes).expect_err("it is cut");
        assert!(refusal.contains("names of features"), "{refusal}");
    }
    for whole in [0, 48, 96] {
        named(whole).expect("its entries are whole");
    }
}

#[test]
fn extensions_end_where_they_are_looked_at() {
    let up_to = |bytes: u32| {
        let mut changed = header();
        changed[112..116].copy_from_slice(&word(7));
        changed[116..120].copy_from_slice(&word(bytes));
        Header(&changed).check(LENGTH)
    };
    up_to(4096 - 120 - 8).expect("the last one is an end");
    let refusal = up_to(4096 - 120).expect_err("there is no end");
    assert!(refusal.contains("no end"), "{refusal}");
}
