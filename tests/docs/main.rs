//! The reference chapters of the book are what the code says: `UPDATE_DOCS=1 cargo test --test
//! docs` regenerates them.

// Clippy lets test functions unwrap, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use tandemgw_core::config::{OptionDoc, Reload, Sources, TableDoc, options, parse, render, tables};
use tandemgw_core::control::protocol::{Event, EventSeverity};
use tandemgw_core::event::DropReason;
use tandemgw_core::metrics::catalog;

#[path = "../../src/cli/args.rs"]
#[allow(dead_code, reason = "only what clap makes of it is looked at")]
mod args;
mod protocol;

#[test]
fn configuration_is_as_the_decoder_takes_it() {
    compare("configuration.md", &configuration());
}

#[test]
fn the_admin_protocol_is_that_of_its_types() {
    compare(
        "admin-protocol.md",
        &format!("{GENERATED}{}", protocol::chapter()),
    );
}

#[test]
fn what_a_reload_applies_is_what_the_options_say() {
    const BEGIN: &str = "<!-- Generated: UPDATE_DOCS=1 cargo test --test docs -->\n";
    const END: &str = "<!-- End -->\n";
    let text = fs::read_to_string(root().join("docs/reload.md")).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let table = reload_classes();
    compare("reload.md", &format!("{before}{BEGIN}{table}{END}{after}"));
}

#[test]
fn drop_reasons_are_those_of_the_code() {
    compare("drop-reasons.md", &drop_reasons());
}

#[test]
fn metrics_are_those_of_the_code() {
    const MARK: &str = "<!-- Generated from here on: UPDATE_DOCS=1 cargo test --test docs -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = fs::read_to_string(path).unwrap();
    let (written, _) = text.split_once(MARK).unwrap();
    let mut wanted =
        format!("{written}{MARK}\n| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for metric in catalog::ALL {
        let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        let _ = writeln!(
            wanted,
            "| `{}` | {} | {} | {} |",
            metric.name,
            metric.kind.name(),
            labels.join(", "),
            cell(metric.help)
        );
    }
    compare("metrics.md", &wanted);
}

/// The pages and sections that the alerts send their readers to.
#[test]
fn alerts_point_at_sections_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let alerts = fs::read_to_string(root.join("configs/prometheus/alerts.yml")).unwrap();
    let book = fs::read_to_string(root.join("docs/metrics.md")).unwrap();
    let after = |prefix| {
        alerts
            .lines()
            .filter_map(move |l| l.trim().strip_prefix(prefix))
    };
    for name in after("- alert: ") {
        assert!(
            book.contains(&format!("`{name}`")),
            "docs/metrics.md has no {name}"
        );
    }
    for place in after("runbook: ") {
        let (file, section) = place.split_once('#').unwrap();
        let text = fs::read_to_string(root.join(file)).unwrap();
        let headings = text.lines().filter_map(|line| line.strip_prefix("## "));
        let mut anchors = headings.map(|heading| {
            let lower = heading.to_lowercase().replace(' ', "-");
            lower.replace(|c: char| !c.is_alphanumeric() && c != '-', "")
        });
        assert!(anchors.any(|anchor| anchor == section), "{place}");
    }
    assert_eq!(after("- alert: ").count(), after("runbook: ").count());
}

/// Each field of an event and each of its names is in the schema, and each name in the chapter.
#[test]
fn the_schema_of_events_is_that_of_their_type() {
    let text = fs::read_to_string(root().join("docs/event.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let event = Event {
        run: String::new(),
        sequence: 1,
        missed: 0,
        at: 0.0,
        id: String::new(),
        state: None,
        severity: EventSeverity::Info,
        node: String::new(),
        group: None,
        peer: None,
        port: None,
        what: String::new(),
        why: None,
    };
    let event = serde_json::to_value(event).unwrap();
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(&schema["properties"]), keys(&event));
    let ids = schema["properties"]["id"]["enum"].as_array().unwrap();
    let source = fs::read_to_string(root().join("crates/core/src/gateway/trouble.rs")).unwrap();
    let end = source.find("fn group(self)").unwrap();
    let named = source[..end]
        .lines()
        .filter_map(|line| line.split("=> \"").nth(1));
    for id in named.filter_map(|rest| rest.split('"').next()) {
        assert!(
            ids.iter().any(|known| known == id),
            "{id} is not in the schema"
        );
    }
    let chapter = fs::read_to_string(root().join("docs/events.md")).unwrap();
    for id in ids {
        let id = format!("`{}`", id.as_str().unwrap());
        assert!(chapter.contains(&id), "{id} is not in docs/events.md");
    }
}

