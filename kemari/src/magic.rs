//! What the bytes of an image begin like. Nobody acts on it: a guest may write what it likes into a raw disk.
//! But a raw disk that begins like another format is most likely an image of that.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes that are looked at.
const HEAD_BYTES: u64 = 512;
/// Where what stands, and in which format.
const MAGICS: [(usize, &[u8], &str); 10] = [
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
];

/// The format, other than raw, that an image begins like.
pub(crate) fn begins_like(image: &Path) -> Option<&'static str> {
    let mut head = Vec::new();
    let file = File::open(image).ok()?;
    file.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    let stands =
        |(at, magic, _): &(usize, &[u8], &str)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    MAGICS.into_iter().find(stands).map(|(_, _, format)| format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_first_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let like = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            begins_like(file.path())
        };
        assert_eq!(like(b"QFI\xfb and so on"), Some("qcow2"));
        assert_eq!(like(b"conectix"), Some("vpc"));
        let mut vdi = vec![b'<'; 0x40];
        vdi.extend([0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(like(&vdi), Some("vdi"));
        for raw in [&b""[..], b"QFI", b"\xeb\x63\x90", &[0; 4096]] {
            assert_eq!(like(raw), None);
        }
        assert_eq!(begins_like(Path::new("/nonexistent")), None);
    }
}
