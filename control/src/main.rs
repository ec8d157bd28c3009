//! `jump-control`.

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a private CA and certificates for the parts
    Pki(jump_control::pki::PkiArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Pki(args) => jump_control::pki::run(&args),
    }
}
