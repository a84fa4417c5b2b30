//! The commands. Machine output goes to stdout, everything for people to stderr or a terminal.

mod check;
mod key;
mod query;
mod run;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Exit code for a bad config or an unfit machine.
const EXIT_CONFIG: u8 = 2;
/// Exit code when no gateway runs.
const EXIT_NOT_RUNNING: u8 = 3;

/// A stateful gateway whose sessions survive the death of the machine that carries them.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// Control socket of the gateway [default: the only one in /run/tandemgw]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway in the foreground, logging to stderr
    Run {
        /// The config file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a config file, and with --system the machine too
    Check {
        /// The config file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Check the machine as well: interfaces, rights, kernel settings
        #[arg(long)]
        system: bool,
    },
    /// Make a node key and print its public key
    Keygen {
        /// Where to put it; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the public key of a node key
    Pubkey {
        /// The key file
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Hand over to another unit; returns when done
    Failover {
        /// Only this group
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
        /// The node that is to take over [default: the best one]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Show roles, peers, ports, sessions and counters
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List sessions
    Sessions {
        /// As JSON, one object a line
        #[arg(long)]
        json: bool,
        /// At most N sessions
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// proto=tcp src=10.0.0.0/8 dst=… port=… state=… policy=… in=… out=… synced=no
        filter: Vec<String>,
    },
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let socket = cli.global.socket.as_deref();
    match cli.command {
        Command::Run { config } => run::run(&config),
        Command::Check { config, system } => check::check(&config, system),
        Command::Keygen { out } => key::generate(&out),
        Command::Pubkey { key } => key::show(&key),
        Command::Failover { group, to } => query::failover(socket, group, to),
        Command::Status { json } => query::show_status(socket, json),
        Command::Sessions {
            json,
            limit,
            filter,
        } => query::sessions(socket, json, limit, filter),
    }
}

/// Prints a sentence for people and gives the exit code.
fn fail(code: u8, sentence: impl std::fmt::Display) -> ExitCode {
    eprintln!("tandemgw: {sentence}");
    ExitCode::from(code)
}
