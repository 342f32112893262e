//! Hooks that are told, hang, flood and fail.

use super::*;

fn alarm(on: Occasion) -> Alarm {
    Alarm {
        on,
        vm: "db".into(),
        host: "a".into(),
        role: "primary".into(),
        term: 7,
        state: "not ready".into(),
        why: vec!["no \"TAP\"\n".into()],
        time_ms: 1_000,
        missed: 0,
    }
}

/// A hook that runs this script, whose first argument is a file of the test.
fn hooks(on: &[Occasion], script: &str, timeout_ms: u32) -> (Hooks, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("told");
    std::fs::write(&file, "").unwrap();
    let command = ["sh", "-c", script, "hook", file.to_str().unwrap()].map(str::to_owned);
    let hook = Hook {
        on: on.to_vec(),
        command: command.to_vec(),
        timeout_ms,
    };
    let hooks = Hooks {
        vm: "db".into(),
        host: "a".into(),
        hooks: vec![hook],
    };
    (hooks, directory)
}

/// What was written into the file, a JSON object a line.
fn told(directory: &tempfile::TempDir) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(directory.path().join("told")).unwrap();
    // Of the last one a part may be there.
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    text[..whole]
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn wait(runner: &Runner, limit: Duration) -> Vec<String> {
    let until = Instant::now() + limit;
    let mut said = Vec::new();
    loop {
        let now = runner.told();
        said.extend(now.said);
        if !now.is_busy {
            return said;
        }
        assert!(Instant::now() < until, "it is still busy");
        thread::sleep(Duration::from_millis(10));
    }
}

const LIMIT: Duration = Duration::from_secs(20);

/// Waits until there is something.
fn await_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process of that number runs; one that waits for its parent does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|fields| fields.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[test]
fn a_hook_reads_what_it_wants_to_know() {
    let (hooks, directory) = hooks(&[Occasion::NotReady], "cat >> $1", 10_000);
    let mut runner = Runner::start(Some(&hooks)).unwrap();
    runner.raise(&alarm(Occasion::Protected));
    runner.raise(&alarm(Occasion::NotReady));
    assert!(wait(&runner, LIMIT).is_empty());
    let told = told(&directory);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["on"], "not_ready");
    assert_eq!((&told[0]["vm"], &told[0]["term"]), (&"db".into(), &7.into()));
    assert_eq!(
        (&told[0]["why"][0], &told[0]["missed"]),
        (&"no \"TAP\"\n".into(), &0.into())
    );
}

#[test]
fn a_hook_that_hangs_holds_up_nobody_and_is_killed_with_all_that_it_began() {
    let timeout_ms = 2_000;
    let script = "sleep 600 & echo $! >> $1; sleep 600";
    let (hooks, directory) = hooks(&[Occasion::Takeover], script, timeout_ms);
    let mut runner = Runner::start(Some(&hooks)).unwrap();
    let begun = Instant::now();
    // One is told, as many as may wait wait, and the rest is missed.
    for _ in 0..100 {
        runner.raise(&alarm(Occasion::Takeover));
    }
    let raised = begun.elapsed();
    assert!(raised < Duration::from_millis(timeout_ms.into()), "{raised:?}");
    let said = await_some("it goes on", || runner.told().said.pop());
    assert!(said.contains("did not end within 2000 ms"), "{said}");
    let began = await_some("it began nothing", || {
        Some(told(&directory).first()?.as_u64().unwrap() as u32)
    });
    await_some("what it began goes on", || (!runs(began)).then_some(()));
    // Once the third is told the second has hung, too: the same is not said again.
    await_some("it is told no more", || {
        (told(&directory).len() > 2).then_some(())
    });
    assert_eq!(runner.told().said, [""; 0]);
}

