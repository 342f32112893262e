//! What images say of themselves, over the life of two hosts.

use super::*;
use crate::replica::record::EXTENT_BYTES;
use crate::replica::testing::Scratch;
use kemari_sync::{Phase, announced_term, may_start, plan_copy};
use xtask::own_directory::{Content, Entry, Journal, OwnDirectory};

fn plan(source: &Image, target: &Image) -> Result<CopyDisk, String> {
    let term = source.offer().word.unwrap().term;
    plan_copy(&source.source().unwrap(), term, &target.offer(), rand::random())
}

/// The images of two hosts after A was copied to B, and the pair recorded in term 2.
fn pair() -> (Scratch, Scratch) {
    let scratches = (Scratch::new(8 * EXTENT_BYTES), Scratch::new(8 * EXTENT_BYTES));
    let (a, b) = (scratches.0.image(), scratches.1.image());
    a.start(1, false).unwrap();
    let plan = plan(&a, &b).unwrap();
    assert!(!plan.only_marked);
    a.become_source(&plan, &b.map()).unwrap();
    assert_eq!(a.map().count(), 8, "everything is to be compared");
    b.become_target(&plan).unwrap();
    assert!(
        may_start(&[b.offer()], "b", None, true).is_err(),
        "a half copy must not start"
    );
    a.clear(&a.map().iter().collect::<Vec<_>>()).unwrap();
    a.announce(2).unwrap();
    b.become_whole(2).unwrap();
    a.rule(2, true).unwrap();
    b.note_recorded().unwrap();
    scratches
}

#[test]
fn after_a_short_absence_only_what_either_has_marked_is_copied() {
    let (a, b) = pair();
    let (a, b) = (a.image(), b.image());
    a.mark([1]).unwrap();
    b.mark([5]).unwrap();
    a.rule(3, false).unwrap();
    let plan = plan(&a, &b).unwrap();
    assert!(plan.only_marked);
    a.become_source(&plan, &b.map()).unwrap();
    assert_eq!(a.map().iter().collect::<Vec<_>>(), [1, 5]);
    b.become_target(&plan).unwrap();
    assert_eq!(
        b.view().state,
        Some(ImageState::Target),
        "it holds no moment of the VM now"
    );
}

#[test]
fn the_old_primary_comes_back_and_is_not_copied_over_its_successor() {
    let (a, b) = pair();
    let (a, b) = (a.image(), b.image());
    b.rule(3, false).unwrap();
    assert!(plan(&b, &a).unwrap().only_marked);
    let refusal = plan(&a, &b).unwrap_err();
    assert!(refusal.contains("newer (term 3)"), "{refusal}");
}

#[test]
fn a_pair_that_was_never_recorded_leaves_the_secondary_to_be_copied_again() {
    let (a, b) = (Scratch::new(EXTENT_BYTES), Scratch::new(EXTENT_BYTES));
    let (a, b) = (a.image(), b.image());
    a.start(1, false).unwrap();
    let first = plan(&a, &b).unwrap();
    a.become_source(&first, &b.map()).unwrap();
    b.become_target(&first).unwrap();
    b.become_whole(2).unwrap();
    assert!(plan(&a, &b).unwrap().only_marked);
}

/// Its record may have named the term already that the stop gets: that of a pair that was never recorded.
#[test]
fn an_image_that_lacks_what_its_vm_was_stopped_with_is_not_started_from() {
    let scratch = Scratch::new(EXTENT_BYTES);
    let stopped = crate::arbiter::testing::record(2, Phase::Stopped);
    scratch.image().start(1, false).unwrap();
    for lacks in [false, true] {
        scratch.image().announce(2).unwrap();
        let term = announced_term(&stopped, || lacks);
        scratch.image().announce(term).unwrap();
        let started = may_start(&[scratch.image().offer()], "a", Some(&stopped), false);
        assert_eq!(started.is_ok(), !lacks, "{started:?}");
    }
}

