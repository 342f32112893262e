//! `kemari`: see `kemari --help`.

use std::process::ExitCode;

use clap::Parser;
use kemari::cli::{self, Cli, Next};

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
    match cli::perform(cli.action, |_| Vec::new())? {
        Next::Exit(code) => Ok(code),
        Next::Run { start, .. } | Next::Secondary(start) => {
            anyhow::bail!(
                "this build holds no machine, so it cannot run the VM `{}`",
                start.config.vm
            )
        }
    }
}
