//! The error for a wrong command line: one line, with the nearest valid word.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use tandemgw_core::config::did_you_mean;

use super::args::Cli;
use super::{EXIT_USAGE, fail};

/// Parses the command line. If it is wrong or asks for help, prints that and returns the exit code.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // As if it had been read: `--help | head` is not a failure.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(EXIT_USAGE)
        }
        _ => fail(EXIT_USAGE, sentence(&error).replace('\n', " ")),
    })
}

fn sentence(error: &clap::Error) -> String {
    let get = |kind| error.get(kind).map(words);
    let (help, hint) = (see_help(error), suggestion(error));
    let arg = get(ContextKind::InvalidArg).unwrap_or_default();
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let command = get(ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("unknown command `{command}`{hint}; {help}")
        }
        ErrorKind::UnknownArgument if arg.starts_with('-') => {
            format!("unknown option `{arg}`{hint}; {help}")
        }
        ErrorKind::UnknownArgument => format!("unexpected word `{arg}`{hint}; {help}"),
        ErrorKind::MissingRequiredArgument => format!("missing: {arg}; {help}"),
        ErrorKind::InvalidValue if get(ContextKind::InvalidValue).is_some_and(|v| v.is_empty()) => {
            format!("{arg} needs a value; {help}")
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            format!("{first}; {help}")
        }
    }
}

/// `; did you mean …?`, or nothing.
fn suggestion(error: &clap::Error) -> String {
    if let Some(ContextValue::String(wrong)) = error.get(ContextKind::InvalidSubcommand) {
        let cli = Cli::command();
        let names: Vec<&str> = cli.get_subcommands().map(clap::Command::get_name).collect();
        if let Some(hint) = did_you_mean(wrong, names.into_iter()) {
            return format!("; {hint}");
        }
    }
    let suggested = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg];
    let suggested = suggested.into_iter().find_map(|kind| error.get(kind));
    suggested.map_or_else(String::new, |word| {
        format!("; did you mean `{}`?", first(word))
    })
}

/// Names the command whose help to read.
fn see_help(error: &clap::Error) -> String {
    let usage = error.get(ContextKind::Usage).map(ToString::to_string);
    let usage = usage.unwrap_or_default();
    let cli = Cli::command();
    let mut known = usage.split_whitespace();
    match known.find(|word| cli.find_subcommand(word).is_some()) {
        Some(command) => format!("see tandemgw {command} --help"),
        None => "see tandemgw --help".to_owned(),
    }
}

fn words(value: &ContextValue) -> String {
    match value {
        ContextValue::Strings(all) => all.join(", "),
        other => other.to_string(),
    }
}

fn first(value: &ContextValue) -> String {
    match value {
        ContextValue::Strings(all) => all.first().cloned().unwrap_or_default(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_command_line_is_answered_with_one_line() {
        for (line, said) in [
            (
                "stauts",
                "unknown command `stauts`; did you mean `status`?; see",
            ),
            ("frobnicate", "unknown command `frobnicate`; see"),
            (
                "status --jsno",
                "unknown option `--jsno`; did you mean `--json`?; see",
            ),
            ("status now", "unexpected word `now`; see"),
            ("run", "missing: --config <FILE>; see tandemgw run --help"),
            ("run --config", "--config <FILE> needs a value; see"),
            (
                "sessions --limit x",
                "invalid value 'x' for '--limit <N>': invalid digit",
            ),
            ("sessions clear", "missing: <FILTER>...; see"),
            (
                "sessions clear --all proto=tcp",
                "the argument '--all' cannot be used with",
            ),
            (
                "explain tcp 10.0.0.1:1 10.0.0.2:2",
                "missing: --in <PORT>; see",
            ),
        ] {
            let words = ["tandemgw"].into_iter().chain(line.split(' '));
            let error = Cli::try_parse_from(words).err().expect(line);
            let text = sentence(&error);
            assert!(text.starts_with(said), "{line}: {text}");
            assert!(!text.contains('\n'), "{line}: {text}");
        }
    }
}
