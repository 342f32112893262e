//! `kemari`: see `kemari --help`.

use std::process::ExitCode;

use clap::Parser;
use kemari::check;
use kemari::cli::{self, Cli, Next};
use kemari::side::{self, StartAs};
use kemari::{limits, log, sandbox, steward};

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == steward::ARGUMENT)
    {
        return steward::serve();
    }
    cli::complete();
    let code = begin(Cli::parse()).unwrap_or_else(|error| {
        log::say_last(&format!("kemari: {error:#}\n"));
        ExitCode::FAILURE
    });
    log::flush();
    code
}

fn begin(cli: Cli) -> anyhow::Result<ExitCode> {
    limits::raise();
    let (runs_a_side, words, sandbox) = (cli.action.runs_a_side(), cli.log, cli.sandbox);
    let begin_log = || cli::init_log(words.as_deref(), runs_a_side);
    if !runs_a_side {
        begin_log()?;
    }
    let (start, start_as) = match cli::perform(cli.action, check::kvm)? {
        Next::Exit(code) => return Ok(code),
        Next::Run {
            start,
            assert_dead,
            adopt_disks,
        } => {
            let start_as = StartAs::Primary {
                assert_dead,
                adopt_disks,
            };
            (start, start_as)
        }
        Next::Secondary {
            start,
            overwrite_disks,
        } => (start, StartAs::Secondary { overwrite_disks }),
        Next::Up(start) => (start, StartAs::Either),
    };
    // While there is no second thread: the log's is the first one.
    sandbox::begin(sandbox, &start.config, &start.host)?;
    begin_log()?;
    tracing::info!(
        "Kemari {}: the VM {} on host {}, configuration {:016x}",
        kemari::VERSION_AND_COMMIT,
        start.config.vm,
        start.host,
        start.config.digest()
    );
    sandbox::tell();
    side::run(start.config, start.host, start_as)
}
