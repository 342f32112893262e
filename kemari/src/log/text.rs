//! Text from elsewhere - a peer, an arbiter, a guest, a file - as it may be shown: one line, and nothing that
//! a terminal obeys.

use std::fmt::{self, Write};

/// Whether a terminal or a reader of lines takes this for more than a letter: controls, ends of lines and
/// paragraphs, and what turns the direction of writing.
fn is_unprintable(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Passes text on with what is unprintable escaped.
struct Printable<'a>(&'a mut dyn Write);

impl Write for Printable<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_unprintable) {
            self.0.write_str(&rest[..at])?;
            let mut letters = rest[at..].chars();
            if let Some(letter) = letters.next() {
                write!(self.0, "{}", letter.escape_default())?;
            }
            rest = letters.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Writes text so that it can be shown.
pub(super) fn write(writer: &mut dyn Write, text: fmt::Arguments<'_>) -> fmt::Result {
    Printable(writer).write_fmt(text)
}

/// The beginning of a text from elsewhere, of at most `letters_max` letters, so that it can be shown.
pub(crate) fn printable(text: &str, letters_max: usize) -> String {
    let end = text.char_indices().nth(letters_max).map(|(at, _)| at);
    let mut shown = String::new();
    // Nothing that writes into a string fails.
    let _ = Printable(&mut shown).write_str(&text[..end.unwrap_or(text.len())]);
    if end.is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_is_one_line_and_commands_no_terminal() {
        for (text, shown) in [
            ("", ""),
            ("disk blk0 at /dev/süß", "disk blk0 at /dev/süß"),
            ("a\nERROR kemari: b", "a\\nERROR kemari: b"),
            ("\x1b[2J\x07", "\\u{1b}[2J\\u{7}"),
            ("\r\t\u{9b}31m", "\\r\\t\\u{9b}31m"),
            ("a\u{2028}b\u{202e}c\u{2066}", "a\\u{2028}b\\u{202e}c\\u{2066}"),
        ] {
            assert_eq!(printable(text, 100), shown, "{text:?}");
        }
    }

    #[test]
    fn text_from_elsewhere_is_short() {
        assert_eq!(printable("äöü", 3), "äöü");
        assert_eq!(printable("äöüß", 3), "äöü…");
    }
}
