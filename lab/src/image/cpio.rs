//! A writer of initramfs archives ("newc" cpio; Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive under construction; everything in it belongs to root.
#[derive(Debug, Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    inodes: u32,
}

const DIRECTORY: u32 = 0o040000;
const REGULAR: u32 = 0o100000;
const SYMLINK: u32 = 0o120000;

impl Cpio {
    /// Adds directories, each after its parents.
    pub(crate) fn directories(&mut self, paths: &[&str]) {
        paths
            .iter()
            .for_each(|path| self.entry(path, DIRECTORY | 0o755, &[]));
    }

    /// Adds a file that can be executed.
    pub(crate) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, REGULAR | 0o755, content);
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, REGULAR | 0o644, content);
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, target.as_bytes());
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let name = path.trim_start_matches('/');
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        // Inode, mode, uid, gid, links, mtime, size, device (2), device of a device file (2), name's length,
        // checksum.
        let sizes = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.inodes, mode, 0, 0, links, 0, sizes.0, 0, 0, 0, 0, sizes.1, 0];
        self.bytes.extend_from_slice(b"070701");
        fields
            .iter()
            .for_each(|field| self.bytes.extend_from_slice(format!("{field:08x}").as_bytes()));
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::Cpio;

    /// busybox's own cpio reads what the kernel reads.
    #[test]
    fn an_independent_reader_finds_everything() {
        let mut cpio = Cpio::default();
        cpio.directories(&["/bin"]);
        cpio.program("/bin/program", b"12345");
        cpio.link("/bin/other", "program");
        cpio.file("/empty", b"");
        let busybox = crate::image::busybox().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(busybox)
            .args(["cpio", "-idv"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&cpio.finish()).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(dir.path().join("bin/other")).unwrap(), b"12345");
        assert_eq!(std::fs::read(dir.path().join("empty")).unwrap(), b"");
    }
}
