//! Whether a database finds itself sound.

use anyhow::{Context, Result, ensure};
use lab::GuestRoot;

use super::client::ask;
use crate::proof::load::Load;

/// Every index of every table, against its own order and against its table (amcheck).
const INDEXES: &str = "
    SELECT count(*) FROM (
        SELECT bt_index_check(c.oid, true) FROM pg_class c
        JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam
        WHERE a.amname = 'btree' AND c.relkind = 'i' AND i.indisvalid AND c.relpersistence <> 't'
    ) checked";
/// Every page of every table: its form, and, by being read, its checksum (amcheck).
const TABLES: &str = "
    SELECT c.relname || ', block ' || v.blkno || ': ' || v.msg
    FROM pg_class c, LATERAL verify_heapam(c.oid, check_toast := true) v
    WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'";
/// What the checksums have found so far. They must be on, or that says nothing.
const CHECKSUMS: &str =
    "SELECT current_setting('data_checksums'), coalesce(sum(checksum_failures), 0) FROM pg_stat_database";
/// What makes an acknowledged transaction durable.
const SETTINGS: &str = "SELECT current_setting('synchronous_commit') || ' ' || current_setting('fsync')
    || ' ' || current_setting('full_page_writes')";

/// Recovers a database whose machine was switched off, shuts it down,
/// and has every page's checksum looked at.
const OFFLINE: &str = "
bin=$(echo /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql
rm -f $data/postmaster.pid
su -s /bin/sh postgres -c \"
    set -e
    echo 'SELECT 1' | $bin/postgres --single -D $data -c dynamic_shared_memory_type=mmap postgres 2>&1
    $bin/pg_checksums --check -D $data
\"
";

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Number of indexes that amcheck found sound.
    pub indexes: u64,
}

/// Has PostgreSQL look for corruption; an error says what it found.
pub fn examine(load: &Load) -> Result<Health> {
    let only = |sql: &str, column: usize| -> Result<String> {
        let rows = ask(load, sql)?;
        let row = rows.first().context("PostgreSQL returned no row")?;
        Ok(row.try_get(column)?.unwrap_or_default().to_owned())
    };
    let indexes = only(INDEXES, 0).context("an index is corrupt")?.parse()?;
    ensure!(indexes > 0, "PostgreSQL knows no index");
    let corrupt = ask(load, TABLES).context("a table is corrupt")?;
    let first = corrupt.first().map(|row| row.get(0).unwrap_or_default());
    ensure!(
        first.is_none(),
        "{} findings in tables, the first of them: {}",
        corrupt.len(),
        first.unwrap_or_default()
    );
    let (on, failures) = (only(CHECKSUMS, 0)?, only(CHECKSUMS, 1)?);
    ensure!(on == "on", "the database has no data checksums");
    ensure!(failures == "0", "{failures} pages with a wrong checksum");
    Ok(Health { indexes })
}

/// Fails if PostgreSQL would acknowledge what is not on the disk.
pub fn is_durable(load: &Load) -> Result<bool> {
    let rows = ask(load, SETTINGS)?;
    Ok(rows.first().and_then(|row| row.get(0)) == Some("on on on"))
}

/// Recovers the database on a guest's disk by PostgreSQL's own means, and checks it as a whole; an error says
/// what is wrong.
pub fn examine_files(root: &GuestRoot) -> Result<()> {
    let said = root
        .sh(OFFLINE)
        .context("the database on the disk is not sound")?;
    ensure!(
        said.contains("Bad checksums:  0\n"),
        "pg_checksums does not say that all is well: {said}"
    );
    Ok(())
}
