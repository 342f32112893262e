//! Memory that a device reads and writes. Addresses are physical ones: memory is mapped one to one.

use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use core::alloc::Layout;
use core::slice;

/// Bytes that a device may access while a request is in flight: aligned, and never moved.
pub struct Dma {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the bytes belong to this value alone; who submits it to a device gives it away until the
// completion.
unsafe impl Send for Dma {}

impl Dma {
    /// Zeroed memory. `align` is a power of two, `bytes` is not 0.
    pub fn new(bytes: usize, align: usize) -> Dma {
        assert!(bytes > 0, "an empty buffer cannot be given to a device");
        let layout = Layout::from_size_align(bytes, align).expect("alignment is a power of two");
        // SAFETY: the layout has a size.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Dma { start, layout }
    }

    /// Its physical address.
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never: see [`Dma::new`].
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The bytes, for when no device has them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and initialised in `new`.
        unsafe { slice::from_raw_parts(self.start, self.layout.size()) }
    }

    /// The bytes, for when no device has them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.start, self.layout.size()) }
    }

    /// Start of the memory, for rings, which both sides access at any time.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}