#[test]
fn a_flood_is_bounded_and_counted() {
    let (hooks, directory) = hooks(&[Occasion::InDoubt], "cat >> $1; yes | head -c 3000000", 10_000);
    let mut runner = Runner::start(Some(&hooks)).unwrap();
    let begun = Instant::now();
    for _ in 0..100 {
        runner.raise(&alarm(Occasion::InDoubt));
    }
    // The next but one is of those that wait now.
    let number = told(&directory).len() + 2;
    let told = await_some("it is not told", || {
        Some(told(&directory)).filter(|told| told.len() >= number)
    });
    // One a second.
    let rests = REST * (told.len() as u32 - 1);
    assert!(
        begun.elapsed() >= rests,
        "{} in {:?}",
        told.len(),
        begun.elapsed()
    );
    let missed: u64 = told.iter().map(|told| told["missed"].as_u64().unwrap()).sum();
    assert!(missed >= (100 - told.len() - WAITING_MAX) as u64, "{missed}");
}

#[test]
fn a_hook_that_fails_or_is_none_is_said() {
    let (mut hooks, _directory) = hooks(&[Occasion::Stopped], "echo no mail >&2; exit 3", 10_000);
    hooks.hooks.push(Hook {
        command: vec!["/nonexistent/hook".into()],
        ..hooks.hooks[0].clone()
    });
    let mut runner = Runner::start(Some(&hooks)).unwrap();
    runner.raise(&alarm(Occasion::Stopped));
    let mut said = wait(&runner, LIMIT);
    said.sort();
    assert!(
        said[0].contains("the hook `/nonexistent/hook` cannot be started"),
        "{said:?}"
    );
    assert!(said[1].contains("exit status: 3; it says: no mail"), "{said:?}");
    // The same is not said again.
    runner.raise(&alarm(Occasion::Stopped));
    assert_eq!(wait(&runner, LIMIT), [""; 0]);
}

#[test]
fn of_a_side_that_ended_without_a_word_the_steward_tells() {
    let (hooks, directory) = hooks(&[Occasion::Stopped], "cat >> $1", 10_000);
    // A start that failed is no end.
    Runner::start(Some(&hooks)).unwrap().finish();
    assert!(told(&directory).is_empty());
    let mut runner = Runner::start(Some(&hooks)).unwrap();
    runner.note_life();
    runner.finish();
    let silent = told(&directory);
    assert_eq!(silent.len(), 1, "{silent:?}");
    assert!(
        silent[0]["why"][0].as_str().unwrap().contains("without a word"),
        "{silent:?}"
    );
    // One that has said so is not told of twice.
    let mut runner = Runner::start(Some(&hooks)).unwrap();
    runner.raise(&alarm(Occasion::Stopped));
    await_some("it is not told", || (told(&directory).len() == 2).then_some(()));
    runner.finish();
    assert_eq!(told(&directory).len(), 2);
}

#[test]
fn for_one_alarm_more_the_oldest_goes_and_the_next_says_so() {
    let mut waiting = Waiting::default();
    for time_ms in 0..100 {
        let alarm = alarm(Occasion::InDoubt);
        waiting.push(Alarm { time_ms, ..alarm });
    }
    let first = waiting.pop().unwrap();
    let gone = 100 - WAITING_MAX as u64;
    assert_eq!((first.time_ms, first.missed), (gone, gone));
    assert_eq!(waiting.first().unwrap().missed, 0);
    waiting.keep_last(1);
    let last = waiting.pop().unwrap();
    assert_eq!((last.time_ms, last.missed), (99, WAITING_MAX as u64 - 2));
    assert_eq!(waiting.pop(), None);
    // Whatever a side says of it.
    for _ in 0..=WAITING_MAX {
        let missed = u64::MAX;
        let alarm = alarm(Occasion::InDoubt);
        waiting.push(Alarm { missed, ..alarm });
    }
    assert_eq!(waiting.pop().unwrap().missed, u64::MAX);
}

#[test]
fn a_hook_that_is_busy_at_the_end_is_told_of_it_next() {
    let on = [Occasion::InDoubt, Occasion::Stopped];
    let (hooks, directory) = hooks(&on, "cat >> $1; exec sleep 30", 1_000);
    let mut runner = Runner::start(Some(&hooks)).unwrap();
    runner.raise(&alarm(Occasion::InDoubt));
    await_some("it is not told", || told(&directory).first().cloned());
    for _ in 0..3 {
        runner.raise(&alarm(Occasion::InDoubt));
    }
    runner.finish();
    let told = told(&directory);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(
        (&told[1]["on"], &told[1]["missed"]),
        (&"stopped".into(), &3.into())
    );
}
