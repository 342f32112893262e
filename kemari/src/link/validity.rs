//! When a certificate ends (RFC 5280, sections 4.1 and 4.1.2.5). Nothing else of it is looked at here: who
//! may speak to whom is decided by what verifies it.

/// Tags of the DER (X.690) on the way to the end of a certificate.
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// What stands between version and validity: serial number, algorithm, issuer.
const FIELDS_BEFORE: usize = 3;
const DAY_S: u64 = 24 * 3600;

/// When the certificate ends, in seconds since 1970; `None` if it cannot be read.
pub(crate) fn ends_s(certificate: &[u8]) -> Option<u64> {
    let (content, _) = element(certificate, Some(SEQUENCE))?;
    let (mut fields, _) = element(content, Some(SEQUENCE))?;
    if let Some((_, rest)) = element(fields, Some(VERSION)) {
        fields = rest;
    }
    for _ in 0..FIELDS_BEFORE {
        (_, fields) = element(fields, None)?;
    }
    let (validity, _) = element(fields, Some(SEQUENCE))?;
    let (_, end) = element(validity, None)?;
    time(end)
}

/// The content of the first element of `bytes`, which must have this tag, if one is wanted,
/// and what follows it.
fn element(bytes: &[u8], tag: Option<u8>) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    if tag.is_some_and(|tag| tag != found) {
        return None;
    }
    let (&first, mut rest) = rest.split_first()?;
    let length = match first {
        0..=0x7f => usize::from(first),
        // The length follows, in so many bytes.
        0x81..=0x84 => {
            let (digits, after) = rest.split_at_checked(usize::from(first - 0x80))?;
            rest = after;
            digits
                .iter()
                .fold(0, |length, digit| length << 8 | usize::from(*digit))
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn time(bytes: &[u8]) -> Option<u64> {
    let (text, century) = match element(bytes, Some(UTC_TIME)) {
        Some((text, _)) => (text, None),
        None => {
            let (text, _) = element(bytes, Some(GENERALIZED_TIME))?;
            let (century, text) = text.split_at_checked(2)?;
            (text, Some(number(century)?))
        }
    };
    // YYMMDDhhmmssZ, and no other way to write it.
    let (digits, b"Z") = text.split_at_checked(12)? else {
        return None;
    };
    let mut parts = digits.chunks(2).map(number);
    let mut next = || parts.next().flatten();
    let (year, month, day) = (next()?, next()?, next()?);
    let (hour, minute, second) = (next()?, next()?, next()?);
    let century = century.unwrap_or(if year >= 50 { 19 } else { 20 });
    let days = days_since_1970(100 * century + year, month, day)?;
    Some(days * DAY_S + hour * 3600 + minute * 60 + second)
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Days of the Gregorian calendar. A year begins in March here, so that the leap day is its last.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    /// From 1 March of the year 0 to 1 January 1970.
    const BEFORE_1970: u64 = 719_468;
    days.checked_sub(BEFORE_1970)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn made(year: i32, month: u8, day: u8) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, month, day);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_that_of_the_certificate_in_either_way_of_writing_it() {
        for (date, days) in [
            ((2001, 9, 9), 11_574),
            ((2024, 2, 29), 19_782),
            ((2026, 12, 13), 20_800),
            ((2049, 12, 31), 29_219),
            ((2050, 1, 1), 29_220),
            ((2100, 3, 1), 47_541),
            ((4096, 1, 1), 776_506),
        ] {
            let (year, month, day) = date;
            assert_eq!(ends_s(&made(year, month, day)), Some(days * DAY_S), "{date:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let good = made(2040, 1, 1);
        let ends = ends_s(&good);
        for length in 0..good.len() {
            assert_eq!(ends_s(&good[..length]), None, "cut to {length} bytes");
        }
        // Whatever stands there: no panic, and never an end that is out of this world.
        for at in 0..good.len().min(400) {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = ends_s(&bad);
            }
        }
        assert!(ends.is_some());
    }
}
