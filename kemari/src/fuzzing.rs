//! Doors for `fuzz/` to what reads bytes from outside and is nobody else's business. Each takes any bytes.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use crate::control::Control;
use crate::links::Link;
use crate::replica::{RecordStore, SECTOR_BYTES};
use crate::{control, links, replica};

pub use crate::arbiter::fuzzing::{Members, arbiter_record, arbiter_record_bytes};
pub use crate::steward::fuzzing::{
    requests as requests_of_steward, take_requests as take_requests_of_steward,
};

/// Takes one request of a client of the control socket, and answers it.
pub fn serve_control(stream: &UnixStream, control: &dyn Control) {
    // A client may leave at any time.
    let _ = control::serve(stream, control);
}

/// The network devices in a part of the kernel's answer.
///
/// # Errors
/// If it is none.
pub fn take_links(part: &[u8]) -> io::Result<Vec<Link>> {
    let mut found = Vec::new();
    links::read_part(part, &mut found)?;
    Ok(found)
}

/// A fresh record of an image of so many bytes.
pub fn new_image_record(image_bytes: u64) -> Vec<u8> {
    let head = replica::Head {
        vm: "vm".into(),
        disk: "blk0".into(),
        image_bytes,
        history: kemari_sync::ImageHistory::first(1, 3, 2),
    };
    let store = Memory::new(vec![0; replica::Record::bytes_for(image_bytes) as usize]);
    let mut record = replica::Record::create(Box::new(store.clone()), head).expect("memory can be written");
    record.mark([0, 1]).expect("memory can be written");
    store.bytes_now()
}

/// Reads an image's record, and works with it; whether it is one.
/// What was marked must be marked when it is read again.
pub fn work_on_image_record(bytes: &[u8], extents: [u64; 2]) -> bool {
    let store = Memory::new(bytes.to_vec());
    let Ok(mut record) = replica::Record::load(Box::new(store.clone())) else {
        return false;
    };
    let map = record.map().clone();
    assert_eq!(map.iter().count() as u64, map.count());
    let copy = replica::Map::from_bytes(record.head().image_bytes, &map.to_bytes());
    assert!(copy.as_ref() == Some(&map), "a map survives its bytes");
    let image_extents = record.head().image_bytes.div_ceil(replica::EXTENT_BYTES);
    let within = extents.into_iter().filter(|extent| *extent < image_extents);
    record.mark(within).expect("memory can be written");
    record
        .set_head(record.head().clone())
        .expect("memory can be written");
    let again = replica::Record::load(Box::new(store)).expect("what was written is a record");
    assert!(again.head() == record.head() && again.map() == record.map());
    true
}

/// Where a record lies in memory.
#[derive(Clone)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    fn bytes_now(&self) -> Vec<u8> {
        self.0.lock().expect("nobody panicked").clone()
    }

    fn with<T>(&self, offset: u64, length: usize, act: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        assert!(length <= SECTOR_BYTES, "a record is read and written in sectors");
        let mut bytes = self.0.lock().expect("nobody panicked");
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| bytes.get_mut(start..)?.get_mut(..length));
        part.map(act).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl RecordStore for Memory {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.with(offset, bytes.len(), |part| bytes.copy_from_slice(part))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(offset, bytes.len(), |part| part.copy_from_slice(bytes))
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.bytes_now().len() as u64)
    }
}
