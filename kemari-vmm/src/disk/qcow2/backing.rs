//! The backing files of an image: all of them are looked at, by our own eyes and as their image says they
//! are, before the library has any. What a file is, is never guessed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::header::{self, Backing};

/// Longest chain of backing files.
const CHAIN_MAX: usize = 16;

/// The backing files of an image, open, from the first down.
pub(crate) struct BackingFiles(Vec<Base>);

struct Base {
    /// Without links.
    path: PathBuf,
    file: File,
}

impl BackingFiles {
    /// Those of the image in an open file. `lock` is told each, before it is looked at.
    ///
    /// # Errors
    /// As a sentence, with the command that helps.
    pub(crate) fn of(
        image: &Path,
        file: &File,
        lock: impl Fn(&File, &Path) -> io::Result<()>,
    ) -> io::Result<Self> {
        let top = image.canonicalize()?;
        let directory = top.parent().unwrap_or(Path::new("/"));
        let mut chain = Vec::<Base>::new();
        let mut above = image.to_owned();
        let mut next = header::check(file)?;
        while let Some(Backing { name, is_qcow2 }) = next {
            let named = above.parent().unwrap_or(Path::new("/")).join(name);
            let path = find(&named, directory)?;
            if path == top || chain.iter().any(|base| base.path == path) {
                return Err(io::Error::other(format!(
                    "{} is its own backing file",
                    above.display()
                )));
            }
            if chain.len() == CHAIN_MAX {
                return Err(io::Error::other(format!(
                    "it has more than {CHAIN_MAX} backing files; see `qemu-img rebase`"
                )));
            }
            let file = open(&path).and_then(|file| lock(&file, &path).map(|()| file))?;
            next = match is_qcow2 {
                true => header::check(&file).map_err(|error| of_base(&path, &error))?,
                false => None,
            };
            chain.push(Base { path, file });
            above = named;
        }
        Ok(Self(chain))
    }

    /// Where each of them is, without links.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|base| base.path.clone()).collect()
    }

    /// What each of them is.
    pub(crate) fn files(&self) -> io::Result<Vec<Metadata>> {
        self.0.iter().map(|base| base.file.metadata()).collect()
    }

    /// The open file of this name.
    pub(crate) fn file(&self, named: &Path) -> io::Result<File> {
        let path = named.canonicalize()?;
        let base = self.0.iter().find(|base| base.path == path);
        let base = base
            .ok_or_else(|| io::Error::other(format!("{} is none of its backing files", named.display())))?;
        base.file.try_clone()
    }
}

fn of_base(path: &Path, error: &io::Error) -> io::Error {
    io::Error::other(format!("its backing file {}: {error}", path.display()))
}

/// The backing file of this name, if it may be one of an image in this directory.
fn find(named: &Path, directory: &Path) -> io::Result<PathBuf> {
    let path = named.canonicalize().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("its backing file {} cannot be found: {error}", named.display()),
        )
    })?;
    match path.starts_with(directory) {
        true => Ok(path),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "its backing file {} lies outside the image's directory {}; move it there, and name it with \
                 `qemu-img rebase -u -F FORMAT -b NAME`",
                path.display(),
                directory.display()
            ),
        )),
    }
}

fn open(path: &Path) -> io::Result<File> {
    let kind = std::fs::metadata(path)
        .map_err(|error| of_base(path, &error))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(of_base(
            path,
            &io::Error::other("it is neither a file nor a block device"),
        ));
    }
    File::open(path).map_err(|error| of_base(path, &error))
}
