//! An input as a tape of numbers: behind its end there are zeros.

/// What is left of an input.
pub(crate) struct Tape<'a>(&'a [u8]);

impl<'a> Tape<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to so many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number that is more often at an edge than others; `size` is one of those edges.
    pub(crate) fn number(&mut self, size: u64) -> u64 {
        let near = |tape: &mut Self| u64::from(tape.u16());
        match self.u8() % 8 {
            0 => 0,
            1 => u64::MAX - near(self),
            2 => size.wrapping_sub(near(self)),
            3 => size + near(self),
            4 => self.u64(),
            5 => (1 << 32) - u64::from(self.u8()),
            _ => near(self) * 32 % size,
        }
    }
}
