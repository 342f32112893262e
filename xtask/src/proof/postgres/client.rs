//! A connection to PostgreSQL: it never reconnects, and records everything.

use std::net::TcpStream;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::transaction::{NUMBER_MAX, Seen, TABLES, key, of_key, query, statements};
use crate::proof::client::{FINAL_READER, connect};
use crate::proof::connection::{Live, STOP, WORK};
use crate::proof::history::{Answer, Clock, ConnectionEnd, History, Nanos, Operation, Request};
use crate::proof::load::Load;

/// How often a connection that waits looks whether it is to stop.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Newest transactions of a client that a read in between looks at.
const READ_BACK: u32 = 5;
/// Longest wait for an answer where nothing is recorded.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes the tables.
pub fn prepare(load: &Load) -> Result<()> {
    ask(load, TABLES).context("the tables cannot be made").map(drop)
}

/// Asks over a connection of its own; the rows of the last statement that returned any.
pub fn ask(load: &Load, sql: &str) -> Result<Vec<SimpleQueryRow>> {
    let stream = connect(load)?;
    runtime()?.block_on(async {
        let client = open(stream).await?;
        let rows = async { Ok(rows(client.simple_query(sql).await?)) };
        let limit = tokio::time::timeout(ANSWER_TIMEOUT, rows).await;
        limit.with_context(|| format!("no answer for {} s to: {sql}", ANSWER_TIMEOUT.as_secs()))?
    })
}

fn rows(messages: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryRow> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

fn runtime() -> Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.context("the runtime of a client cannot be started")
}

/// Makes a client of a connected stream.
async fn open(stream: TcpStream) -> Result<Client> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let mut config = tokio_postgres::Config::new();
    config.user("postgres").dbname("postgres");
    let connected = tokio::time::timeout(ANSWER_TIMEOUT, config.connect_raw(stream, NoTls)).await;
    let (client, connection) = connected
        .context("PostgreSQL does not greet")?
        .map_err(|e| words(&e))?;
    // How it ends each question tells.
    tokio::spawn(async { drop(connection.await) });
    Ok(client)
}

/// All that is known of an error: the crate says the least of it first.
fn words(error: &tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(db) => anyhow::anyhow!("PostgreSQL says: {db}"),
        None => match std::error::Error::source(error) {
            Some(source) => anyhow::anyhow!("{error}: {source}"),
            None => anyhow::anyhow!("{error}"),
        },
    }
}

/// One of several clients that work side by side.
pub(in crate::proof) struct Worker<'a> {
    /// Its number.
    pub id: u16,
    /// What it does.
    pub load: &'a Load,
    /// The clock of all.
    pub clock: Clock,
    /// What all clients tell, by number.
    pub lives: &'a [Arc<Live>],
    /// [`WORK`] and what comes after.
    pub state: &'a AtomicU8,
}

/// Why a client stopped asking.
enum End {
    /// It was told to.
    Told,
    /// The connection is lost.
    Lost(String),
}

