//! `tandemgw doctor`: checks everything that the gateway needs from the machine.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use tandemgw::os::preflight::{self, Check, MachineProblem};
use tandemgw_core::config::Config;
use tandemgw_core::control::protocol::{LinkStatus, PeerStatus, Status};

use super::paint::{self, Tone, paint};
use super::status::{known, or_dash, rtt};
use super::table::{count, terminal_width};
use super::{EXIT_CONFIG, config_file, query};

/// Columns of a result and a check's name, before what was found.
const INDENT: usize = 30;

/// With less room than this for the text, it is not indented.
const NARROWEST: usize = 30;

pub fn doctor(path: &Path, node: Option<String>, json: bool) -> ExitCode {
    let config = match config_file::load(path, node) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let checks = examine(&config);
    let written = match json {
        true => serde_json::to_string(&Report::of(&checks))
            .map_err(io::Error::from)
            .and_then(|line| query::print_line(&line)),
        false => {
            let text = render(&checks, terminal_width(), paint::is_wanted());
            io::stdout().lock().write_all(text.as_bytes())
        }
    };
    match written {
        Ok(()) if is_fit(&checks) => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(EXIT_CONFIG),
        Err(_) => ExitCode::FAILURE,
    }
}

/// All checks of the machine, and of the peers if the gateway runs.
pub fn examine(config: &Config) -> Vec<Check> {
    let status = query::status_of(config);
    let mut checks = preflight::examine(config, status.is_some());
    if let Some(status) = &status {
        checks.insert(0, running(status));
        checks.extend(status.peers.iter().map(peer));
    }
    checks
}

/// Whether the gateway can work.
pub fn is_fit(checks: &[Check]) -> bool {
    let mut problems = checks.iter().flat_map(|check| &check.problems);
    !problems.any(|problem| problem.fatal)
}

fn running(status: &Status) -> Check {
    let other = &status.version;
    let own = env!("CARGO_PKG_VERSION");
    let problem = (other != own).then(|| {
        MachineProblem::warning(
            format!("the running gateway is version {other}, this program is {own}"),
            "restart the gateway to run the new version",
        )
    });
    let found = format!("{} runs, version {other}", status.node);
    Check::new("gateway", found, problem)
}

/// The running gateway's report about a peer.
fn peer(peer: &PeerStatus) -> Check {
    let name = &peer.name;
    let mut problems = Vec::new();
    if !peer.connected {
        problems.push(MachineProblem::warning(
            format!("the gateway has no connection to {name}"),
            format!(
                "start the gateway on {name}; run `tandemgw doctor` there, and compare names, addresses and \
                 public keys of both configs"
            ),
        ));
    } else if !peer.in_sync || peer.digest_equal == Some(false) {
        problems.push(MachineProblem::warning(
            format!("{name} does not have all sessions yet"),
            "wait some seconds; if this persists, see the logs of both units",
        ));
    }
    let config = peer.config.as_ref();
    if config.is_some_and(|config| config.equal == Some(false)) {
        let differs = config.and_then(|config| config.differs.as_deref());
        problems.push(MachineProblem::warning(
            format!(
                "{name} has another config than this unit: {}",
                differs.unwrap_or_default().join(", ")
            ),
            "make them the same on both units, and reload",
        ));
    }
    let down = peer.links.iter().filter(|link| !link.up);
    if peer.connected {
        problems.extend(down.map(|link: &LinkStatus| {
            let (local, remote) = (link.local.as_ref(), link.remote.as_ref());
            let ends = format!("{} - {}", or_dash(local), or_dash(remote));
            MachineProblem::warning(
                format!("the link {ends} to {name} is down"),
                "check its cable and switch, and that no firewall on either side blocks its UDP port",
            )
        }));
    }
    let rtts: Vec<String> = peer.links.iter().map(|link| rtt(link.rtt_us)).collect();
    let found = format!(
        "connected and in sync, {} changes behind, round trip {}",
        known(peer.lag.sequence_gap, count),
        rtts.join(" and ")
    );
    Check::new(format!("peer {name}"), found, problems)
}

/// A result of a check: its word, how it looks, what was found and what to do.
type Line<'a> = (&'static str, Tone, &'a str, Option<&'a str>);

fn lines(check: &Check) -> Vec<Line<'_>> {
    if check.problems.is_empty() {
        return vec![("ok", Tone::Good, &check.found, None)];
    }
    let line = |problem: &'_ MachineProblem| -> (&'static str, Tone) {
        match problem.fatal {
            true => ("error", Tone::Bad),
            false => ("warning", Tone::Warning),
        }
    };
    let problems = check.problems.iter();
    problems
        .map(|problem| {
            let (word, tone) = line(problem);
            (
                word,
                tone,
                problem.what.as_str(),
                Some(problem.remedy.as_str()),
            )
        })
        .collect()
}

