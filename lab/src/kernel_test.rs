use super::{dependencies, payload};

/// A bzImage of boot protocol 2.08 with one setup sector.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x208u16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(&[0xcc; 16]);
    image.extend_from_slice(payload);
    image
}

#[test]
fn the_payload_is_found_without_its_size() {
    let image = bzimage(b"compressed kernel\x01\x02\x03\x04");
    assert_eq!(payload(&image), Some(&b"compressed kernel"[..]));
}

#[test]
fn what_is_no_bzimage_has_no_payload() {
    let mut image = bzimage(b"compressed kernel\x01\x02\x03\x04");
    assert_eq!(payload(&image[..image.len() - 1]), None, "cut short");
    image[0x202] = 0;
    assert_eq!(payload(&image), None, "no magic number");
    assert_eq!(payload(&[]), None);
}

#[test]
fn dependencies_are_read_from_modinfo() {
    assert_eq!(
        dependencies(b"x\0license=GPL\0depends=kvm,ccp\0name=kvm_amd\0"),
        ["kvm", "ccp"]
    );
    assert!(dependencies(b"x\0depends=\0name=virtio\0").is_empty());
    assert!(dependencies(b"nothing").is_empty());
}
