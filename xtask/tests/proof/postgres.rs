//! The transactions' proof on trial: it finds a real PostgreSQL faultless,
//! and notices when rows are tampered with.

use std::time::Duration;

use xtask::proof::checker::{Verdict, check};
use xtask::proof::client::{Swarm, read_all_keys};
use xtask::proof::history::{Clock, History};
use xtask::proof::load::Load;
use xtask::proof::postgres::client::ask;
use xtask::proof::postgres::health::{examine, is_durable};

use crate::database::Database;

/// One server for all: it takes a second to make.
#[test]
fn postgresql_is_found_faultless_and_tampering_is_noticed() {
    let database = Database::start();
    let load = database.load(1);
    let clock = Clock::start();
    let swarm = Swarm::start(&load, clock).unwrap();
    std::thread::sleep(Duration::from_millis(800));
    let history = swarm.finish(true).unwrap();
    let verdict = judge(&load, clock, &history);
    assert!(
        verdict.is_clean(),
        "{:?} {:?}",
        verdict.lost,
        verdict.contradicted
    );
    assert!(
        verdict.acknowledged >= 80 && verdict.reads > verdict.acknowledged,
        "{verdict:?}"
    );
    assert_eq!(history.connections_lost(), 0);
    assert!(
        history
            .acknowledged_since_by_connection(0)
            .iter()
            .all(|&count| count > 0)
    );
    assert!(examine(&load).unwrap().indexes > 100);
    assert!(is_durable(&load).unwrap());

    tamper(&load, "DELETE FROM whole WHERE client = 2 AND number = 3");
    let verdict = judge(&load, clock, &history);
    assert!(
        verdict.lost.is_empty() && verdict.contradicted[0].contains("half there"),
        "{verdict:?}"
    );
    tamper(&load, "DELETE FROM parts WHERE client = 2 AND number = 3");
    let verdict = judge(&load, clock, &history);
    assert!(
        verdict.lost.len() == 1 && verdict.lost[0].contains("2000003"),
        "{verdict:?}"
    );
    tamper(
        &load,
        "INSERT INTO whole SELECT * FROM whole WHERE client = 4 AND number = 1",
    );
    let verdict = judge(&load, clock, &history);
    let twice = |what: &String| what.contains("client 4") && what.contains("2 times");
    assert!(verdict.contradicted.iter().any(twice), "{verdict:?}");
    tamper(
        &load,
        "UPDATE whole SET number = 777777 WHERE client = 5 AND number = 1",
    );
    tamper(
        &load,
        "UPDATE parts SET number = 777777 WHERE client = 5 AND number = 1",
    );
    let verdict = judge(&load, clock, &history);
    assert!(verdict.lost.len() == 2, "moved away: {verdict:?}");
    let nobody = |what: &String| what.contains("777777");
    assert!(verdict.contradicted.iter().any(nobody), "{verdict:?}");

    corruption_is_noticed(&load, &database);
}

/// Bytes changed behind the database's back: the checksum must tell.
fn corruption_is_noticed(load: &Load, database: &Database) {
    let path = ask(load, "CHECKPOINT; SELECT pg_relation_filepath('parts')").unwrap();
    let path = path[0].get(0).unwrap().to_owned();
    // Out of the shared buffers, or the page would not be read again.
    let script =
        format!("printf rotten | dd of=/var/lib/postgresql/{path} bs=1 seek=8000 conv=notrunc 2>/dev/null");
    database.root.sh(&script).unwrap();
    // Not CREATE TABLE AS: that goes round the shared buffers.
    let filler = "CREATE TABLE filler (value text);
        INSERT INTO filler SELECT repeat('x', 500) FROM generate_series(1, 60000)";
    ask(load, filler).unwrap();
    let found = examine(load).unwrap_err();
    assert!(
        format!("{found:#}").contains("checksum") || format!("{found:#}").contains("corrupt"),
        "{found:#}"
    );
}

fn judge(load: &Load, clock: Clock, history: &History) -> Verdict {
    let mut history = history.clone();
    history.merge(read_all_keys(load, clock, &history).unwrap());
    check(&history).unwrap()
}

fn tamper(load: &Load, sql: &str) {
    ask(load, sql).unwrap();
}
