//! The control socket: a client's line, and what its answer looks like to a client.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use kemari::control::{
    Answer, Command, Control, Direction, LINE_BYTES_MAX, Request, Status, TapLine, TapRequest, TapSink,
};
use kemari::fuzzing;

/// Takes every command, and repeats what it was told.
struct Echo;

impl Control for Echo {
    fn status(&self) -> Status {
        unreachable!("nobody asks here")
    }

    fn tap(&self, request: &TapRequest, sink: &mut TapSink<'_>) -> Result<(), String> {
        let skipped = TapLine::Skipped {
            events: request.seconds.into(),
        };
        match sink.send(&skipped) {
            true => Ok(()),
            false => Err(format!("{:?}", request.channel)),
        }
    }

    fn command(&self, command: Command) -> Result<String, String> {
        Ok(format!("{command:?}"))
    }
}

pub(crate) fn run(bytes: &[u8]) {
    // Only a side has a status.
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if let Ok(Request::Status) = serde_json::from_slice(line) {
        return;
    }
    // A socket's buffer takes more than a line: the client need not be another thread.
    let bytes = &bytes[..bytes.len().min(LINE_BYTES_MAX + 1)];
    let (mut client, server) = UnixStream::pair().expect("two descriptors");
    client.write_all(bytes).expect("a line fits into the buffer");
    client.shutdown(Shutdown::Write).expect("the server is there");
    fuzzing::serve_control(&server, &Echo);
    drop(server);
    let mut text = String::new();
    // One who is refused without being read to the end is told so by a reset.
    if client.read_to_string(&mut text).is_ok() {
        for line in text.lines() {
            let answer = serde_json::from_str::<Answer>(line).expect("an answer is one");
            let _ = format!("{answer:?}");
        }
    }
    // What a client takes from whoever listens there.
    if let Ok(Answer::Tap(TapLine::Statistics(statistics))) = serde_json::from_slice(bytes) {
        let _ = statistics.to_string();
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let tap = Request::Tap(TapRequest {
        channel: Some("net0.tx".into()),
        direction: Direction::Both,
        seconds: 5,
        events: true,
    });
    let commands = [
        Command::Stop,
        Command::Protect,
        Command::Switchover,
        Command::Enlarge {
            disk: "blk0".into(),
            bytes: 1 << 30,
        },
        Command::Drill { seconds: 3 },
        Command::Pace(Default::default()),
    ];
    let requests = [Request::Status, tap]
        .into_iter()
        .chain(commands.map(Request::Command));
    let mut seeds: Vec<Vec<u8>> = requests
        .map(|request| serde_json::to_vec(&request).expect("plain data"))
        .collect();
    seeds.iter_mut().for_each(|line| line.push(b'\n'));
    let answer = Answer::Done("done".into());
    seeds.push(serde_json::to_vec(&answer).expect("plain data"));
    seeds
}
