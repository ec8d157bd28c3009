//! `jumpctl`, the operators' CLI.

use std::process::ExitCode;

use clap::Parser as _;
use jump_client::failure::{Exit, Failure, exit_with};
use jump_client::operator::{Arguments, run};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::because(Exit::Failed, "cannot start the runtime", &error))
        .and_then(|runtime| runtime.block_on(run(arguments)));
    exit_with("jumpctl", result)
}
