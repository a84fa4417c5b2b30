//! The commands. Machine output goes to stdout, everything for people to stderr or a terminal.

pub mod args;
mod capture;
mod check;
mod check_plugin;
mod client;
mod complete;
mod config_file;
mod config_history;
mod config_show;
mod doctor;
mod events;
mod explain;
mod ha;
mod ipfix;
mod key;
mod maintenance;
mod paint;
mod pcapng;
mod policies;
mod push;
mod query;
mod reload;
mod run;
#[cfg(test)]
mod sample;
mod sessions;
mod status;
mod table;
mod talkers;
mod top;
mod usage;
mod web;
mod witness;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use tandemgw_core::control::protocol::{ExplainRequest, Request};

use args::{Command, ConfigCommand, HaCommand, SessionsCommand};

/// Exit code for a bad config or an unfit machine.
const EXIT_CONFIG: u8 = 2;
/// Exit code for a wrong command line.
const EXIT_USAGE: u8 = 2;
/// Exit code if no gateway is running.
const EXIT_NOT_RUNNING: u8 = 3;

pub fn main() -> ExitCode {
    let cli = match usage::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let socket = cli.global.socket.as_deref();
    match cli.command {
        Command::Run { config, node } => run::run(&config, node),
        Command::Check {
            config,
            node,
            system,
        } => check::check(&config, node, system),
        Command::Doctor { config, node, json } => doctor::doctor(&config, node, json),
        Command::Keygen { out } => key::generate(&out),
        Command::Pubkey { key } => key::show(&key),
        Command::Status { check: true, .. } => check_plugin::check(socket),
        Command::Status { json, .. } => query::show_status(socket, json),
        sessions @ Command::Sessions { .. } => run_sessions(socket, sessions),
        Command::Policies { json } => policies::show(socket, json),
        Command::Events {
            follow,
            exec,
            after,
            json,
        } => events::events(socket, (follow, exec.as_deref()), after, json),
        Command::Top => top::top(socket),
        page @ Command::Web { .. } => web::web(socket, page),
        Command::WebPassword { out, stdin } => web::make_password(&out, stdin),
        Command::Witness => witness::witness(socket),
        Command::Ipfix { collector, domain } => ipfix::ipfix(socket, &collector, domain),
        Command::Explain {
            protocol,
            source,
            destination,
            in_port,
            json,
        } => {
            let request = ExplainRequest {
                protocol,
                source,
                destination,
                in_port,
            };
            explain::explain(socket, json, request)
        }
        Command::Failover {
            group,
            to,
            force,
            json,
        } => query::failover(socket, json, Request::Failover { group, to, force }),
        Command::Drain { unit, json } => maintenance::drain(socket, json, &unit),
        Command::Maintenance { state, time, json } => {
            maintenance::set(socket, json, state, time.as_deref())
        }
        Command::Ha { command } => run_ha(socket, command),
        Command::Config { command } => run_config(socket, command),
        push @ Command::Push { .. } => push::run(socket, push),
        Command::Reload { json } => reload::reload(socket, json),
        Command::Complete { line } => complete::complete(&line),
        Command::Capture {
            write,
            count,
            snapshot_length,
            filter,
        } => capture::capture(socket, &write, count, snapshot_length, filter),
    }
}

/// The forms of `ha`.
fn run_ha(socket: Option<&Path>, command: HaCommand) -> ExitCode {
    match command {
        HaCommand::Get { key, json } => ha::get(socket, json, key),
        HaCommand::Set {
            key,
            value,
            save,
            json,
        } => ha::set(socket, json, key, value, save),
    }
}

/// The forms of `config`.
fn run_config(socket: Option<&Path>, command: ConfigCommand) -> ExitCode {
    match command {
        ConfigCommand::Show {
            version: Some(version),
            json,
            ..
        } => config_history::show(socket, version, json),
        ConfigCommand::Show { full, json, .. } => config_show::show(socket, full, json),
        ConfigCommand::History { json } => config_history::list(socket, json),
        ConfigCommand::Rollback { version, json } => {
            config_history::rollback(socket, version, json)
        }
    }
}

/// The forms of `sessions`.
fn run_sessions(socket: Option<&Path>, command: Command) -> ExitCode {
    match command {
        Command::Sessions {
            command: Some(SessionsCommand::Clear { all, json, filter }),
            ..
        } => sessions::clear(socket, json, all, filter),
        Command::Sessions {
            json,
            count: true,
            filter,
            ..
        } => sessions::count(socket, json, filter),
        Command::Sessions {
            json,
            top: Some(top),
            by: Some(by),
            filter,
            ..
        } => talkers::show(socket, json, top, by, filter),
        Command::Sessions {
            json,
            limit,
            sort,
            filter,
            ..
        } => sessions::list(socket, json, limit, sort, filter),
        _ => fail(EXIT_USAGE, "`sessions` is expected"),
    }
}

/// Prints a sentence and returns the exit code.
fn fail(code: u8, sentence: impl std::fmt::Display) -> ExitCode {
    say(format_args!("tandemgw: {sentence}\n"));
    ExitCode::from(code)
}

/// Writes to stderr. If nobody reads it, the program goes on; `eprintln` would panic.
fn say(text: impl std::fmt::Display) {
    let _ = write!(std::io::stderr(), "{text}");
}
