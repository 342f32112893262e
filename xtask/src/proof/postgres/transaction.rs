//! What a transaction writes, and what a read of the tables shows.

use std::collections::BTreeMap;

use crate::proof::history::Answer;
use crate::proof::load::Load;

/// Rows that a transaction puts into the table `parts`; one more goes into `whole`.
pub const PARTS: u64 = 3;
/// Most transactions of one client: its number and a transaction's make a key.
pub const NUMBER_MAX: u32 = 999_999;

/// Makes the tables, unless they are there. Their indexes are not unique: a row that is there twice must be
/// seen, and not be refused.
pub const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS parts (run bigint, client int, number int, part int, value text);
    CREATE TABLE IF NOT EXISTS whole (run bigint, client int, number int, value text);
    CREATE INDEX IF NOT EXISTS parts_by_number ON parts (run, client, number, part);
    CREATE INDEX IF NOT EXISTS whole_by_number ON whole (run, client, number);
    CREATE INDEX IF NOT EXISTS parts_by_value ON parts (value);";

/// The key of a client's transaction in a history: readable as client and number.
pub fn key(client: u16, number: u32) -> u32 {
    u32::from(client) * (NUMBER_MAX + 1) + number
}

/// Client and number of a key.
pub fn of_key(key: u32) -> (u16, u32) {
    ((key / (NUMBER_MAX + 1)) as u16, key % (NUMBER_MAX + 1))
}

/// The statements of a transaction, without BEGIN and COMMIT.
pub fn statements(load: &Load, client: u16, number: u32) -> [String; 2] {
    let run = load.run;
    let rows: Vec<String> = (0..PARTS)
        .map(|part| {
            format!(
                "({run}, {client}, {number}, {part}, '{}')",
                value(load, client, number, part)
            )
        })
        .collect();
    [
        format!("INSERT INTO parts VALUES {}", rows.join(", ")),
        format!(
            "INSERT INTO whole VALUES ({run}, {client}, {number}, '{}')",
            value(load, client, number, PARTS)
        ),
    ]
}

/// A query for everything that transactions of a client, from a number on, have left in the tables, in one
/// snapshot: number, part and value, where the row of `whole` counts as part [`PARTS`].
pub fn query(load: &Load, client: u16, from: u32) -> String {
    let which = format!(
        "WHERE run = {} AND client = {client} AND number >= {from}",
        load.run
    );
    format!(
        "SELECT number, part, value FROM parts {which} \
         UNION ALL SELECT number, {PARTS}, value FROM whole {which}"
    )
}

/// Each value is unique, and every byte of it can be checked.
fn value(load: &Load, client: u16, number: u32, part: u64) -> String {
    // The values are letters, digits and colons: they need no quoting.
    String::from_utf8_lossy(&load.value(key(client, number), part + 1)).into_owned()
}

/// The rows that a [`query`] has returned.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    rows: BTreeMap<u32, Vec<(u64, String)>>,
}

impl Seen {
    /// Adds a row.
    pub fn add(&mut self, number: u32, part: u64, value: String) {
        self.rows.entry(number).or_default().push((part, value));
    }

    /// The numbers of all transactions of which something was seen.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.rows.keys().copied()
    }

    /// What was seen of one transaction.
    pub fn answer(&self, load: &Load, client: u16, number: u32) -> Answer {
        let Some(rows) = self.rows.get(&number) else {
            return Answer::Value(0);
        };
        let wrong =
            |what: String| Answer::Impossible(format!("transaction {number} of client {client}: {what}"));
        for part in 0..=PARTS {
            let of_part = rows.iter().filter(|(of, _)| *of == part).count();
            if of_part == 0 {
                return wrong(format!("it is half there: {} of {} rows", rows.len(), PARTS + 1));
            }
            if of_part > 1 {
                return wrong(format!("part {part} of it is there {of_part} times"));
            }
        }
        for (part, found) in rows {
            if *part > PARTS || *found != value(load, client, number, *part) {
                return wrong(format!(
                    "part {part} of it has a value that nobody wrote: `{found}`"
                ));
            }
        }
        Answer::Value(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        Load::new("127.0.0.1:1".parse().unwrap(), 7)
    }

    fn whole(load: &Load, number: u32) -> Seen {
        let mut seen = Seen::default();
        (0..=PARTS).for_each(|part| seen.add(number, part, value(load, 3, number, part)));
        seen
    }

    #[test]
    fn a_key_tells_client_and_number() {
        for (client, number) in [(0, 1), (3, 17), (62, NUMBER_MAX)] {
            assert_eq!(of_key(key(client, number)), (client, number));
        }
    }

    #[test]
    fn a_transaction_is_there_or_not_and_everything_else_is_noticed() {
        let load = load();
        assert_eq!(whole(&load, 5).answer(&load, 3, 5), Answer::Value(1));
        assert_eq!(whole(&load, 5).answer(&load, 3, 6), Answer::Value(0));
        let complaint = |seen: &Seen| match seen.answer(&load, 3, 5) {
            Answer::Impossible(what) => what,
            other => panic!("{other:?}"),
        };
        for missing in 0..=PARTS {
            let mut half = whole(&load, 5);
            half.rows
                .get_mut(&5)
                .unwrap()
                .retain(|(part, _)| *part != missing);
            assert!(complaint(&half).contains("half"), "without part {missing}");
        }
        for twice in 0..=PARTS {
            let mut doubled = whole(&load, 5);
            doubled.add(5, twice, value(&load, 3, 5, twice));
            assert!(complaint(&doubled).contains("2 times"), "part {twice}");
        }
        let mut torn = whole(&load, 5);
        torn.rows.get_mut(&5).unwrap()[1].1.pop();
        assert!(complaint(&torn).contains("nobody wrote"));
        let mut foreign = whole(&load, 5);
        foreign.rows.get_mut(&5).unwrap()[1].1 = value(&load, 3, 6, 1);
        assert!(complaint(&foreign).contains("nobody wrote"));
        let mut more = whole(&load, 5);
        more.add(5, PARTS + 1, String::new());
        assert!(complaint(&more).contains("nobody wrote"));
    }

    #[test]
    fn the_statements_write_what_a_read_expects() {
        let load = load();
        let [parts, whole] = statements(&load, 3, 5);
        for part in 0..PARTS {
            assert!(parts.contains(&format!("3, 5, {part}, '{}'", value(&load, 3, 5, part))));
        }
        assert!(whole.contains(&value(&load, 3, 5, PARTS)));
    }
}
