//! The checksum of frames, syncs and pages: rapidhash (version 3, default seed),
//! of which 32 bits go over the wire.
//!
//! It guards against damage, not against people; the link's TLS does that. It was chosen by measuring: a page
//! takes 0.1 us on a plain processor, as CRC-32 does with that processor's instructions for it, and 0.7 us on
//! an emulated one, where CRC-32 takes 9.

use rapidhash::v3::rapidhash_v3;

/// Checksum of these bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    rapidhash_v3(bytes) as u32
}

/// Checksum of few bytes and many that belong together, of which no copy is made.
pub(crate) fn checksum_both<const N: usize>(head: [u8; N], body: &[u8]) -> u32 {
    let body = rapidhash_v3(body);
    // The body's hash as a whole: its 32 lower bits alone would make two short sums out of one.
    checksum(&[&head[..], &body.to_le_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_everywhere_and_for_ever() {
        // Both hosts must agree, whatever they were built with; a change needs another version of the frame.
        assert_eq!(checksum(b""), checksum(&[]));
        let page: Vec<u8> = (0..4096_u32).map(|at| (at * 7) as u8).collect();
        assert_eq!([checksum(b"kemari"), checksum(&page)], [0x2edc_1cb9, 0x8035_e665]);
        assert_eq!(checksum_both(*b"head", &page), 0x9562_2158);
    }

    #[test]
    fn every_single_bit_counts() {
        let mut page = vec![0x5a; 4096];
        let whole = checksum(&page);
        for bit in 0..page.len() * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&page), whole, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
        assert_ne!(checksum_both([1], &page), checksum_both([2], &page));
    }
}