/// Links from one chapter to another, and to files of the repository, lead somewhere.
#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut checked = 0;
    for (file, text) in documents() {
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            if link.contains("://") {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = match target {
                "" => file.clone(),
                target => file.parent().unwrap().join(target),
            };
            let place = format!("{}: {link}", file.display());
            assert!(path.exists(), "{place}");
            let leaves = is_chapter(&file) && target.contains('/');
            assert!(!leaves, "{place}: not in the book; write the path as code");
            if !anchor.is_empty() {
                let there = fs::read_to_string(&path).unwrap();
                assert!(
                    anchors(&there).any(|a| a == anchor),
                    "{place}: no such heading"
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} links found");
}

#[test]
fn each_chapter_is_in_the_summary_once() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    for (file, _) in documents() {
        let name = file.file_name().unwrap().to_str().unwrap();
        if is_chapter(&file) && name != "SUMMARY.md" {
            let times = summary.matches(&format!("]({name})")).count();
            assert_eq!(times, 1, "{name} in docs/SUMMARY.md");
        }
    }
}

/// `tandemgw WORD …` in code: the word is a command, and each `--option` one of its options.
#[test]
fn commands_in_the_documents_exist() {
    let cli = args::Cli::command();
    let mut checked = 0;
    for (file, text) in documents() {
        for line in code(&text) {
            for typed in line.split("tandemgw ").skip(1) {
                let end = typed.find(['|', ';', '&', '>', '<', '`', '#', '\'']);
                let typed = &typed[..end.unwrap_or(typed.len())];
                if let Err(word) = check_command(&cli, typed) {
                    panic!("{}: `{word}` in `tandemgw {typed}`", file.display());
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "only {checked} commands found");
}

#[test]
fn configs_in_the_documents_are_right() {
    let mut checked = 0;
    for (file, text) in documents() {
        let blocks = text.split("```toml\n").skip(1);
        let here = text.split("<<'CONFIG'\n").skip(1);
        let blocks = blocks.filter_map(|rest| rest.split("```").next());
        for block in blocks.chain(here.filter_map(|rest| rest.split("\nCONFIG").next())) {
            if block.contains("[node]") && block.contains("[[port]]") {
                let (Ok((_, found)) | Err(found)) = parse(&file, block);
                assert!(
                    found.is_empty(),
                    "{}",
                    render(&found, &Sources::new(&file, block), false)
                );
                checked += 1;
            }
        }
    }
    assert!(checked >= 2, "only {checked} configs found");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The chapters of the book and the documents beside it.
fn documents() -> Vec<(PathBuf, String)> {
    let mut files: Vec<_> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ]
    .iter()
    .map(|name| root().join(name))
    .collect();
    let chapters = fs::read_dir(root().join("docs")).unwrap();
    files.extend(chapters.map(|entry| entry.unwrap().path()));
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    let read = |file: PathBuf| (file.clone(), fs::read_to_string(file).unwrap());
    files.into_iter().map(read).collect()
}

fn is_chapter(file: &Path) -> bool {
    file.parent() == Some(&root().join("docs"))
}

/// The headings as mdbook and GitHub make anchors of them.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| {
        let kept = line.trim_start_matches('#').trim().chars();
        kept.filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
            .map(|c| {
                if c == ' ' {
                    '-'
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .collect()
    })
}

/// The lines of shell blocks, and the code spans of the text.
fn code(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut block: Option<&str> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), block) {
            (Some(kind), None) => block = Some(kind),
            (Some(_), Some(_)) => block = None,
            (None, Some(kind)) if kind.starts_with("sh") => found.push(line),
            (None, Some(_)) => {}
            (None, None) => found.extend(line.split('`').skip(1).step_by(2)),
        }
    }
    found
}

/// The first word that is not a command or option, if any. Words in capitals stand for something
/// else.
fn check_command<'a>(cli: &clap::Command, typed: &'a str) -> Result<(), &'a str> {
    let mut command = cli;
    let mut words = typed.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if let Some(option) = word.trim_start_matches('[').strip_prefix("--") {
            let name = option.trim_end_matches(']');
            let known = |command: &clap::Command| {
                command
                    .get_arguments()
                    .any(|arg| arg.get_long() == Some(name))
            };
            if !known(command) && !known(cli) && name != "help" && name != "version" {
                return Err(word);
            }
            if name == "socket" {
                words.next();
            }
        } else if let Some(next) = command.find_subcommand(word) {
            command = next;
        } else if command.get_name() == cli.get_name()
            && word.chars().all(|c| c.is_ascii_lowercase())
        {
            return Err(word);
        }
    }
    Ok(())
}

