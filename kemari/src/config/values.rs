//! Values with a syntax of their own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// An Ethernet address of one network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed =
            || format!("`{text}` is no MAC address: write six pairs of hex digits, as 52:54:00:12:34:56");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or_else(malformed)?, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        if bytes[0] & 1 != 0 {
            return Err(format!(
                "`{text}` is a multicast address: the first pair of a card's MAC must be even"
            ));
        }
        if bytes == [0; 6] {
            return Err(format!("`{text}` names no card: give it an address of its own"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Where the guest's console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// Nowhere.
    #[default]
    None,
    /// To the terminal, and input from it.
    Stdio,
    /// Appended to a file.
    File(PathBuf),
}

impl FromStr for Console {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("file:")) {
            ("none", _) => Ok(Self::None),
            ("stdio", _) => Ok(Self::Stdio),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(format!(
                "`{text}` is no console: write `stdio`, `none`, or `file:` and a path"
            )),
        }
    }
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

macro_rules! as_string {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

as_string!(Mac, Console);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs() {
        assert_eq!(
            "52:54:00:12:34:5F".parse(),
            Ok(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x5f]))
        );
        assert_eq!(Mac([2, 0, 0, 0, 0, 10]).to_string(), "02:00:00:00:00:0a");
        for wrong in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "52:54:00:12:34:+6",
        ] {
            assert!(
                wrong.parse::<Mac>().unwrap_err().contains("no MAC address"),
                "{wrong}"
            );
        }
        assert!(
            "53:54:00:12:34:56"
                .parse::<Mac>()
                .unwrap_err()
                .contains("multicast")
        );
        assert!("00:00:00:00:00:00".parse::<Mac>().is_err());
    }

    #[test]
    fn consoles() {
        assert_eq!("file:/tmp/c".parse(), Ok(Console::File("/tmp/c".into())));
        assert_eq!("stdio".parse(), Ok(Console::Stdio));
        assert!("file:".parse::<Console>().is_err());
        assert!("tty".parse::<Console>().is_err());
    }
}
