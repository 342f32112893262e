use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use super::*;

/// A client as simple as can be.
struct Client(UnixStream);

impl Client {
    fn connect(disk: &VolatileDisk) -> Client {
        let mut stream = UnixStream::connect(disk.socket()).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Flags; an option that nobody knows; then "go", for the export without a name.
        stream.write_all(&[0, 0, 0, 3]).unwrap();
        stream.write_all(b"IHAVEOPT\0\0\0\x08\0\0\0\0").unwrap();
        let mut refusal = [0; 20];
        stream.read_exact(&mut refusal).unwrap();
        assert_eq!(refusal[12..16], [0x80, 0, 0, 1]);
        stream
            .write_all(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0")
            .unwrap();
        let mut export = [0; 20 + 12 + 20];
        stream.read_exact(&mut export).unwrap();
        assert_eq!(u64::from_be_bytes(export[22..30].try_into().unwrap()), 64 << 10);
        Client(stream)
    }

    /// Asks; the error number and what was read.
    fn ask(&mut self, command: u16, flags: u16, offset: u64, bytes: u32, data: &[u8]) -> (u32, Vec<u8>) {
        let mut request = vec![0x25, 0x60, 0x95, 0x13];
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(7u64.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(bytes.to_be_bytes());
        request.extend(data);
        self.0.write_all(&request).unwrap();
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[8..], 7u64.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        let mut read = vec![
            0;
            if command == 0 && error == 0 {
                bytes as usize
            } else {
                0
            }
        ];
        self.0.read_exact(&mut read).unwrap();
        (error, read)
    }

    fn write(&mut self, offset: u64, byte: u8, bytes: u32) {
        assert_eq!(self.ask(1, 0, offset, bytes, &vec![byte; bytes as usize]).0, 0);
    }

    fn flush(&mut self) {
        assert_eq!(self.ask(3, 0, 0, 0, &[]).0, 0);
    }
}

fn disk() -> (tempfile::TempDir, PathBuf, VolatileDisk) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    File::create(&image).unwrap().set_len(64 << 10).unwrap();
    let disk = VolatileDisk::serve(&image, directory.path().join("socket")).unwrap();
    (directory, image, disk)
}

fn bytes_at(image: &Path, offset: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    File::open(image)
        .unwrap()
        .read_exact_at(&mut data, offset)
        .unwrap();
    data
}

#[test]
fn what_was_flushed_stays_and_of_the_rest_a_part_goes() {
    let (_directory, image, disk) = disk();
    let mut client = Client::connect(&disk);
    client.write(0, 1, 4096);
    client.flush();
    client.write(0, 2, 4096);
    client.write(8192, 3, 32768);
    assert_eq!(
        client.ask(0, 0, 0, 512, &[]).1,
        [2; 512],
        "a reader sees what is not flushed"
    );
    assert_eq!(client.ask(0, 0, 8192, 512, &[]).1, [3; 512]);
    assert_eq!(client.ask(1, 1, 4096, 512, &[4; 512]).0, 0);
    assert_eq!(bytes_at(&image, 4096, 512), [4; 512], "durable at once");
    assert_eq!(bytes_at(&image, 0, 4096), [1; 4096]);

    disk.lose_power().unwrap();
    let loss = disk.loss();
    assert_eq!((loss.forgotten + loss.kept, loss.flushes), (8 + 64, 1));
    assert!(
        loss.forgotten > 8 && loss.kept > 8,
        "{loss:?}: a part, and not all"
    );
    for sector in bytes_at(&image, 0, 4096).chunks(512) {
        assert!(sector == [1; 512] || sector == [2; 512], "no sector is torn");
    }
    let kept = bytes_at(&image, 8192, 32768);
    assert!(
        kept.chunks(512)
            .all(|sector| sector == [3; 512] || sector == [0; 512])
    );
    assert!(client.0.read(&mut [0]).unwrap() == 0, "its client is cut off");

    let mut client = Client::connect(&disk);
    assert_eq!(
        client.ask(0, 0, 8192, 32768, &[]).1,
        kept,
        "the next one finds what was left"
    );
}

#[test]
fn it_becomes_slow_and_fails_on_command() {
    let (_directory, _image, disk) = disk();
    let mut client = Client::connect(&disk);
    disk.behave(Behaviour {
        delay: Duration::from_millis(30),
        fails_writes: false,
    });
    let begin = std::time::Instant::now();
    client.write(0, 1, 512);
    assert!(begin.elapsed() >= Duration::from_millis(30));
    disk.behave(Behaviour {
        delay: Duration::ZERO,
        fails_writes: true,
    });
    assert_eq!(client.ask(1, 0, 0, 512, &[9; 512]).0, 5);
    assert_eq!(client.ask(3, 0, 0, 0, &[]).0, 5);
    assert_eq!(client.ask(0, 0, 0, 512, &[]).1, [1; 512]);
    disk.behave(Behaviour::default());
    client.flush();
}

#[test]
fn what_lies_outside_or_across_sectors_is_refused() {
    let (_directory, _image, disk) = disk();
    let mut client = Client::connect(&disk);
    for (offset, bytes) in [(64 << 10, 512), (u64::MAX - 511, 512), (100, 512), (0, 100)] {
        assert_eq!(client.ask(0, 0, offset, bytes, &[]).0, 22, "{offset} {bytes}");
    }
}
