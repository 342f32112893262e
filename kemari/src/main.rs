//! `kemari`: see `kemari --help`.

use std::process::ExitCode;

use clap::Parser;
use kemari::check;
use kemari::cli::{self, Cli, Next};
use kemari::side::{self, StartAs};

fn main() -> ExitCode {
    match begin(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kemari: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin(cli: Cli) -> anyhow::Result<ExitCode> {
    cli::init_log(&cli)?;
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
