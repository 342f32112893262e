use super::*;
use crate::devices::Device;
use crate::state::StateBlob;

fn device() -> Arc<dyn Device> {
    let mut items = Items::default();
    items.item(5, 3u16.to_le_bytes());
    items.file("etc/first", b"abcdef".to_vec());
    items.file("etc/second", Vec::new());
    FwCfg::new(items)
}

fn select(device: &Arc<dyn Device>, item: u16) {
    device.write(SELECTOR_PORT.into(), &item.to_le_bytes());
}

fn read(device: &Arc<dyn Device>, count: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; count];
    device.read(DATA_PORT.into(), &mut bytes);
    bytes
}

#[test]
fn an_item_is_read_on_where_it_was_left_and_zeros_behind_its_end() {
    let device = device();
    assert_eq!(
        read(&device, 4),
        b"QEMU",
        "the first item is selected at power-on"
    );
    select(&device, FEATURES);
    assert_eq!(read(&device, 4), [1, 0, 0, 0], "there is no DMA");
    select(&device, FIRST_FILE);
    assert_eq!(
        (read(&device, 1), read(&device, 3)),
        (b"a".to_vec(), b"bcd".to_vec())
    );
    assert_eq!(
        (read(&device, 4), read(&device, 2)),
        (b"ef\0\0".to_vec(), vec![0; 2])
    );
    select(&device, FIRST_FILE);
    assert_eq!(read(&device, 2), b"ab", "from its beginning");
    for absent in [2, FIRST_FILE + 2, u16::MAX] {
        select(&device, absent);
        assert_eq!(read(&device, 300), [0; 300]);
    }
}

#[test]
fn the_directory_names_the_files_with_their_sizes_and_numbers() {
    let device = device();
    select(&device, DIRECTORY);
    assert_eq!(read(&device, 4), [0, 0, 0, 2]);
    let first = read(&device, 64);
    assert_eq!(first[..8], [0, 0, 0, 6, 0, 0x20, 0, 0]);
    assert_eq!((&first[8..18], first[63]), (&b"etc/first\0"[..], 0));
    let second = read(&device, 64);
    assert_eq!(second[..8], [0, 0, 0, 0, 0, 0x21, 0, 0]);
    assert_eq!(&second[8..19], b"etc/second\0");
    assert_eq!(read(&device, 1), [0]);
}

#[test]
fn what_is_no_word_at_the_selector_selects_nothing() {
    let device = device();
    select(&device, 5);
    device.write(SELECTOR_PORT.into(), &[1]);
    device.write(SELECTOR_PORT.into(), &[1, 0, 0, 0]);
    device.write(DATA_PORT.into(), &[1, 0]);
    device.write(DATA_PORT.into(), &[1]);
    let mut bytes = [0xee; 2];
    device.read(SELECTOR_PORT.into(), &mut bytes);
    assert_eq!((bytes, read(&device, 2)), ([0; 2], vec![3, 0]));
}

#[test]
fn another_one_reads_on_and_a_reset_begins_again() {
    let (device, other) = (device(), self::device());
    select(&device, FIRST_FILE);
    read(&device, 3);
    let state = device.save();
    assert_eq!(
        (state.kind, state.instance, state.version),
        (StateKind::FirmwareConfiguration, 0, 1)
    );
    assert_eq!(state.bytes, [0x20, 3], "these bytes are read for ever");
    other.load(&state).expect("a state of the device");
    assert_eq!(read(&other, 3), b"def");
    other.reset();
    assert_eq!(read(&other, 4), b"QEMU");
}

#[test]
fn a_place_that_no_item_has_is_refused() {
    let device = device();
    select(&device, FIRST_FILE);
    for (item, offset) in [(FIRST_FILE, 7), (FIRST_FILE + 1, 1), (2, 1), (u16::MAX, u32::MAX)] {
        let state = StateBlob::encode(0, &Place { item, offset });
        assert!(
            matches!(device.load(&state), Err(StateError::Mismatch(_))),
            "{item} {offset}"
        );
    }
    assert_eq!(read(&device, 1), b"a", "a state that is refused changes nothing");
}
