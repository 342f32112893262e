//! `kemari`: see `kemari --help`.

use std::process::ExitCode;

use clap::Parser;
use kemari::check;
use kemari::cli::{self, Cli, Next};
use kemari::side::{self, StartAs};
use kemari::{limits, log, sandbox};

fn main() -> ExitCode {
    let code = begin(Cli::parse()).unwrap_or_else(|error| {
        log::say_last(&format!("kemari: {error:#}\n"));
        ExitCode::FAILURE
    });
    log::flush();
    code
}

fn begin(cli: Cli) -> anyhow::Result<ExitCode> {
    if cli.action.runs_a_side() {
        // Before there is a second thread.
        sandbox::begin();
    }
    cli::init_log(&cli)?;
    limits::raise();
    match cli::perform(cli.action, check::kvm)? {
        Next::Exit(code) => Ok(code),
        Next::Run {
            start,
            assert_dead,
            adopt_disks,
        } => {
            let start_as = StartAs::Primary {
                assert_dead,
                adopt_disks,
            };
            side::run(start.config, start.host, start_as)
        }
        Next::Secondary {
            start,
            overwrite_disks,
        } => side::run(start.config, start.host, StartAs::Secondary { overwrite_disks }),
        Next::Up(start) => side::run(start.config, start.host, StartAs::Either),
    }
}
