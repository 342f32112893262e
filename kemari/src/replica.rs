//! Replicated disks: two images on two hosts, kept equal.
//!
//! `record` is what each image's side knows durably, `image` an image with its record. On the primary a
//! `tracker` stands before every write, and a `copier` brings the other image up to date. On the secondary a
//! `writer` carries out what commits release, and what the copy brings. A `chunk` is what a copy compares and
//! sends.

mod chunk;
mod copier;
mod image;
mod record;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod tracker;
mod writer;

pub(crate) use copier::{CALLS as COPY_CALLS, CopiedDisk, Copier, CopyProgress};
pub(crate) use image::{Image, ImageView, describe_record, record_beside, record_of, views};
#[cfg(feature = "fuzzing")]
pub(crate) use record::{EXTENT_BYTES, Head, Record};
pub(crate) use record::{Map, RecordError};
#[cfg(feature = "fuzzing")]
pub(crate) use store::{SECTOR_BYTES, Store as RecordStore};
pub(crate) use tracker::{MARK_AGE_MIN, Tracker};
pub(crate) use writer::{Barrier, Report};
pub(crate) use writer::{CALLS as REPLICA_CALLS, Remains, Replica};
