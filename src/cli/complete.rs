//! `tandemgw complete LINE`, for the completion of shells: what the last word of a command line can
//! become.
//!
//! Commands and options come from the definition of the command line. A running gateway names its
//! own things (peers, groups, ports, policies) on its control socket, if it answers at once.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory};
use tandemgw_core::config::switch_names;
use tandemgw_core::control::protocol::{PolicyRow, Request, Status};
use tandemgw_core::event::DropReason;
use tandemgw_core::{capture, control};

use super::args::Cli;
use super::client::{Client, parse};

/// A person waits: a gateway that does not answer by then has nothing to add.
const PATIENCE: Duration = Duration::from_millis(300);

/// Files that are offered for one word.
const MOST_FILES: usize = 1000;

pub fn complete(line: &str) -> ExitCode {
    let (before, word) = split(line);
    let socket = socket_of(&before);
    let source = Source::new(socket);
    let mut out = String::new();
    for candidate in candidates(&before, word, &source) {
        out.push_str(&candidate);
        out.push('\n');
    }
    let _ = io::stdout().write_all(out.as_bytes());
    ExitCode::SUCCESS
}

/// The complete words after the program's name, and the one under the cursor.
fn split(line: &str) -> (Vec<&str>, &str) {
    let word = line.rsplit(char::is_whitespace).next().unwrap_or("");
    let before = &line[..line.len() - word.len()];
    (before.split_whitespace().skip(1).collect(), word)
}

fn socket_of<'a>(words: &[&'a str]) -> Option<&'a Path> {
    let at = words.iter().position(|word| *word == "--socket");
    let after = at.and_then(|at| words.get(at + 1).copied());
    let joined = words.iter().find_map(|word| word.strip_prefix("--socket="));
    after.or(joined).map(Path::new)
}

/// Names that only a running gateway knows; asked at most once each.
trait Known {
    fn status(&self) -> Option<&Status>;
    fn policies(&self) -> Vec<String>;
}

struct Source {
    socket: Option<PathBuf>,
    status: std::cell::OnceCell<Option<Status>>,
}

impl Source {
    fn new(socket: Option<&Path>) -> Source {
        Source {
            socket: socket.map(Path::to_owned),
            status: std::cell::OnceCell::new(),
        }
    }
}

impl Known for Source {
    fn status(&self) -> Option<&Status> {
        let ask = || {
            let mut client = Client::connect(self.socket.as_deref(), PATIENCE).ok()?;
            client.status().ok()
        };
        self.status.get_or_init(ask).as_ref()
    }

    fn policies(&self) -> Vec<String> {
        let mut names = Vec::new();
        let Ok(mut client) = Client::connect(self.socket.as_deref(), PATIENCE) else {
            return names;
        };
        let asked = client.ask(&Request::Policies, |line| {
            names.extend(parse::<PolicyRow>(line)?.name);
            Ok(())
        });
        // The words before an error are right.
        let _ = asked;
        names
    }
}

/// The words that `word` can become after `before`.
fn candidates(before: &[&str], word: &str, known: &dyn Known) -> Vec<String> {
    let mut cli = Cli::command();
    cli.build();
    let Place {
        command,
        value_of,
        positional,
    } = place(&cli, before);
    let mut all = match (value_of, word.split_once('=')) {
        (Some(arg), _) => values(arg, command, word, known),
        (None, Some((name, value))) if name.starts_with("--") => {
            let arg = option(command, name);
            let found = arg.map(|arg| values(arg, command, value, known));
            let found = found.unwrap_or_default().into_iter();
            found.map(|value| format!("{name}={value}")).collect()
        }
        (None, _) if word.starts_with('-') => options(command),
        (None, _) => {
            let mut all: Vec<String> = visible(command)
                .map(|it| it.get_name().to_owned())
                .collect();
            let positionals: Vec<&Arg> = command.get_positionals().collect();
            let arg = positionals.get(positional).or(positionals.last());
            let arg = arg.filter(|arg| positional < positionals.len() || is_repeated(arg));
            if let Some(arg) = arg {
                all.extend(values(arg, command, word, known));
            }
            all
        }
    };
    all.retain(|candidate| candidate.starts_with(word));
    all.sort();
    all.dedup();
    all
}

/// Where the cursor is.
struct Place<'a> {
    command: &'a Command,
    /// The option whose value comes next.
    value_of: Option<&'a Arg>,
    /// How many positional arguments came before.
    positional: usize,
}

fn place<'a>(cli: &'a Command, before: &[&str]) -> Place<'a> {
    let mut place = Place {
        command: cli,
        value_of: None,
        positional: 0,
    };
    for word in before {
        if place.value_of.take().is_some() {
            continue;
        }
        if word.starts_with('-') && *word != "-" {
            let arg = option(place.command, word);
            place.value_of = arg.filter(|arg| arg.get_action().takes_values());
        } else if let Some(sub) = place.command.find_subcommand(word) {
            (place.command, place.positional) = (sub, 0);
        } else {
            place.positional += 1;
        }
    }
    place
}

fn option<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let mut options = command.get_arguments();
    options.find(|arg| {
        let long = arg
            .get_long()
            .is_some_and(|long| word == format!("--{long}"));
        let short = arg
            .get_short()
            .is_some_and(|short| word == format!("-{short}"));
        long || short
    })
}

