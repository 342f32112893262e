//! The border for what a peer says in words: it goes to the log, to `kemari status` and into errors, where it
//! is one line of letters. Whoever speaks to a host without certificates could otherwise write the host's
//! log.

use kemari_sync::wire::{FrameError, FrameKind, Goodbye, Message};
use kemari_sync::{Incarnation, Trouble};

use crate::log::printable;

/// Longest reason that is kept, in letters; what is sent is shorter.
const LETTERS_MAX: usize = 1024;

/// Decodes a control message, its words made harmless.
///
/// # Errors
/// If it does not decode, or names a VM, a host or a disk as none can be called.
pub fn decode(kind: FrameKind, body: &[u8]) -> Result<Message, FrameError> {
    let mut message = kemari_sync::wire::decode(kind, body)?;
    match &mut message {
        Message::Hello(hello) => {
            check_name(kind, &hello.vm)?;
            check_host(kind, &hello.incarnation)?;
        }
        Message::Welcome(welcome) => check_host(kind, &welcome.incarnation)?,
        Message::Refuse(reason)
        | Message::Goodbye(
            Goodbye::Alone(reason)
            | Goodbye::HandOver(reason)
            | Goodbye::Closed(reason)
            | Goodbye::Unfit(reason),
        ) => {
            tame(reason);
        }
        Message::Heartbeat(heartbeat) => {
            if let Some(Trouble::Uplink(reason) | Trouble::Disk(reason)) = &mut heartbeat.trouble {
                tame(reason);
            }
            let readiness = heartbeat.readiness.iter_mut();
            readiness.flat_map(|it| &mut it.reasons).for_each(tame);
        }
        Message::About(about) => {
            tame(&mut about.version);
            about.keys.iter_mut().for_each(|(key, _)| tame(key));
            about.images.iter_mut().for_each(|(id, _)| tame(id));
        }
        Message::Ready { disks, .. } => disks.iter().try_for_each(|it| check_name(kind, &it.disk))?,
        Message::CopyDisks(disks) => disks.iter().try_for_each(|it| check_name(kind, &it.disk))?,
        Message::Goodbye(Goodbye::Stopped | Goodbye::SwitchOver { .. })
        | Message::Proof { .. }
        | Message::Prepare
        | Message::DisksReady
        | Message::Begin(_)
        | Message::Commit(_)
        | Message::Ack(_)
        | Message::LetGo(_)
        | Message::Flushed(_)
        | Message::Settled(_) => {}
    }
    Ok(message)
}

fn check_host(kind: FrameKind, incarnation: &Incarnation) -> Result<(), FrameError> {
    check_name(kind, &incarnation.host)
}

fn check_name(kind: FrameKind, name: &str) -> Result<(), FrameError> {
    let shown = printable(name, LETTERS_MAX);
    match shown == name {
        true => Ok(()),
        false => Err(FrameError::Body {
            kind,
            reason: format!("`{shown}` is no name"),
        }),
    }
}

fn tame(reason: &mut String) {
    *reason = printable(reason, LETTERS_MAX);
}

#[cfg(test)]
mod tests {
    use kemari_sync::wire::{About, FrameHeader, HEADER_BYTES, Heartbeat, Hello, Welcome, encode};
    use kemari_sync::{CopyDisk, DiskOffer, Readiness};

    use super::*;

    /// What arrives of a message.
    fn arrived(message: &Message) -> Result<Message, FrameError> {
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        let (header, body) = bytes.split_at(HEADER_BYTES);
        let header = FrameHeader::parse(header.try_into().expect("a header")).expect("its own frame");
        decode(header.kind, body)
    }

    #[test]
    fn a_peers_reasons_are_one_line_that_commands_no_terminal() {
        let evil = "a\nERROR kemari: all is lost\x1b[2J";
        let tame = "a\\nERROR kemari: all is lost\\u{1b}[2J";
        for (sent, expected) in [
            (Message::Refuse(evil.into()), Message::Refuse(tame.into())),
            (
                Message::Goodbye(Goodbye::Unfit(evil.into())),
                Message::Goodbye(Goodbye::Unfit(tame.into())),
            ),
            (heartbeat(evil), heartbeat(tame)),
        ] {
            assert_eq!(arrived(&sent).expect("it decodes"), expected);
        }
        let usual = Message::Goodbye(Goodbye::HandOver(
            "the disk blk0 fails: Eingabe-/Ausgabefehler, süß".into(),
        ));
        assert_eq!(arrived(&usual).expect("it decodes"), usual);
    }

    fn heartbeat(text: &str) -> Message {
        Message::Heartbeat(Heartbeat {
            sequence: 1,
            epoch: 2,
            trouble: Some(Trouble::Disk(text.into())),
            readiness: Some(Readiness {
                reasons: vec!["fine".into(), text.into()],
                age_ms: 3,
            }),
            wall_clock_ms: 4,
            mtus: Vec::new(),
        })
    }

    #[test]
    fn a_peer_with_an_impossible_name_is_refused() {
        let welcome = |host: &str| {
            Message::Welcome(Welcome {
                incarnation: Incarnation {
                    host: host.into(),
                    nonce: 1,
                },
                last: None,
            })
        };
        assert!(arrived(&welcome("b")).is_ok());
        assert!(arrived(&welcome("b\n")).is_err());
    }

    #[test]
    fn a_greeting_of_an_impossible_vm_or_host_is_refused() {
        let hello = |vm: &str, host: &str| {
            Message::Hello(Hello {
                protocol: 1,
                vm: vm.into(),
                config_digest: 2,
                incarnation: Incarnation {
                    host: host.into(),
                    nonce: 3,
                },
                session: 4,
                term: 5,
                peer: None,
                last: None,
            })
        };
        assert!(arrived(&hello("demo", "a")).is_ok());
        assert!(arrived(&hello("demo\n", "a")).is_err());
        assert!(arrived(&hello("demo", "a\x1b[2J")).is_err());
    }

    #[test]
    fn what_a_peer_says_of_itself_commands_no_terminal() {
        let about = |text: &str| {
            Message::About(About {
                version: text.into(),
                keys: vec![("vm".into(), 1), (text.into(), 2)],
                features: Vec::new(),
                images: vec![(text.into(), 3)],
                memory_available_mib: 4,
                wall_clock_ms: 5,
            })
        };
        let arrived = arrived(&about("\x1b[2J")).expect("it decodes");
        assert_eq!(arrived, about("\\u{1b}[2J"));
    }

    #[test]
    fn a_disk_with_an_impossible_name_is_refused() {
        let ready = |disk: &str| Message::Ready {
            staging_pages_max: 1,
            disks: vec![DiskOffer {
                disk: disk.into(),
                bytes: 512,
                word: None,
                overwrite: false,
            }],
        };
        let copy = |disk: &str| {
            Message::CopyDisks(vec![CopyDisk {
                disk: disk.into(),
                lineage: 1,
                term: 2,
                base: 3,
                only_marked: false,
            }])
        };
        for message in [ready("blk0"), copy("blk0")] {
            assert!(arrived(&message).is_ok(), "{message:?}");
        }
        let evil = "blk0\nERROR kemari: all is lost";
        for message in [ready(evil), copy(evil)] {
            assert!(arrived(&message).is_err(), "{message:?}");
        }
    }
}
