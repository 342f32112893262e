//! A directory whose storage is this process. All that happens to its files and names is recorded, and every
//! power cut that could have happened meanwhile can be looked at: what was made durable is there, and of what
//! was changed since any part: of the names, of the changes of each file, and of each change some sectors.
//!
//! What is durable of a file says nothing of its name, and the other way round, as with POSIX: a file is
//! durable by its own sync, a name by that of the directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::fuse::{self, Answers, Attributes, Mounted, ROOT, Request, request};
use crate::own_file::{Change, part_of};

/// Attributes: a directory, and files, of root's.
const DIRECTORY_MODE: u32 = 0o040_700;
const FILE_MODE: u32 = 0o100_600;

/// Something that happened.
#[derive(Debug)]
pub enum Entry<N> {
    /// A file of this number was changed.
    Changed(u64, Change),
    /// All of its changes are durable.
    Synced(u64),
    /// A name is that of this file, or of none.
    Named(String, Option<u64>),
    /// All names are durable as they are.
    NamesSynced,
    /// Whoever uses the directory has said this.
    Noted(N),
}

/// What a directory has: names and the files that they are of.
#[derive(Clone, Debug, Default)]
pub struct Content {
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, Vec<u8>>,
}

impl Content {
    /// These files, each with one name.
    pub fn of(files: &[(&str, &[u8])]) -> Self {
        let mut content = Self::default();
        for (node, (name, bytes)) in (ROOT + 1..).zip(files) {
            content.names.insert((*name).to_owned(), node);
            content.files.insert(node, bytes.to_vec());
        }
        content
    }

    /// Makes it so in an empty directory of the host's.
    pub fn lay_out(&self, directory: &Path) -> Result<()> {
        let mut first: BTreeMap<u64, &String> = BTreeMap::new();
        for (name, node) in &self.names {
            let path = directory.join(name);
            match first.get(node) {
                Some(other) => fs::hard_link(directory.join(other), &path),
                None => fs::write(&path, self.files.get(node).map_or(&[][..], |bytes| bytes)),
            }
            .with_context(|| format!("{} cannot be made", path.display()))?;
            first.entry(*node).or_insert(name);
        }
        Ok(())
    }

    fn apply<N>(&mut self, entry: &Entry<N>) {
        match entry {
            Entry::Changed(node, change) => change.apply(self.files.entry(*node).or_default()),
            Entry::Named(name, Some(node)) => drop(self.names.insert(name.clone(), *node)),
            Entry::Named(name, None) => drop(self.names.remove(name)),
            Entry::Synced(_) | Entry::NamesSynced | Entry::Noted(_) => {}
        }
    }
}

/// What a power cut leaves of what was not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All: only the process died.
    All,
    /// Nothing.
    Nothing,
    /// Some of the changes.
    Some,
    /// Some of the changes, and of those some sectors.
    Torn,
}

/// What was recorded.
#[derive(Debug)]
pub struct Recording<N> {
    /// What was there before, durable.
    pub before: Content,
    /// What happened.
    pub entries: Vec<Entry<N>>,
}

impl<N> Recording<N> {
    /// What is there if the power is cut behind so many entries.
    /// `is_kept` is asked of everything that may be there or not.
    pub fn cut(&self, place: usize, cut: Cut, mut is_kept: impl FnMut() -> bool) -> Content {
        let entries = &self.entries[..place];
        // Up to where each file is durable, and up to where the names are.
        let mut durable = BTreeMap::new();
        let mut names_durable = 0;
        for (at, entry) in (1..).zip(entries) {
            match entry {
                Entry::Synced(node) => drop(durable.insert(*node, at)),
                Entry::NamesSynced => names_durable = at,
                _ => {}
            }
        }
        let mut content = self.before.clone();
        for (at, entry) in (1..).zip(entries) {
            let is_durable = match entry {
                Entry::Changed(node, _) => durable.get(node).is_some_and(|end| at <= *end),
                Entry::Named(..) => at <= names_durable,
                _ => continue,
            };
            match (cut, entry) {
                _ if is_durable => content.apply(entry),
                (Cut::All, _) => content.apply(entry),
                (Cut::Nothing, _) => {}
                (Cut::Torn, Entry::Changed(node, change)) => {
                    change.apply_torn(content.files.entry(*node).or_default(), &mut is_kept);
                }
                (Cut::Some | Cut::Torn, _) if is_kept() => content.apply(entry),
                (Cut::Some | Cut::Torn, _) => {}
            }
        }
        content
    }