fn compare(name: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/{name} is not what the code says: run UPDATE_DOCS=1 cargo test --test docs"
    );
}

const GENERATED: &str = "<!-- Generated: UPDATE_DOCS=1 cargo test --test docs -->\n\n";

fn configuration() -> String {
    let mut out = String::from(GENERATED);
    out.push_str(CONFIGURATION_INTRODUCTION);
    for table in tables() {
        describe(&mut out, table);
    }
    out
}

const CONFIGURATION_INTRODUCTION: &str = r#"# Configuration reference

The configuration is one TOML file, which can [include](#above-the-first-table) others. An unknown key or table
is an error, never ignored; all errors of a file are shown at once, each with its line and a hint: `tandemgw
check --config FILE`.

- Paths are relative to the folder of the file.
- Durations are strings of a number and a unit: `"50ms"`, `"2s"`, `"5m"`, `"2h"`, `"1d"`.
- Addresses of both families can stand side by side wherever addresses are listed.
- A service is a protocol with an optional destination port or range: `"tcp/443"`, `"tcp/8000-8099"`,
  `"tcp"`, `"udp/53"`, `"icmp"` (ICMP and ICMPv6), `"gre"`, `"esp"`, `"proto/47"`, `"any"`.
- Names refer to each other: a policy names ports and pools, a group names ports and addresses.
- An `[[address]]` or a `[[service]]` is a name for a list. Write it in place of an address or a service, as in
  `source = ["office", "10.9.0.1"]` or `internal = "web:8080"`. A list may name lists above it.
- "takes a" says how a changed value comes into force: by a [reload](reload.md) or a restart; "as used" means
  as the options that its contents end up in.
- `[name]` is a table that occurs once, `[[name]]` one that can occur several times; their order counts
  only for `[[policy]]`, where the first match wins, and for names that other names use.

The [examples](examples.md) have one use each and are checked by the tests.
"#;

/// How a table is written, or its place.
fn heading(table: &TableDoc) -> String {
    match (table.name, table.repeated) {
        ("", _) => "Above the first table".to_owned(),
        (name, true) => format!("`[[{name}]]`"),
        (name, false) => format!("`[{name}]`"),
    }
}

fn describe(out: &mut String, table: &TableDoc) {
    let heading = heading(table);
    let most = match table.repeated {
        true => format!(" There can be {} at most.", table.most),
        false => String::new(),
    };
    let meaning = sentence(table.meaning);
    let _ = write!(out, "\n## {heading}\n\n{meaning}.{most}\n\n");
    out.push_str("| key | value | default | takes a | meaning |\n|---|---|---|---|---|\n");
    for option in options().iter().filter(|option| option.table == table.name) {
        let (kind, default) = (option.kind_text(), option.default_text());
        assert!(!kind.is_empty() && !default.is_empty(), "{}", option.key);
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {} |",
            option.key,
            cell(&kind),
            cell(&default),
            class(option),
            cell(option.meaning),
        );
    }
}

fn class(option: &OptionDoc) -> &'static str {
    match option.reload {
        Reload::Live(_) => "reload",
        Reload::Restart => "restart",
        Reload::AsUsed => "as used",
    }
}

/// By table: the keys that a reload applies, and those that need a restart.
fn reload_classes() -> String {
    let mut out = String::from("| table | at once | after a restart |\n|---|---|---|\n");
    for table in tables() {
        let rows = options().iter().filter(|option| option.table == table.name);
        let name = heading(table);
        if rows.clone().all(|row| row.reload == Reload::AsUsed) {
            let _ = writeln!(out, "| {name} | as the options that it is used in | |");
            continue;
        }
        let (live, restart): (Vec<_>, Vec<_>) = rows.partition(|row| class(row) == "reload");
        let keys = |rows: &[&OptionDoc]| {
            let keys = rows.iter().filter(|row| row.key != "name");
            let keys: Vec<_> = keys.map(|row| format!("`{}`", row.key)).collect();
            keys.join(", ")
        };
        let (live, restart) = match (live.is_empty(), restart.is_empty()) {
            (true, _) => (String::new(), "all of it".to_owned()),
            (_, true) => ("all of it".to_owned(), String::new()),
            _ if live.iter().any(|row| row.key == "name") => {
                (format!("added, removed; {}", keys(&live)), keys(&restart))
            }
            _ if table.repeated => {
                let restart = keys(&restart);
                (keys(&live), format!("added, removed, renamed; {restart}"))
            }
            _ => (keys(&live), keys(&restart)),
        };
        let _ = writeln!(out, "| {name} | {live} | {restart} |");
    }
    out
}

