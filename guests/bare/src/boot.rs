//! What the machine says at boot: the boot information and the command line.

use core::fmt;
use core::net::Ipv4Addr;

use crate::abi::{self, BootDevice, BootInfo};
use crate::pattern::PAGES_MAX;

/// What the command line sets: `key=value` words separated by spaces. Unknown words are ignored, since the
/// machine's user may have put words there for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `ip=A.B.C.D/N`: our address.
    pub ip: Ipv4Addr,
    /// The N of `ip`.
    pub prefix_bits: u8,
    /// `gw=A.B.C.D`: the default gateway.
    pub gateway: Ipv4Addr,
    /// `port=N`: where the service listens.
    pub port: u16,
    /// `event_idx=off`: do not accept VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// `indirect=off`: do not accept VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// `kickloop=PAGES:SECONDS`: at boot, without a client, dirty so many pages and kick, again and again.
    pub kick_loop: Option<(u32, u32)>,
    /// `pattern=PAGES`: the pattern area has so many pages at most.
    pub pattern_pages_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            ip: Ipv4Addr::new(10, 77, 0, 2),
            prefix_bits: 24,
            gateway: Ipv4Addr::new(10, 77, 0, 1),
            port: 6379,
            event_idx: true,
            indirect: true,
            kick_loop: None,
            pattern_pages_max: PAGES_MAX,
        }
    }
}

/// A word of the command line that is ours and cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWord<'a>(pub &'a str);

impl fmt::Display for BadWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot understand '{}' on the command line: expected ip=A.B.C.D/N, gw=A.B.C.D, port=N, \
             event_idx=on|off, indirect=on|off, kickloop=PAGES:SECONDS or pattern=PAGES",
            self.0
        )
    }
}

/// Reads the command line.
pub fn parse(cmdline: &str) -> Result<Settings, BadWord<'_>> {
    let mut settings = Settings::default();
    for word in cmdline.split_ascii_whitespace() {
        if let Some((key, value)) = word.split_once('=') {
            set(&mut settings, key, value).ok_or(BadWord(word))?;
        }
    }
    Ok(settings)
}

fn set(settings: &mut Settings, key: &str, value: &str) -> Option<()> {
    let switch = |value| match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    };
    match key {
        "ip" => {
            let (ip, bits) = value.split_once('/')?;
            settings.ip = ip.parse().ok()?;
            settings.prefix_bits = bits.parse().ok().filter(|bits| *bits <= 32)?;
        }
        "gw" => settings.gateway = value.parse().ok()?,
        "port" => settings.port = value.parse().ok().filter(|port| *port != 0)?,
        "event_idx" => settings.event_idx = switch(value)?,
        "indirect" => settings.indirect = switch(value)?,
        "kickloop" => {
            let (pages, seconds) = value.split_once(':')?;
            settings.kick_loop = Some((pages.parse().ok()?, seconds.parse().ok()?));
        }
        "pattern" => settings.pattern_pages_max = value.parse().ok().filter(|pages| *pages != 0)?,
        _ => {}
    }
    Some(())
}

/// The boot information of this boot.
///
/// # Safety
/// To be called on the machine of abi.rs, with the address that was in `RDI` at entry.
pub unsafe fn info(address: u64) -> &'static BootInfo {
    // SAFETY: the machine put it there, nobody writes it after the entry,
    // and all of its bit patterns are valid.
    let info = unsafe { &*(address as *const BootInfo) };
    assert!(
        info.magic == abi::BOOT_INFO_MAGIC,
        "there is no boot information at {address:#x}"
    );
    assert!(
        info.tsc_khz != 0,
        "the boot information gives no frequency of the time stamp counter"
    );
    info
}

/// The devices that the boot information names.
pub fn devices(info: &BootInfo) -> &[BootDevice] {
    &info.devices[..(info.device_count as usize).min(abi::DEVICES_MAX)]
}

/// The command line of the boot information.
pub fn cmdline(info: &BootInfo) -> &str {
    let bytes = &info.cmdline[..(info.cmdline_bytes as usize).min(abi::CMDLINE_BYTES_MAX)];
    core::str::from_utf8(bytes).expect("the command line is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_override_the_defaults() {
        let settings =
            parse("quiet ip=192.168.1.7/16 gw=192.168.0.1 port=80 kickloop=10:5 event_idx=off").unwrap();
        assert_eq!(settings.ip, Ipv4Addr::new(192, 168, 1, 7));
        assert_eq!((settings.prefix_bits, settings.port), (16, 80));
        assert_eq!(settings.kick_loop, Some((10, 5)));
        assert!(!settings.event_idx && settings.indirect);
        assert_eq!(parse("").unwrap(), Settings::default());
    }

    #[test]
    fn a_mistyped_value_is_named() {
        for word in [
            "ip=10.0.0.1",
            "ip=10.0.0.1/33",
            "gw=x",
            "port=0",
            "port=70000",
            "indirect=no",
            "kickloop=3",
            "pattern=0",
        ] {
            assert_eq!(parse(word), Err(BadWord(word)));
        }
    }
}
