//! What was meant by a value of the wrong type.

/// Longest value that is repeated, in bytes.
const SHOWN_BYTES_MAX: usize = 40;

/// The end of a sentence that begins with the key, for a message of `serde` about a value that stands in the
/// file as `given`. `None`: the message says it as well.
pub(crate) fn hint(message: &str, given: Option<&str>) -> Option<String> {
    let (found, wanted) = message
        .strip_prefix("invalid type: ")?
        .split_once(", expected ")?;
    let given = given
        .map(str::trim)
        .filter(|given| given.len() <= SHOWN_BYTES_MAX && !given.contains('\n'));
    let kind = found.split([' ', '`']).next()?;
    let bare = given.map(|given| given.trim_matches(['"', '\'']));
    let is_number =
        bare.is_some_and(|bare| !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit()));
    Some(match (wanted, kind) {
        // A list is taken for the fields of the section, one by one.
        (_, "map") if given.is_some_and(|given| given.starts_with("[[")) => {
            "is one section: write its heading with one pair of brackets, as [machine]".to_owned()
        }
        ("u8" | "u16" | "u32" | "u64" | "usize", "string") if is_number => {
            format!("is a number: write {}, without quotes", bare?)
        }
        ("u8" | "u16" | "u32" | "u64" | "usize", _) => {
            format!("is a whole number, without quotes and unit, and not {}", given?)
        }
        ("a boolean", "string") if matches!(bare, Some("true" | "false")) => {
            format!("is true or false: write {}, without quotes", bare?)
        }
        ("a boolean", _) => format!("is true or false, and not {}", given?),
        ("a string" | "path string", "integer" | "floating" | "boolean") => {
            format!("is text: write it in quotes, \"{}\"", given?)
        }
        ("a sequence", "string") => format!("is a list: write it in brackets, [{}]", given?),
        ("a sequence", "map") => {
            "is a list of sections: write its heading with two brackets, as [[disk]]".to_owned()
        }
        _ => return None,
    })
}
