//! Memory that holds what a guest holds does not belong into a core dump.

use vm_memory::GuestMemoryBackend;

use super::Memory;

/// Keeps these bytes out of core dumps, with what else is in their first and last page (madvise(2),
/// MADV_DONTDUMP).
///
/// It is a second door: a side's process makes no dumps at all. Where the kernel refuses it,
/// that one remains.
pub fn keep_out_of_dumps(bytes: &[u8]) {
    let range = bytes.as_ptr_range();
    keep_out(range.start, range.end);
}

/// As [`keep_out_of_dumps`], for all of a guest's memory.
pub(super) fn keep_guest_out(memory: &Memory) {
    for region in memory.iter() {
        let start = region.as_ptr().cast_const();
        keep_out(start, start.wrapping_add(region.size()));
    }
}

fn keep_out(start: *const u8, end: *const u8) {
    let first = start as usize & !(super::PAGE_BYTES - 1);
    let size = (end as usize - first).next_multiple_of(super::PAGE_BYTES);
    let page = start.wrapping_sub(start as usize - first).cast_mut();
    // SAFETY: these are whole pages of mappings of ours; the advice changes neither their content nor who may
    // use them.
    unsafe { libc::madvise(page.cast(), size, libc::MADV_DONTDUMP) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of the mapping that an address lies in, from /proc/self/smaps.
    fn flags(address: *const u8) -> String {
        let text = std::fs::read_to_string("/proc/self/smaps").expect("the kernel tells");
        let mut is_it = false;
        for line in text.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            if let Some((start, end)) = range {
                let number = |word| usize::from_str_radix(word, 16);
                if let (Ok(start), Ok(end)) = (number(start), number(end)) {
                    is_it = (start..end).contains(&(address as usize));
                }
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_it) {
                return flags.to_owned();
            }
        }
        panic!("no mapping holds {address:?}");
    }

    #[test]
    fn guest_memory_and_what_is_named_are_kept_out() {
        let memory =
            crate::memory::create((3 << 30) + (1 << 20)).expect("memory that nobody touches costs nothing");
        for region in memory.iter() {
            assert!(
                flags(region.as_ptr()).contains(" dd"),
                "{}",
                flags(region.as_ptr())
            );
        }
        let block = vec![1u8; 8 << 20];
        assert!(!flags(&block[4 << 20]).contains(" dd"));
        keep_out_of_dumps(&block);
        for at in [0, 4 << 20, block.len() - 1] {
            assert!(flags(&block[at]).contains(" dd"), "byte {at}");
        }
    }
}