impl Worker<'_> {
    /// Commits and reads until it is told to stop.
    pub(crate) fn work(self, stream: TcpStream) -> History {
        let mut operations = Vec::new();
        let end = match runtime() {
            Ok(runtime) => runtime.block_on(self.ask_and_record(stream, &mut operations)),
            Err(e) => End::Lost(format!("{e:#}")),
        };
        let lost = match end {
            End::Told => None,
            End::Lost(why) => Some(why),
        };
        if let Some(why) = &lost {
            let _ = self.lives[usize::from(self.id)].lost.set(why.clone());
        }
        let end = ConnectionEnd {
            connection: self.id,
            lost,
            stray_answers: 0,
        };
        History {
            operations,
            connections: vec![end],
        }
    }

    async fn ask_and_record(&self, stream: TcpStream, operations: &mut Vec<Operation>) -> End {
        let client = match open(stream).await {
            Ok(client) => client,
            Err(e) => return End::Lost(format!("{e:#}")),
        };
        let mut random = ChaCha8Rng::seed_from_u64(self.load.seed.wrapping_add(u64::from(self.id) << 32));
        let mut number = 0;
        while self.state.load(Ordering::Relaxed) == WORK && number < NUMBER_MAX {
            let asked = if random.random_range(0..100) < self.load.reads_percent {
                let whose = random.random_range(0..self.load.connections);
                self.read(&client, whose, operations).await
            } else {
                number += 1;
                self.commit(&client, number, random.random_bool(0.5), operations)
                    .await
            };
            if let Err(end) = asked {
                return end;
            }
        }
        End::Told
    }

    /// Commits a transaction: in one message, or statement by statement, so that a cut falls between.
    async fn commit(
        &self,
        client: &Client,
        number: u32,
        in_one: bool,
        operations: &mut Vec<Operation>,
    ) -> Result<(), End> {
        let [parts, whole] = statements(self.load, self.id, number);
        let messages = match in_one {
            true => vec![format!("BEGIN; {parts}; {whole}; COMMIT")],
            false => vec!["BEGIN".to_owned(), parts, whole, "COMMIT".to_owned()],
        };
        let at = operations.len();
        operations.push(self.operation(number, Request::Set(1)));
        for message in messages {
            self.answered(client.batch_execute(&message)).await?;
        }
        operations[at].answer = Some((self.clock.now(), Answer::Written));
        self.lives[usize::from(self.id)]
            .acknowledged
            .fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Reads what a client has committed last; at least what was acknowledged to it by now must be there.
    async fn read(&self, client: &Client, whose: u16, operations: &mut Vec<Operation>) -> Result<(), End> {
        let acknowledged = self.lives[usize::from(whose)]
            .acknowledged
            .load(Ordering::Relaxed) as u32;
        let from = acknowledged.saturating_sub(READ_BACK) + 1;
        let invoked = self.clock.now();
        let found = self
            .answered(client.simple_query(&query(self.load, whose, from)))
            .await?;
        let answered = self.clock.now();
        let seen = seen(&rows(found)).map_err(End::Lost)?;
        let newest = seen.numbers().last().unwrap_or(0).max(acknowledged);
        for number in from..=newest {
            let answer = seen.answer(self.load, whose, number);
            operations.push(read_operation(
                self.id,
                key(whose, number),
                invoked,
                answered,
                answer,
            ));
        }
        Ok(())
    }

    fn operation(&self, number: u32, request: Request) -> Operation {
        Operation {
            connection: self.id,
            key: key(self.id, number),
            request,
            invoked: self.clock.now(),
            answer: None,
        }
    }

    /// Waits for an answer, as long as nobody says stop and the load's patience lasts.
    async fn answered<T>(
        &self,
        question: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, End> {
        let begin = Instant::now();
        let mut question = pin!(question);
        loop {
            match tokio::time::timeout(LOOK_UP, &mut question).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(e)) => return Err(End::Lost(format!("{:#}", words(&e)))),
                Err(_) if self.state.load(Ordering::Relaxed) == STOP => return Err(End::Told),
                Err(_) if begin.elapsed() > self.load.answer_timeout => {
                    return Err(End::Lost(format!(
                        "no answer for {} s",
                        begin.elapsed().as_secs()
                    )));
                }
                Err(_) => {}
            }
        }
    }
}

/// Reads all that is in the tables once over a new connection, and answers for each transaction that
/// `history` asks for or the tables show whether it is there.
pub(in crate::proof) fn read_all(load: &Load, clock: Clock, history: &History) -> Result<History> {
    let is_write = |op: &&Operation| matches!(op.request, Request::Set(_));
    let asked: Vec<u32> = history
        .operations
        .iter()
        .filter(is_write)
        .map(|op| op.key)
        .collect();
    let mut operations = Vec::new();
    // A database that has lost even its tables is not excused.
    prepare(load)?;
    let stream = connect(load)?;
    runtime()?.block_on(async {
        let client = open(stream).await?;
        for whose in 0..load.connections {
            let invoked = clock.now();
            let text = query(load, whose, 0);
            let found = tokio::time::timeout(load.answer_timeout, client.simple_query(&text)).await;
            let found = found.context("no answer to the final read")?;
            let seen = seen(&rows(found.map_err(|e| words(&e))?)).map_err(anyhow::Error::msg)?;
            let answered = clock.now();
            let mut keys: Vec<u32> = seen.numbers().map(|number| key(whose, number)).collect();
            keys.extend(asked.iter().filter(|key| of_key(**key).0 == whose));
            keys.sort_unstable();
            keys.dedup();
            for of in keys {
                let answer = seen.answer(load, whose, of_key(of).1);
                operations.push(read_operation(FINAL_READER, of, invoked, answered, answer));
            }
        }
        ensure!(
            operations.len() >= asked.len(),
            "the final read has passed over transactions"
        );
        Ok(History {
            operations,
            connections: vec![ConnectionEnd {
                connection: FINAL_READER,
                lost: None,
                stray_answers: 0,
            }],
        })
    })
}

fn read_operation(connection: u16, key: u32, invoked: Nanos, answered: Nanos, answer: Answer) -> Operation {
    Operation {
        connection,
        key,
        request: Request::Get,
        invoked,
        answer: Some((answered, answer)),
    }
}

/// Sorts the rows of a [`query`].
fn seen(rows: &[SimpleQueryRow]) -> Result<Seen, String> {
    let mut seen = Seen::default();
    for row in rows {
        let column = |at: usize| row.try_get(at).ok().flatten();
        let parsed = || {
            Some((
                column(0)?.parse().ok()?,
                column(1)?.parse().ok()?,
                column(2)?.to_owned(),
            ))
        };
        let (number, part, value) = parsed().ok_or_else(|| format!("a row that nobody wrote: {row:?}"))?;
        seen.add(number, part, value);
    }
    Ok(seen)
}