fn drop_reasons() -> String {
    let mut out = String::from(GENERATED);
    out.push_str(DROP_REASONS_INTRODUCTION);
    for reason in DropReason::ALL {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} |",
            reason.name(),
            cell(reason.meaning()),
            cell(advice(*reason)),
        );
    }
    out
}

const DROP_REASONS_INTRODUCTION: &str = r#"# Drop reasons

Each packet that the gateway drops is counted under one reason. `tandemgw status` shows the reasons that
have occurred since the start, `tandemgw status --json` has them in `counters.dropped`. A few drops of
`tcp-window`, `tcp-no-session` and `icmp-unrelated` are normal on any gateway: late packets of sessions
that have ended. What matters is a counter that grows while something does not work.

What the kernel drops before the gateway sees it (a wrong IPv4 header checksum, a TTL that runs out, a
full TUN queue) is not in these counters; `ip -s link show tgw-PORT` and `nstat` show it.

| reason | meaning | what to do |
|---|---|---|
"#;

/// The advice for an operator. Exhaustive, so that each new reason needs an entry.
#[allow(clippy::too_many_lines, reason = "a table")]
fn advice(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Truncated | DropReason::Malformed => {
            "Capture on the port (`tcpdump -i INTERFACE`) and look at the sender; a scanner sends such packets."
        }
        DropReason::BadChecksum => {
            "A broken network card or cable, or a forged packet. If it grows with ordinary traffic, turn off checksum offload of the interface (`ethtool -K INTERFACE rx off tx off`) to see whether the card is the cause."
        }
        DropReason::Martian => {
            "A misconfigured host, or a forged packet: look for the source with tcpdump."
        }
        DropReason::RoutingHeader => {
            "Type 0 is forbidden. Others are forwarded unless the port has `routing-headers = false`; segment routing through the gateway itself is not supported."
        }
        DropReason::HopLimit => {
            "Normal: traceroute sends such packets. Many from one flow: a routing loop beyond the gateway."
        }
        DropReason::SpoofedSource => {
            "If the traffic is legitimate, routing is asymmetric: the route back to the source (`ip route get SOURCE`) must lead out of the port that the packet came in by. Add the route, or set `source-check = false` on that port."
        }
        DropReason::NotForwardable => {
            "Normal: hosts send broadcasts and multicasts, which a router keeps on their link. Multicast to other groups passes where a `[[multicast-policy]]` says so."
        }
        DropReason::NoPolicy => {
            "If the traffic is wanted, add a `[[policy]]` with `action = \"accept\"`. `source`, `destination` and `service` are matched after a forward and before source translation."
        }
        DropReason::PolicyDrop | DropReason::PolicyReject => {
            "As configured. The first policy that matches decides: look for an earlier, wider one."
        }
        DropReason::NoRoute => {
            "Add the route to the kernel's main table: `ip route get DESTINATION`."
        }
        DropReason::NotAPort => {
            "Make that interface a `[[port]]`, or correct the route: `ip route get DESTINATION`."
        }
        DropReason::PortDown => {
            "Bring the interface up; `tandemgw status` shows which port is down."
        }
        DropReason::NoListener => {
            "Normal: virtual addresses answer ping only. For a service behind one, add a `[[forward]]`; for one on the gateway machine, use its own address."
        }
        DropReason::TcpNoSession => {
            "After a restart of a standalone gateway: earlier connections are gone, and clients reconnect. Otherwise: answers take another path than the opening packets, or the session has expired (raise `tcp-established`, or turn on TCP keep-alives)."
        }
        DropReason::TcpFlags => "A scanner, or a broken stack.",
        DropReason::TcpWindow => {
            "A few are late or duplicate segments. Many in one direction: only one direction of the connection passes through the gateway, or another device changes sequence numbers."
        }
        DropReason::TcpUnexpectedSyn => {
            "A stale duplicate, a client that reuses a port at once, or an attempt to reset a connection."
        }
        DropReason::IcmpUnrelated => {
            "Late or forged. Many after a restart: errors about earlier sessions."
        }
        DropReason::IcmpUnsupported => "Normal: redirects and the like are not forwarded.",
        DropReason::EchoLimit => "A flood of pings: 50 000 a second are answered.",
        DropReason::TableFull => {
            "`tandemgw sessions` shows who holds the sessions. Raise `max-sessions` (restart), shorten `[timeouts]`, or lower `half-open-per-source`."
        }
        DropReason::HalfOpenLimit => {
            "Somebody on the link of a port opens sessions from many addresses of its network: find the port with `tandemgw sessions state=unreplied`. A single source above its limit loses its own oldest, and nothing is dropped."
        }
        DropReason::SourceLimit => {
            "A host scans or is infected, or many users are behind one address: raise `sessions-per-source` or `ports-per-source` if it is legitimate."
        }
        DropReason::NeighborLimit => {
            "Somebody scans the addresses of a network behind a port (RFC 6583): the gateway looks for 32 at a time, and the kernel gives up on each after 3 s. `tandemgw sessions --by source` shows who."
        }
        DropReason::NatExhausted => {
            "UDP and ICMP: each internal endpoint takes an external port. TCP: one per destination. Add addresses with a `[[nat-pool]]`, widen its `ports`, or shorten `udp` in `[timeouts]`. Also counted if the policy translates but there is no address of the packet's family."
        }
        DropReason::TooBig => {
            "Normal path MTU discovery. If transfers hang, the sender does not get the ICMP error, or ignores it: see Troubleshooting."
        }
        DropReason::FragmentOverlap => "An attack on reassembly, or a duplicated fragment.",
        DropReason::FragmentOrphan => {
            "The first fragment was lost, refused, or arrived more than 2 s after another fragment; or too many datagrams were in flight."
        }
        DropReason::NotPrimary => {
            "On a standby unit: hosts still send to it; they learn the new address from the announcements."
        }
        DropReason::PassedOnTwice => {
            "A few during a takeover are normal. Otherwise two units disagree about who is primary: compare `tandemgw status` on both."
        }
        DropReason::NotPassedOn => {
            "50 000 packets a second are passed on. Routers that keep each flow on one unit pass fewer; look at the links in `tandemgw status` if few are."
        }
        DropReason::NotReplicated => {
            "The peer did not acknowledge within `pickup-guarantee-wait`. Look at the lag and the links in `tandemgw status`."
        }
        DropReason::WaitsForPeer => {
            "A client repeated its first packet while the first one waited for the peer: a sign of a slow link between the units."
        }
        DropReason::BadHeartbeat => {
            "A few after a restart are normal. Many: a peer has another key than the config says, two ports are on one network, or somebody forges or repeats frames of type 0x88b5: find the sender with tcpdump."
        }
        DropReason::HeartbeatLimit => {
            "A flood of frames of type 0x88b5: 5000 a second are looked at. Find the sender with tcpdump."
        }
        DropReason::SessionGone => {
            "Should stay at 0: the gateway looked the session up for this very packet. Please report it."
        }
        DropReason::ReversePath => {
            "Routing is asymmetric, or there is a loop: `ip route get SOURCE` must lead out of the port that the stream comes in by. Add the route."
        }
        DropReason::NoMember => {
            "Normal: senders do not wait for receivers. If a host should get it: does it join, and does a switch between let its reports through (`tandemgw_multicast_groups` in the metrics)?"
        }
        DropReason::MulticastLimit => {
            "Somebody sends from many addresses or to many groups: 4096 sessions may come in by a port. Narrow `source` and `group` of the `[[multicast-policy]]`."
        }
        DropReason::MembershipMalformed => {
            "A few: hosts from another network on the same link. Many: somebody forges reports; find the sender with tcpdump (`igmp or icmp6`)."
        }
        DropReason::MembershipRate => {
            "A flood of reports: 2000 a second are looked at. Find the sender with tcpdump (`igmp or icmp6`)."
        }
        DropReason::MembershipGroups => {
            "The hosts of a port want more than 4096 groups of a family: `tandemgw_multicast_groups` in the metrics counts them, and tcpdump (`igmp or icmp6`) shows who asks for them."
        }
        DropReason::MembershipSources => {
            "Hosts name more than 128 sources of a group, or 8192 on a port: `tandemgw_multicast_sources` in the metrics counts them."
        }
        DropReason::MembershipHost => {
            "A host wants more than 512 groups that no other host wants: it is broken, or attacks."
        }
        DropReason::WriteFailed => {
            "The queue or the interface behind it is full or down. Normal for a moment when a link goes down; otherwise look at `ip -s link` of the port and its `tgw-` device."
        }
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}
