//! Makes the man pages from the definition of the command line, in `OUT_DIR`, and puts the shell
//! completion beside them; `scripts/package` takes them from there.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

#[allow(dead_code, reason = "only the definition is of use here")]
#[path = "src/cli/args.rs"]
mod args;

/// Sections that the definition of the command line lacks.
const SECTIONS: &str = r#".SH "EXIT STATUS"
.TP
0
Done; of \fBrun\fR: ended by a signal, and everything removed that was added to the kernel.
.TP
1
It failed, or was refused.
.TP
2
The command line, the config or the machine is unfit: the message says why.
.TP
3
No gateway runs.
.SH FILES
.TP
/etc/tandemgw/\fINAME\fR.toml
The config of the service tandemgw@\fINAME\fR, see \fBtandemgw.toml\fR(5).
.TP
/run/tandemgw/\fINODE\fR.sock
The control socket of a running gateway.
.TP
/usr/share/doc/tandemgw/examples
Configs to start with.
"#;

/// Of `tandemgw` and `tandemgw run`.
const RUN_SECTIONS: &str = r#".SH SIGNALS
.TP
SIGTERM, SIGINT
Hands over to a ready peer if there is one, removes what was added to the kernel, and ends; a second signal ends
it at once.
.TP
SIGHUP
Rereads the config.
.SH ENVIRONMENT
.TP
RUST_LOG
What is logged: \fBerror\fR, \fBwarn\fR, \fBinfo\fR (the default), \fBdebug\fR, \fBtrace\fR, or pairs as
\fBwarn,tandemgw::session=info\fR.
.TP
NOTIFY_SOCKET, WATCHDOG_USEC, JOURNAL_STREAM
Set by \fBsystemd\fR(1).
"#;

/// A command's purpose, and examples of it.
type Examples = (&'static str, &'static [(&'static str, &'static str)]);

