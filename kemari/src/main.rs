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
        Next::Run { start, assert_dead } => {
            side::run(start.config, start.host, StartAs::Primary { assert_dead })
        }
        Next::Secondary(start) => side::run(start.config, start.host, StartAs::Secondary),
    }
}
