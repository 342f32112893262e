//! The keys that a section may have, asked of the type it is read into.

use serde::de::value::Error;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

struct Probe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("only asked for its fields"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The names of the fields of `T` as its `Deserialize` knows them; empty if `T` is not a struct.
pub(crate) fn fields_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // Always an error: no value is built, the visit only reveals the names.
    let _ = T::deserialize(Probe(&mut fields));
    fields
}

/// The name of `known` that `given` was most likely meant to be, if one is near enough to be a slip.
pub(crate) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |name: &str| strsim::damerau_levenshtein(&given.to_lowercase(), &name.to_lowercase());
    let slips_max = |name: &str| (name.len().max(given.len()) / 3).max(1);
    known
        .into_iter()
        .map(|name| (similarity(name), name))
        .filter(|(distance, name)| *distance <= slips_max(name))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Machine};

    #[test]
    fn fields_are_those_of_the_type() {
        assert_eq!(
            fields_of::<Machine>(),
            ["memory_mib", "vcpus", "kernel", "firmware", "initrd", "cmdline"]
        );
        assert!(
            fields_of::<Config>().contains(&"disk"),
            "renamed fields by the name in the file"
        );
        assert!(fields_of::<u32>().is_empty());
    }

    #[test]
    fn nearest_finds_slips_only() {
        let known = ["memory_mib", "vcpus", "kernel"];
        assert_eq!(nearest("memmory_mib", known), Some("memory_mib"));
        assert_eq!(nearest("memoyr_mib", known), Some("memory_mib"));
        assert_eq!(nearest("vcpu", known), Some("vcpus"));
        assert_eq!(nearest("colour", known), None);
    }
}