const EXAMPLES: &[Examples] = &[
    (
        "tandemgw",
        &[
            ("Is all well?", "tandemgw status"),
            (
                "What would happen to a packet?",
                "tandemgw explain tcp 10.0.0.5:4000 192.0.2.1:443 --in lan",
            ),
            ("Hand over before maintenance.", "tandemgw failover"),
        ],
    ),
    (
        "tandemgw-check",
        &[(
            "Check the config and the machine before a start.",
            "tandemgw check --system --config /etc/tandemgw/gw-a.toml",
        )],
    ),
    (
        "tandemgw-status",
        &[
            ("A service of Icinga or Nagios.", "tandemgw status --check"),
            (
                "Which peers are not in sync?",
                "tandemgw status --json | jq -r '.peers[] | select(.in_sync | not) | .name'",
            ),
        ],
    ),
    (
        "tandemgw-sessions",
        &[
            ("Who talks most?", "tandemgw sessions --top 10 --by source"),
            (
                "The largest transfers to one server.",
                "tandemgw sessions --sort bytes --limit 20 dst=192.0.2.1",
            ),
            (
                "How many sessions wait for an answer?",
                "tandemgw sessions --count state=unreplied",
            ),
        ],
    ),
    (
        "tandemgw-sessions-clear",
        &[(
            "End all connections of a host.",
            "tandemgw sessions clear src=10.0.0.5",
        )],
    ),
    (
        "tandemgw-policies",
        &[(
            "Which policies were never used?",
            "tandemgw policies --json | jq -r 'select(.hits == 0) | .name'",
        )],
    ),
    (
        "tandemgw-explain",
        &[
            (
                "Would a host reach a web server?",
                "tandemgw explain tcp 10.0.0.5:4000 192.0.2.1:443 --in lan",
            ),
            (
                "And a ping?",
                "tandemgw explain icmp fd00::5 2001:db8::1 --in lan",
            ),
        ],
    ),
    (
        "tandemgw-failover",
        &[
            (
                "Hand all groups over to the best unit.",
                "tandemgw failover",
            ),
            (
                "One group, to a unit that has a port down.",
                "tandemgw failover --group wan --to gw-b --force",
            ),
        ],
    ),
    (
        "tandemgw-ha-get",
        &[("The priority in force.", "tandemgw ha get priority")],
    ),
    (
        "tandemgw-ha-set",
        &[(
            "Replicate UDP too, from now on and after a restart.",
            "tandemgw ha set session-pickup-connectionless true --save",
        )],
    ),
    (
        "tandemgw-config-show",
        &[
            (
                "What was changed by ha set, or is not in force yet?",
                "tandemgw config show --json | jq .differs",
            ),
            (
                "Keep a copy of what is in force.",
                "tandemgw config show > gw-a.toml",
            ),
        ],
    ),
    (
        "tandemgw-push",
        &[
            (
                "Put a config in force on all units, for a minute unless it is confirmed.",
                "tandemgw push gateways.toml --confirm 60s",
            ),
            ("Keep it.", "tandemgw push --accept"),
            ("Which config has each unit?", "tandemgw push --status"),
        ],
    ),
    (
        "tandemgw-config-history",
        &[(
            "What came in force, when, and by whom?",
            "tandemgw config history",
        )],
    ),
    (
        "tandemgw-config-rollback",
        &[
            (
                "What would version 3 change?",
                "tandemgw config show --version 3",
            ),
            ("Return to it.", "tandemgw config rollback 3"),
        ],
    ),
    (
        "tandemgw-events",
        &[
            ("What happens, as it happens?", "tandemgw events --follow"),
            (
                "Only what somebody should look at.",
                "tandemgw events --follow --json | jq -c 'select(.severity != \"info\")'",
            ),
            (
                "A mail for each; see the examples for webhooks and BGP.",
                "tandemgw events --exec /usr/share/doc/tandemgw/examples/events/mail",
            ),
        ],
    ),
    (
        "tandemgw-maintenance",
        &[(
            "Work on this unit for two hours at most.",
            "tandemgw maintenance on --for 2h",
        )],
    ),
    (
        "tandemgw-web",
        &[(
            "From elsewhere.",
            "ssh -L 10748:127.0.0.1:10748 gw-a tandemgw web",
        )],
    ),
    (
        "tandemgw-web-password",
        &[(
            "For the gateway's user, as the page needs it.",
            "sudo -u tandemgw tandemgw web-password --out /var/lib/tandemgw/web-password",
        )],
    ),
    (
        "tandemgw-witness",
        &[
            (
                "As root or the user of the gateway; the service tandemgw-witness@gw-a does this.",
                "tandemgw --socket /run/tandemgw/gw-a.sock witness",
            ),
            (
                "Does it answer, and since when?",
                "tandemgw status --json | jq .witness",
            ),
        ],
    ),
    (
        "tandemgw-ipfix",
        &[(
            "To nfcapd of nfdump on another machine.",
            "tandemgw ipfix --collector 192.0.2.50:4739",
        )],
    ),
    (
        "tandemgw-drain",
        &[("Empty a unit of the cluster.", "tandemgw drain gw-b")],
    ),
    (
        "tandemgw-ha",
        &[("All switches of the pair.", "tandemgw ha get")],
    ),
    (
        "tandemgw-config",
        &[("What is in force?", "tandemgw config show")],
    ),
    (
        "tandemgw-reload",
        &[(
            "Put a changed file in force; keeps the old config if it has mistakes.",
            "tandemgw reload",
        )],
    ),
    (
        "tandemgw-run",
        &[(
            "In the foreground, with more to read.",
            "RUST_LOG=debug tandemgw run --config gw-a.toml",
        )],
    ),
    (
        "tandemgw-doctor",
        &[(
            "What would stop the gateway on this machine?",
            "tandemgw doctor --config /etc/tandemgw/gw-a.toml",
        )],
    ),
    (
        "tandemgw-keygen",
        &[(
            "The key of a unit; the other unit needs what this prints.",
            "tandemgw keygen --out /etc/tandemgw/gw-a.key",
        )],
    ),
    (
        "tandemgw-pubkey",
        &[(
            "The public key again.",
            "tandemgw pubkey --key /etc/tandemgw/gw-a.key",
        )],
    ),
    (
        "tandemgw-top",
        &[(
            "Another gateway on the same machine.",
            "tandemgw top --socket /run/tandemgw/gw-b.sock",
        )],
    ),
    (
        "tandemgw-capture",
        &[
            (
                "What is dropped, and why?",
                "tandemgw capture --write drops.pcapng verdict=drop",
            ),
            (
                "Watch DNS live.",
                "tandemgw capture --write - port=53 | tshark -r -",
            ),
        ],
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/cli/args.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let mut command = args::Cli::command();
    let (man, completions) = (out.join("man"), out.join("completions"));
    for folder in [&man, &completions] {
        // The page of a removed command would stay otherwise.
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
    }
    // They ask `tandemgw complete`, which reads the same definition.
    for name in ["tandemgw.bash", "_tandemgw", "tandemgw.fish"] {
        let from = Path::new("packaging/completion").join(name);
        println!("cargo::rerun-if-changed={}", from.display());
        fs::copy(&from, completions.join(name))?;
    }
    // The pages name no page of a command that only prints them.
    let without_help = |command: Command| command.disable_help_subcommand(true);
    let parents: Vec<String> = command
        .get_subcommands()
        .filter(|sub| sub.has_subcommands())
        .map(|sub| sub.get_name().to_owned())
        .collect();
    command = without_help(command);
    for parent in parents {
        command = command.mut_subcommand(parent, without_help);
    }
    command.build();
    page(&command, "tandemgw", &man)
}

/// Without a date, so that the same source makes the same page.
fn with_title(text: &[u8], title: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let lines = std::str::from_utf8(text)?.lines();
    let lines = lines.map(|line| {
        if line.starts_with(".TH ") {
            title
        } else {
            line
        }
    });
    Ok((lines.collect::<Vec<_>>().join("\n") + "\n").into_bytes())
}

/// Writes the page of a command, and those of its subcommands.
fn page(command: &Command, name: &str, folder: &Path) -> Result<(), Box<dyn Error>> {
    let visible = || {
        let commands = command.get_subcommands();
        commands.filter(|sub| sub.get_name() != "help" && !sub.is_hide_set())
    };
    let mut text = Vec::new();
    let man = Man::new(command.clone());
    man.render_title(&mut text)?;
    let version = std::env::var("CARGO_PKG_VERSION")?;
    let title = format!(
        ".TH {} 1 \"\" \"tandemgw {version}\" \"tandemgw\"",
        name.to_uppercase()
    );
    let mut text = with_title(&text, &title)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if visible().next().is_some() {
        man.render_subcommands_section(&mut text)?;
    }
    if ["tandemgw", "tandemgw-run"].contains(&name) {
        text.write_all(RUN_SECTIONS.as_bytes())?;
    }
    let examples = EXAMPLES.iter().find(|(command, _)| *command == name);
    let (_, examples) = examples.ok_or_else(|| format!("no example of {name}"))?;
    writeln!(text, ".SH EXAMPLES")?;
    for (what, typed) in *examples {
        writeln!(text, ".TP\n{what}\n\\fB{}\\fR", typed.replace('-', "\\-"))?;
    }
    text.write_all(SECTIONS.as_bytes())?;
    let mut related: Vec<String> = visible()
        .map(|sub| format!("\\fB{name}-{}\\fR(1)", sub.get_name()))
        .collect();
    if let Some((parent, _)) = name.rsplit_once('-') {
        related.push(format!("\\fB{parent}\\fR(1)"));
    }
    related.push("\\fBtandemgw.toml\\fR(5)".to_owned());
    writeln!(text, ".SH \"SEE ALSO\"\n{}", related.join(",\n"))?;
    fs::write(folder.join(format!("{name}.1")), text)?;
    for sub in visible() {
        page(sub, &format!("{name}-{}", sub.get_name()), folder)?;
    }
    Ok(())
}