    /// Looks at what cuts leave, in a random order of moments: `judge` is shown the directory, and the
    /// entries before the cut. Ends at a time, after some cuts at least, or when every moment was looked at;
    /// how many cuts that were.
    ///
    /// # Errors
    /// What `judge` says of a cut, and where that was.
    pub fn replay(
        &self,
        random: &mut impl Rng,
        until: Instant,
        judge: impl Fn(&Path, &[Entry<N>]) -> Result<()>,
    ) -> Result<u64> {
        let mut places: Vec<usize> = (1..=self.entries.len()).collect();
        places.shuffle(random);
        let mut cuts = 0;
        for place in places {
            for cut in CUTS {
                if cuts >= CUTS_MIN && Instant::now() >= until {
                    return Ok(cuts);
                }
                let kept_of_ten = random.random_range(1..10);
                let content = self.cut(place, cut, || random.random_range(0..10) < kept_of_ten);
                let directory = scratch()?;
                content.lay_out(directory.path())?;
                judge(directory.path(), &self.entries[..place]).with_context(|| {
                    format!("{cut:?} was kept of what was not durable, behind entry {place}")
                })?;
                cuts += 1;
            }
        }
        Ok(cuts)
    }
}

/// Makes recordings for so long, one at least, and replays each; says how many cuts that were,
/// for `cargo xtask disks --replay`.
///
/// # Panics
/// If `judge` finds something; says with which seed.
pub fn replay_for<N>(
    time: Duration,
    record: impl Fn(&mut StdRng) -> Recording<N>,
    judge: impl Fn(&Path, &[Entry<N>]) -> Result<()>,
) {
    let end = Instant::now() + time;
    let mut cuts = 0;
    loop {
        let seed = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let recording = record(&mut random);
        let share = Instant::now() + RECORDING_TIME_MAX;
        cuts += recording
            .replay(&mut random, end.min(share), &judge)
            .unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        if Instant::now() >= end {
            break;
        }
    }
    println!("power cuts: {cuts}");
}

/// Cuts of a recording that are looked at, beside those for which there is time.
const CUTS_MIN: u64 = 240;
/// For how long one recording is looked at.
const RECORDING_TIME_MAX: Duration = Duration::from_secs(10);

/// The cuts that are tried at each moment.
const CUTS: [Cut; 6] = [Cut::All, Cut::Nothing, Cut::Some, Cut::Torn, Cut::Some, Cut::Torn];

/// A directory in memory, if there is such a place: what is laid out is looked at once.
fn scratch() -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.context("cannot make a directory")
}

/// The directory as it is, and how it came to that.
#[derive(Debug)]
pub struct Journal<N>(Mutex<State<N>>);

#[derive(Debug)]
struct State<N> {
    before: Content,
    now: Content,
    entries: Vec<Entry<N>>,
    next_node: u64,
    /// Changes and syncs until none is carried out any more.
    left: Option<u64>,
}

