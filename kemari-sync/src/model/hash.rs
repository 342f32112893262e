//! A fast hash for states: two of them are one if 64 bits agree. Among 10 million states that happens to a
//! pair of different ones with a probability of about 1 in 400,000.

use std::hash::{Hash, Hasher};

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word) * u128::from(FACTOR | 1);
        self.0 = (wide as u64) ^ ((wide >> 64) as u64).rotate_left(23) ^ word.rotate_left(41);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word) ^ ((chunk.len() as u64) << 56));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn finish(&self) -> u64 {
        let mut word = self.0;
        word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        word ^ (word >> 32)
    }
}

pub(super) fn digest(what: &impl Hash) -> u64 {
    let mut mixer = Mixer(FACTOR);
    what.hash(&mut mixer);
    mixer.finish()
}