/// All checks, for programs.
#[derive(Serialize)]
struct Report<'a> {
    checks: Vec<ReportRow<'a>>,
    fit: bool,
}

#[derive(Serialize)]
struct ReportRow<'a> {
    check: &'a str,
    found: &'a str,
    remedy: Option<&'a str>,
    result: &'a str,
}

impl Report<'_> {
    fn of(checks: &[Check]) -> Report<'_> {
        let rows = checks.iter().flat_map(|check| {
            let row = |(result, _, found, remedy)| ReportRow {
                check: &check.name,
                found,
                remedy,
                result,
            };
            lines(check).into_iter().map(row)
        });
        Report {
            checks: rows.collect(),
            fit: is_fit(checks),
        }
    }
}

fn render(checks: &[Check], width: Option<usize>, color: bool) -> String {
    let mut out = String::new();
    let width = width.map_or(usize::MAX, |width| {
        width.saturating_sub(INDENT).max(NARROWEST)
    });
    for check in checks {
        for (word, tone, found, remedy) in lines(check) {
            let word = format!("{word:<8}");
            let word = if color { paint(&word, tone) } else { word };
            let head = format!("{word} {:<20} ", check.name);
            paragraph(&mut out, &head, found, width);
            if let Some(remedy) = remedy {
                let head = " ".repeat(INDENT);
                paragraph(&mut out, &head, &format!("→ {remedy}"), width);
            }
        }
    }
    let problems = || checks.iter().flat_map(|check| &check.problems);
    let errors = problems().filter(|problem| problem.fatal).count();
    let warnings = problems().count() - errors;
    let number = |count, word| match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    };
    let (errors_text, warnings_text) = (number(errors, "error"), number(warnings, "warning"));
    let _ = match (errors, warnings) {
        (0, 0) => writeln!(out, "\nfit"),
        (0, _) => writeln!(out, "\nfit, with {warnings_text}"),
        _ => writeln!(out, "\nnot fit: {errors_text}, {warnings_text}"),
    };
    out
}

/// Writes `text` after `head`, in lines of at most `width`.
fn paragraph(out: &mut String, head: &str, text: &str, width: usize) {
    out.push_str(head);
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            out.push('\n');
            out.push_str(&" ".repeat(INDENT));
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;
    use tandemgw_core::control::protocol::PeerConfig;

    fn checks() -> Vec<Check> {
        vec![
            Check::new("tun", "/dev/net/tun can be opened", []),
            Check::new(
                "port lan",
                "eth0 up",
                [
                    MachineProblem::warning("interface eth0 has no carrier", "plug in the cable"),
                    MachineProblem::fatal("it belongs to br0", "use br0"),
                ],
            ),
        ]
    }

    #[test]
    fn each_check_has_its_result_and_remedy() {
        let wanted = "\
ok       tun                  /dev/net/tun can be opened
warning  port lan             interface eth0 has no carrier
                              → plug in the cable
error    port lan             it belongs to br0
                              → use br0

not fit: 1 error, 1 warning
";
        assert_eq!(render(&checks(), None, false), wanted);
        assert!(!is_fit(&checks()));
        assert!(is_fit(&checks()[..1]));
    }

    #[test]
    fn lines_fit_the_terminal() {
        let long = Check::new("x", "word ".repeat(60).trim(), []);
        let text = render(&[long], Some(80), false);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        let narrow = render(&checks(), Some(10), true);
        assert!(narrow.contains("carrier"));
    }

    #[test]
    fn programs_get_one_object() {
        let checks = checks();
        let json = serde_json::to_value(Report::of(&checks)).unwrap();
        assert_eq!(json["fit"], false);
        assert_eq!(json["checks"][0]["result"], "ok");
        assert_eq!(json["checks"][2]["remedy"], "use br0");
    }

    #[test]
    fn what_a_running_gateway_says_of_its_peers() {
        let good = sample::status().peers.remove(0);
        assert_eq!(peer(&good).problems, []);
        assert!(peer(&good).found.contains("312 µs"), "{:?}", peer(&good));
        let bad = |change: fn(&mut PeerStatus)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad
        };
        for (bad, said) in [
            (bad(|peer| peer.connected = false), "no connection"),
            (bad(|peer| peer.in_sync = false), "all sessions"),
            (bad(|peer| peer.digest_equal = Some(false)), "all sessions"),
            (
                bad(|peer| {
                    peer.config = Some(PeerConfig {
                        equal: Some(false),
                        differs: Some(vec!["policy.web".to_owned()]),
                        ..PeerConfig::default()
                    });
                }),
                "policy.web",
            ),
            (
                bad(|peer| peer.links[0].up = false),
                "10.77.9.1:7030 - 10.77.9.2:7030",
            ),
        ] {
            let check = peer(&bad);
            assert_eq!(check.problems.len(), 1, "{check:?}");
            assert!(check.problems[0].what.contains(said), "{check:?}");
        }
    }
}