fn options(command: &Command) -> Vec<String> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let longs = shown.filter_map(Arg::get_long);
    longs.map(|long| format!("--{long}")).collect()
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    let commands = command.get_subcommands();
    commands.filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn is_repeated(arg: &Arg) -> bool {
    arg.get_num_args()
        .is_some_and(|count| count.max_values() > 1)
}

/// The values of an argument: what kind it is, the name of its value says.
fn values(arg: &Arg, command: &Command, word: &str, known: &dyn Known) -> Vec<String> {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        return possible.iter().map(|it| it.get_name().to_owned()).collect();
    }
    let name = arg.get_value_names().and_then(|names| names.first());
    match name.map(|name| name.as_str()) {
        Some("FILE" | "PATH" | "PROGRAM") => files(word),
        Some("GROUP") => groups(known),
        Some("NODE") => peers(known),
        Some("PORT") => ports(known),
        Some("PROTO") => ["tcp", "udp", "icmp"].map(str::to_owned).to_vec(),
        Some("KEY") => switch_names().map(str::to_owned).collect(),
        _ if arg.get_id() == "filter" => filters(command, word, known),
        _ => Vec::new(),
    }
}

fn groups(known: &dyn Known) -> Vec<String> {
    let groups = known.status().into_iter().flat_map(|status| &status.groups);
    groups.map(|group| group.name.clone()).collect()
}

fn peers(known: &dyn Known) -> Vec<String> {
    let peers = known.status().into_iter().flat_map(|status| &status.peers);
    peers.map(|peer| peer.name.clone()).collect()
}

fn ports(known: &dyn Known) -> Vec<String> {
    let ports = known.status().into_iter().flat_map(|status| &status.ports);
    ports.map(|port| port.name.clone()).collect()
}

/// Words of a filter: its keys, then the values that are known.
fn filters(command: &Command, word: &str, known: &dyn Known) -> Vec<String> {
    let keys = match command.get_name() {
        "capture" => &capture::FILTER_KEYS[..],
        _ => &control::FILTER_KEYS[..],
    };
    let Some((key, _)) = word.split_once('=') else {
        return keys.iter().map(|key| format!("{key}=")).collect();
    };
    let words = |words: &[&str]| words.iter().map(|it| (*it).to_owned()).collect();
    let values: Vec<String> = match key {
        "proto" => words(&["tcp", "udp", "icmp"]),
        "in" | "out" => ports(known),
        "group" => groups(known),
        "policy" => known.policies(),
        "synced" => words(&["yes", "no"]),
        "verdict" => words(&["forward", "drop"]),
        "reason" => DropReason::ALL
            .iter()
            .map(|it| it.name().to_owned())
            .collect(),
        _ => Vec::new(),
    };
    values
        .into_iter()
        .map(|value| format!("{key}={value}"))
        .collect()
}

/// Files and folders that begin like `word`.
fn files(word: &str) -> Vec<String> {
    let (folder, _) = word
        .rsplit_once('/')
        .map_or(("", word), |(folder, name)| (folder, name));
    let prefix = match word.contains('/') {
        true => format!("{folder}/"),
        false => String::new(),
    };
    let path = match prefix.as_str() {
        "" => Path::new("."),
        prefix => Path::new(prefix),
    };
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let is_folder = entry.path().is_dir();
        Some(format!(
            "{prefix}{name}{}",
            if is_folder { "/" } else { "" }
        ))
    });
    named.take(MOST_FILES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    struct Fake(Status);

    impl Known for Fake {
        fn status(&self) -> Option<&Status> {
            Some(&self.0)
        }

        fn policies(&self) -> Vec<String> {
            vec!["lan-out".to_owned()]
        }
    }

    fn completed(line: &str) -> Vec<String> {
        let (before, word) = split(line);
        candidates(&before, word, &Fake(sample::status()))
    }

    #[test]
    fn a_word_becomes_what_can_stand_there() {
        for (line, wanted) in [
            ("tandemgw sta", vec!["status"]),
            ("tandemgw compl", vec![]),
            ("tandemgw status --js", vec!["--json"]),
            ("tandemgw failover --to ", vec!["gw-b"]),
            ("tandemgw failover --group d", vec!["default"]),
            ("tandemgw failover --group=d", vec!["--group=default"]),
            (
                "tandemgw explain tcp 10.0.0.1:1 10.0.0.2:2 --in ",
                vec!["lan", "wan"],
            ),
            ("tandemgw explain t", vec!["tcp"]),
            ("tandemgw ha set prio", vec!["priority"]),
            ("tandemgw sessions pol", vec!["policy="]),
            (
                "tandemgw sessions proto=tcp policy=",
                vec!["policy=lan-out"],
            ),
            ("tandemgw sessions clear in=w", vec!["in=wan"]),
            ("tandemgw sessions --sort e", vec!["expires"]),
            (
                "tandemgw capture --write x reason=no-pol",
                vec!["reason=no-policy"],
            ),
            ("tandemgw --socket /run/x.sock conf", vec!["config"]),
            ("tandemgw config ", vec!["history", "rollback", "show"]),
            ("tandemgw config rollback ", vec![]),
        ] {
            assert_eq!(completed(line), wanted, "{line}");
        }
        let files = completed("tandemgw check --config src/cli/comp");
        assert_eq!(files, ["src/cli/complete.rs"]);
        assert!(completed("tandemgw ").contains(&"failover".to_owned()));
    }
}