impl<N> Journal<N> {
    /// Begins with a directory of this content, all durable.
    pub fn new(before: Content) -> Arc<Self> {
        let next_node = before.files.keys().last().map_or(ROOT + 1, |last| last + 1);
        Arc::new(Self(Mutex::new(State {
            now: before.clone(),
            before,
            entries: Vec::new(),
            next_node,
            left: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State<N>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever uses the directory says something.
    pub fn note(&self, note: N) {
        self.lock().entries.push(Entry::Noted(note));
    }

    /// After so many more changes and syncs every further one is an error:
    /// whoever makes them is about to die. None: no more.
    pub fn end_after(&self, changes: Option<u64>) {
        self.lock().left = changes;
    }

    /// All that has happened, which is forgotten here: what comes next begins with the directory as it is
    /// now, all durable.
    pub fn take(&self) -> Recording<N> {
        let mut state = self.lock();
        let now = state.now.clone();
        Recording {
            before: std::mem::replace(&mut state.before, now),
            entries: std::mem::take(&mut state.entries),
        }
    }
}

impl<N> State<N> {
    fn happen(&mut self, entry: Entry<N>) -> Result<(), Errno> {
        match &mut self.left {
            Some(0) => return Err(Errno::IO),
            Some(left) => *left -= 1,
            None => {}
        }
        self.now.apply(&entry);
        self.entries.push(entry);
        Ok(())
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        if node == ROOT {
            return Ok(Attributes {
                node,
                bytes: 0,
                mode: DIRECTORY_MODE,
                links: 2,
            });
        }
        let bytes = self.now.files.get(&node).ok_or(Errno::NOENT)?.len() as u64;
        let links = self.now.names.values().filter(|other| **other == node).count() as u32;
        Ok(Attributes {
            node,
            bytes,
            mode: FILE_MODE,
            links,
        })
    }

    fn named(&self, name: &str) -> Result<u64, Errno> {
        self.now.names.get(name).copied().ok_or(Errno::NOENT)
    }

    fn name(&mut self, name: String, node: u64) -> Result<Vec<u8>, Errno> {
        if self.now.names.contains_key(&name) {
            return Err(Errno::EXIST);
        }
        self.happen(Entry::Named(name, Some(node)))?;
        Ok(self.attributes(node)?.entry())
    }

    fn create(&mut self, name: String) -> Result<Vec<u8>, Errno> {
        let node = self.next_node;
        self.now.files.insert(node, Vec::new());
        let entry = self.name(name, node)?;
        self.next_node += 1;
        Ok([entry, fuse::opened()].concat())
    }
}

impl<N: Send> Answers for Arc<Journal<N>> {
    fn answer(&self, asked: &Request<'_>) -> Result<Vec<u8>, Errno> {
        let mut state = self.lock();
        let node = asked.node;
        match asked.kind {
            request::LOOKUP => {
                let node = state.named(&asked.name(0))?;
                Ok(state.attributes(node)?.entry())
            }
            request::GETATTR => Ok(state.attributes(node)?.answer()),
            request::SETATTR => {
                if let Some(bytes) = asked.new_size() {
                    state.happen(Entry::Changed(node, Change::Resize { bytes }))?;
                }
                Ok(state.attributes(node)?.answer())
            }
            request::CREATE => state.create(asked.name(16)),
            request::LINK => state.name(asked.name(8), asked.long(0)),
            request::UNLINK => {
                let name = asked.name(0);
                state.named(&name)?;
                state.happen(Entry::Named(name, None))?;
                Ok(Vec::new())
            }
            request::READDIR => {
                let names = state.now.names.iter().map(|(name, node)| (name, *node));
                Ok(fuse::listing(names, asked.long(8), asked.word(16) as usize))
            }
            request::READ => {
                let bytes = state.now.files.get(&node).ok_or(Errno::NOENT)?;
                Ok(part_of(bytes, asked.long(8), asked.word(16) as usize))
            }
            request::WRITE => {
                let (offset, data) = (asked.long(8), asked.written());
                let answer = fuse::written(data.len());
                state.happen(Entry::Changed(node, Change::Write { offset, data }))?;
                Ok(answer)
            }
            request::FSYNC => state.happen(Entry::Synced(node)).map(|()| Vec::new()),
            request::FSYNCDIR => state.happen(Entry::NamesSynced).map(|()| Vec::new()),
            _ => Err(Errno::NOSYS),
        }
    }
}

/// A directory with such a storage, there as long as this.
#[derive(Debug)]
pub struct OwnDirectory(Mounted);

impl OwnDirectory {
    /// Mounts it over a directory that is there.
    pub fn mount<N: Send + 'static>(path: &Path, journal: &Arc<Journal<N>>) -> Result<Self> {
        Mounted::over(path.to_owned(), DIRECTORY_MODE, Box::new(journal.clone())).map(Self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn it_is_a_directory_and_a_cut_leaves_what_is_durable_and_any_part_of_the_rest() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal::new(Content::of(&[("old", b"0")]));
        let own = OwnDirectory::mount(place.path(), &journal).unwrap();
        let path = |name: &str| own.path().join(name);
        let mut file = File::create_new(path("a")).unwrap();
        File::create_new(path("a")).unwrap_err();
        file.write_all(&[1; 1000]).unwrap();
        file.sync_data().unwrap();
        fs::hard_link(path("a"), path("b")).unwrap();
        assert_eq!(fs::metadata(path("a")).unwrap().nlink(), 2);
        journal.note("linked");
        File::open(own.path()).unwrap().sync_all().unwrap();
        fs::remove_file(path("a")).unwrap();
        assert_eq!(names(own.path()), ["b", "old"]);
        assert_eq!(fs::read(path("b")).unwrap(), [1; 1000]);
        journal.end_after(Some(1));
        file.write_all(&[2; 24]).unwrap();
        file.write_all(&[3]).unwrap_err();
        file.sync_data().unwrap_err();
        fs::remove_file(path("old")).unwrap_err();
        journal.end_after(None);
        fs::remove_file(path("old")).unwrap();
        drop((file, own));

        let recording = journal.take();
        let found = |place: usize, cut| {
            let target = tempfile::tempdir().unwrap();
            recording
                .cut(place, cut, || false)
                .lay_out(target.path())
                .unwrap();
            let found = names(target.path());
            let long = found
                .first()
                .map_or(0, |name| fs::read(target.path().join(name)).unwrap().len());
            (found.join(" "), long)
        };
        let end = recording.entries.len();
        assert_eq!(found(end, Cut::All), ("b".into(), 1024));
        for cut in [Cut::Nothing, Cut::Some, Cut::Torn] {
            assert_eq!(found(end, cut), ("a b old".into(), 1000));
        }
        let linked = recording
            .entries
            .iter()
            .position(|entry| matches!(entry, Entry::Noted("linked")));
        let linked = linked.unwrap();
        assert_eq!(found(linked, Cut::Nothing), ("old".into(), 1));
        assert_eq!(found(linked, Cut::All), ("a b old".into(), 1000));
        let everything = recording.cut(end, Cut::Torn, || true);
        assert_eq!(everything.names.len(), 1);
        let next = journal.take();
        assert_eq!((next.entries.len(), next.before.names.len()), (0, 1));
    }
}
