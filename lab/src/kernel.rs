//! Debian's cloud kernel: the kernel of emulated hosts and of the Linux guest.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache;
use crate::error::{Context, Error, Result};
use crate::packages::{resolve, unpacked};

/// A kernel with its modules, unpacked under `target/lab`.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The kernel as Debian ships it.
    pub bzimage: PathBuf,
    /// The same, decompressed: an ELF file that starts by PVH, which saves an emulated CPU the decompression.
    pub vmlinux: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

/// Downloads and unpacks the cloud kernel that `linux-image-cloud-amd64` stands for.
pub fn cloud_kernel() -> Result<Kernel> {
    let package = resolve("linux-image-cloud-amd64", "linux-image-")?;
    let release = package.strip_prefix("linux-image-").unwrap_or(&package);
    let files = unpacked(&package)?;
    let bzimage = files.join(format!("boot/vmlinuz-{release}"));
    let modules = files.join(format!("lib/modules/{release}/kernel"));
    let vmlinux = cache::entry(&format!("vmlinux-{release}"), |path| extract(&bzimage, path))?;
    Ok(Kernel {
        bzimage,
        vmlinux,
        modules,
    })
}

/// Magic numbers of compressed kernels, and what decompresses them from standard input to standard output.
const DECOMPRESSORS: [(&[u8], &[&str]); 4] = [
    (&[0x02, 0x21, 0x4c, 0x18], &["lz4", "-dc"]),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], &["xz", "-dc"]),
    (&[0x28, 0xb5, 0x2f, 0xfd], &["zstd", "-dc"]),
    (&[0x1f, 0x8b, 0x08], &["gzip", "-dc"]),
];

/// Decompresses the kernel inside a bzImage.
fn extract(bzimage: &Path, vmlinux: &Path) -> Result<()> {
    let image = cache::read(bzimage)?;
    let bad = |reason: String| Error::Format {
        path: bzimage.to_owned(),
        reason,
    };
    let payload =
        payload(&image).ok_or_else(|| bad("this is no bzImage of boot protocol 2.08 or later".into()))?;
    let found = DECOMPRESSORS.iter().find(|(magic, _)| payload.starts_with(magic));
    let (_, words) = found.ok_or_else(|| {
        bad(format!(
            "its kernel is compressed in an unknown way (it begins with {:02x?})",
            &payload[..4]
        ))
    })?;
    let what = || format!("run `{}` on the kernel", words.join(" "));
    let output = File::create(vmlinux).context(|| format!("make {}", vmlinux.display()))?;
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(Stdio::null());
    let mut child = command.spawn().context(what)?;
    let mut stdin = child.stdin.take().expect("stdin was asked for");
    let written = stdin.write_all(payload);
    drop(stdin);
    child.wait().context(what)?;
    written.context(what)?;
    // The kernel's lz4 is a legacy frame, after which some versions of the tool complain: the result decides.
    let is_elf = fs::read(vmlinux).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"));
    if is_elf {
        Ok(())
    } else {
        Err(bad(format!(
            "`{}` did not find an ELF file in it",
            words.join(" ")
        )))
    }
}

/// The compressed kernel in a bzImage (Linux, Documentation/arch/x86/boot.rst: payload_offset,
/// payload_length), without the four bytes that hold its decompressed size.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS"
        || u16::from_le_bytes([*image.get(0x206)?, *image.get(0x207)?]) < 0x208
    {
        return None;
    }
    let setup_sectors = match image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(0x248)?;
    let payload = image.get(start..start.checked_add(u32_at(0x24c)?)?)?;
    (payload.len() > 8).then(|| &payload[..payload.len() - 4])
}

/// One kernel module.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Module {
    /// Its name, as `insmod` files carry it.
    pub name: String,
    /// The file's bytes.
    pub bytes: Vec<u8>,
}

/// The modules `names` and all that they depend on, in an order in which they can be inserted.
pub(crate) fn modules(kernel: &Kernel, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = Vec::new();
    collect(&kernel.modules, &mut files)?;
    let mut ordered = Vec::new();
    for name in names {
        insert(&files, name, &mut ordered)?;
    }
    Ok(ordered)
}

fn insert(files: &[PathBuf], name: &str, ordered: &mut Vec<Module>) -> Result<()> {
    let name = name.replace('-', "_");
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let is_it = |path: &&PathBuf| {
        path.file_stem()
            .is_some_and(|stem| stem.to_string_lossy().replace('-', "_") == name)
    };
    let path = files.iter().find(is_it).ok_or_else(|| Error::Format {
        path: name.clone().into(),
        reason: "the kernel package has no such module".into(),
    })?;
    let bytes = cache::read(path)?;
    for dependency in dependencies(&bytes) {
        insert(files, &dependency, ordered)?;
    }
    ordered.push(Module { name, bytes });
    Ok(())
}

/// The names in the `depends=` word of a module's `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const WORD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(WORD.len()).position(|window| window == WORD) else {
        return Vec::new();
    };
    let list = module[at + WORD.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let what = || format!("read {}", dir.display());
    for entry in fs::read_dir(dir).context(what)? {
        let path = entry.context(what)?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