#[test]
fn an_adopted_image_has_a_history_of_its_own() {
    let (a, b) = pair();
    let id = {
        let (a, b) = (a.image(), b.image());
        b.start(9, true).unwrap();
        let refusal = plan(&b, &a).unwrap_err();
        assert!(refusal.contains("another history"), "{refusal}");
        lineage_id(a.offer().word.unwrap().lineage)
    };
    let allowed = a.open("vm", Some(&id)).unwrap();
    assert!(!plan(&b.image(), &allowed).unwrap().only_marked);
}

#[test]
fn a_record_of_another_vm_or_of_a_larger_image_is_refused_and_nothing_is_written() {
    let scratch = Scratch::new(EXTENT_BYTES);
    scratch.image().start(1, false).unwrap();
    let record = std::fs::read(scratch.record_path()).unwrap();
    let error = scratch.open("other", None).err().expect("another VM").to_string();
    assert!(error.contains("is of disk blk0 of the VM vm"), "{error}");
    let file = std::fs::File::options().write(true).open(scratch.path()).unwrap();
    file.set_len(EXTENT_BYTES / 2).unwrap();
    let error = scratch
        .open("vm", None)
        .err()
        .expect("a shorter image")
        .to_string();
    assert!(error.contains("is of an image of 4194304 bytes"), "{error}");
    assert_eq!(std::fs::read(scratch.record_path()).unwrap(), record);
    std::fs::write(scratch.record_path(), b"rubbish").unwrap();
    let error = format!("{:#}", scratch.open("vm", None).err().expect("rubbish"));
    assert!(error.contains("damaged"), "{error}");
}

/// A record that is being made durable, on a disk that takes long, holds up neither the loop that shows it
/// nor one that only would like to clear marks.
#[test]
fn a_record_that_is_being_written_is_not_waited_for_to_show_it_or_to_clear_marks() {
    let scratch = Scratch::new(8 * EXTENT_BYTES);
    let image = scratch.image();
    image.start(1, false).unwrap();
    image.mark([1, 5]).unwrap();
    let shown = ImageView {
        state: Some(ImageState::Whole),
        changed_bytes: 2 * EXTENT_BYTES,
    };
    let being_written = image.record.lock().unwrap();
    assert_eq!(image.view(), shown);
    assert!(image.try_clear(&[1]).is_none());
    drop(being_written);
    assert_eq!(image.map().iter().collect::<Vec<_>>(), [1, 5]);
    image.try_clear(&[1]).expect("nobody writes it").unwrap();
    assert_eq!(image.map().iter().collect::<Vec<_>>(), [5]);
}

/// Whoever wrote it may have died before it was.
#[test]
fn what_an_image_says_when_it_is_opened_is_durable() {
    let scratch = Scratch::new(EXTENT_BYTES);
    scratch.image().start(1, false).unwrap();
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    let (image, record) = (read(scratch.path()), read(scratch.record_path()));
    let names = [scratch.path(), scratch.record_path()].map(|path| {
        let name = path.file_name().expect("a name");
        name.to_str().expect("a name of text").to_owned()
    });
    let journal = Journal::<()>::new(Content::of(&[(&names[0], &image), (&names[1], &record)]));
    let directory = scratch.path().parent().expect("a directory").to_owned();
    let own = OwnDirectory::mount(&directory, &journal).unwrap();
    let syncs = |journal: &Journal<()>| {
        let entries = journal.take().entries;
        entries
            .iter()
            .filter(|entry| matches!(entry, Entry::Synced(_)))
            .count()
    };
    let image = scratch.image();
    assert_eq!(syncs(&journal), 2, "the image and its record");
    journal.end_after(Some(1));
    drop(image);
    let error = scratch.open("vm", None).err().expect("it may be lost");
    assert!(
        format!("{error:#}").contains("disk.img.kemari cannot be made durable"),
        "{error:#}"
    );
    drop(own);
}
