//! The example configs are right; for wrong ones all mistakes are reported, in the right place.

// Clippy lets test functions unwrap, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use tandemgw_core::config::{Config, Ha, Nat, Severity, Sources, parse, render};

mod wrong;
use wrong::{BASE, BASE_HA, HA, WRONG};

#[test]
fn every_example_loads_without_a_warning() {
    let examples = examples();
    assert!(examples.len() >= 13, "only {}", examples.len());
    for (file, text) in examples {
        let (Ok((_, found)) | Err(found)) = parse(&file, &text);
        assert!(
            found.is_empty(),
            "{}",
            render(&found, &Sources::new(&file, &text), false)
        );
    }
}

/// Each begins with where its picture is.
#[test]
fn every_example_has_its_section_in_the_book() {
    let page = folder().with_file_name("docs").join("examples.md");
    let page = fs::read_to_string(page).unwrap();
    for (file, text) in examples() {
        let name = file.display();
        let (comments, _) = text.split_once("\n[node]").unwrap();
        // A comment may break in the middle of the reference.
        let comments = comments.replace("\n#", "");
        let (_, section) = comments
            .split_once("docs/examples.md, \"")
            .expect("a reference");
        let (section, _) = section.split_once('"').unwrap();
        let heading = format!("\n## {section}\n");
        let (_, section) = page
            .split_once(&heading)
            .unwrap_or_else(|| panic!("{name}: {heading}"));
        let section = section.split("\n## ").next().unwrap();
        let file = file
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .replace("-b.toml", "-a.toml");
        assert!(section.contains(&format!("configs/{file}")), "{name}");
        assert!(section.contains("```text\n"), "{name} has no picture");
    }
}

/// `NAME-a.toml` and `NAME-b.toml` are the two units of a pair: equal except for their identity.
#[test]
fn the_units_of_each_pair_belong_together() {
    let names = examples().into_iter().map(|(file, _)| file);
    let stem = |file: PathBuf| Some(file.file_stem()?.to_str()?.strip_suffix("-a")?.to_owned());
    let pairs: Vec<String> = names.filter_map(stem).collect();
    assert!(pairs.len() >= 4, "{pairs:?}");
    for name in pairs {
        let [a, b] = ["a", "b"].map(|unit| example(&format!("{name}-{unit}.toml")));
        assert_alike(&name, &a, &b);
        let (a_ha, b_ha) = (a.ha.as_ref().unwrap(), b.ha.as_ref().unwrap());
        assert_knows(&name, a_ha, &b);
        assert_knows(&name, b_ha, &a);
        assert_ne!(a_ha.peers[0].public_key, b_ha.peers[0].public_key, "{name}");
    }
}

fn assert_alike(name: &str, a: &Config, b: &Config) {
    assert_eq!(
        (&a.ports, &a.policies, &a.forwards, &a.nat_pools),
        (&b.ports, &b.policies, &b.forwards, &b.nat_pools),
        "{name}"
    );
    assert_eq!((&a.timeouts, &a.limits), (&b.timeouts, &b.limits), "{name}");
    let names = |config: &Config| {
        config
            .groups
            .iter()
            .map(|g| g.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(a), names(b), "{name}");
    let (a_ha, b_ha) = (a.ha.as_ref().unwrap(), b.ha.as_ref().unwrap());
    for (group, other) in a.groups.iter().zip(&b.groups) {
        let of = |own: Option<u8>, ha: &Ha| own.unwrap_or(ha.priority);
        assert_ne!(
            of(group.priority, a_ha),
            of(other.priority, b_ha),
            "{name}: who is primary of {} is left to the names",
            group.name
        );
    }
    // All of `[ha]` but what has to differ.
    let mut same = b_ha.clone();
    same.priority = a_ha.priority;
    same.links.clone_from(&a_ha.links);
    same.peers.clone_from(&a_ha.peers);
    assert_eq!(a_ha, &same, "{name}");
}

/// The one's peer is the other, at the addresses at which that one listens.
fn assert_knows(name: &str, own: &Ha, other: &Config) {
    let [peer] = &own.peers[..] else {
        panic!("{name}: not one peer");
    };
    assert_eq!(peer.name, other.node.name, "{name}");
    let links = &other.ha.as_ref().unwrap().links;
    let listens: Vec<_> = links.iter().map(|link| link.listen).collect();
    assert_eq!(peer.addresses, listens, "{name}");
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = accepted(BASE);
    assert_eq!(
        config.node.control_socket,
        Path::new("/run/tandemgw/gw.sock")
    );
    assert_eq!(config.node.max_sessions, 1_048_576);
    assert_eq!(config.node.routing_table, 7700);
    assert_eq!(config.timeouts.tcp_established, Duration::from_secs(7440));
    assert_eq!(config.timeouts.udp_unreplied, Duration::from_secs(120));
    assert_eq!(config.source_limits().1, 65_535);
    assert!(config.ports.iter().all(|port| port.source_check));
    assert!(
        config
            .ports
            .iter()
            .all(|port| port.offload == tandemgw_core::config::PortOffload::Auto)
    );
    assert_eq!(config.groups.len(), 1);
    assert_eq!(config.groups[0].name, "default");
    assert!(config.policies.is_empty() && config.ha.is_none());
    assert!(!config.picks_up_tcp());
    assert!(accepted(&format!("{BASE_HA}\n{HA}")).picks_up_tcp());
}

#[test]
fn the_key_is_looked_for_beside_the_file() {
    let config = example("lab-pair-a.toml");
    assert_eq!(config.node.key.unwrap(), folder().join("gw-a.key"));
}

#[test]
fn groups_take_ports_and_single_addresses() {
    let config = accepted(&format!(
        "{BASE_HA}\n{HA}\n[[group]]\nname = 'one'\nports = ['lan']\npriority = 9\n\
         [[group]]\nname = 'two'\nvirtual-addresses = ['10.0.2.1', 'fd00:2::1/64']\n"
    ));
    let group_of = |port: usize| {
        config.ports[port]
            .virtual_addresses
            .iter()
            .map(|v| v.group.0)
    };
    assert_eq!(group_of(0).collect::<Vec<_>>(), [0, 0]);
    assert_eq!(group_of(1).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(
        (config.groups[0].priority, config.groups[1].priority),
        (Some(9), None)
    );
}

#[test]
fn a_policy_resolves_its_references() {
    let config = accepted(&format!(
        "{BASE}[[nat-pool]]\nname = 'p'\naddresses = ['10.0.2.8-10.0.2.9', 'fd00:2::8']\n\
         [[policy]]\nname = 'a'\nto = ['wan', 'lan']\nservice = ['udp', 'any']\n\
         action = 'accept'\nnat-pool = 'p'\n"
    ));
    let policy = &config.policies[0];
    assert_eq!(
        policy.to.iter().map(|port| port.0).collect::<Vec<_>>(),
        [1, 0]
    );
    assert_eq!(policy.nat, Nat::Pool(0));
    assert!(policy.service.is_empty());
    assert_eq!(config.nat_pools[0].addresses.len(), 3);
    assert_eq!(config.nat_pools[0].ports, (1, 65535));
}

#[test]
fn one_file_tells_all_its_errors_at_once() {
    let text = r#"
[node]
name = "gw a"
max-sesions = 5000

[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.0.1.0/24"]

[[policy]]
name = "out"
from = ["lam"]

[timeouts]
udp = "5 minutes"
"#;
    let found = parse(Path::new("etc/gw.toml"), text).unwrap_err();
    let shown = render(&found, &Sources::new(Path::new("etc/gw.toml"), text), false);
    let expected = r#"etc/gw.toml:3:8: error: the name contains ' '
  |
3 | name = "gw a"
  |        ^^^^^^
  |
  = help: use letters, digits, `-`, `_` and `.`
etc/gw.toml:4:1: error: unknown key `max-sesions` in `node`
  |
4 | max-sesions = 5000
  | ^^^^^^^^^^^
  |
  = help: did you mean `max-sessions`?
etc/gw.toml:9:22: error: `10.0.1.0` is the network address of 10.0.1.0/24
  |
9 | virtual-addresses = ["10.0.1.0/24"]
  |                      ^^^^^^^^^^^^^
  |
  = help: give an address of the link that no machine has as its own
etc/gw.toml:11:1: error: `action` is missing in `policy`
   |
11 | [[policy]]
   | ^^^^^^^^^^
   |
   = help: add `action`: what happens to a session that matches (accept | drop | reject)
etc/gw.toml:13:9: error: unknown port `lam`
   |
13 | from = ["lam"]
   |         ^^^^^
   |
   = help: did you mean `lan`?
etc/gw.toml:16:7: error: `5 minutes` is not a duration
   |
16 | udp = "5 minutes"
   |       ^^^^^^^^^^^
   |
   = help: write a number and a unit, such as "50ms", "2s", "5m", "2h" or "1d"
"#;
    assert_eq!(shown, expected);
}

#[test]
fn each_problem_is_told_in_its_place() {
    for (base, wrong, expected) in WRONG {
        let base = base.concat();
        let lines = base.lines().count();
        let text = base + wrong;
        assert_eq!(problems(&text, lines), *expected, "of\n{wrong}");
    }
}

proptest! {
    #[test]
    fn any_text_is_accepted_or_its_problems_can_be_shown(text in "(?s).{0,200}") {
        check(&text);
    }

    #[test]
    fn so_is_anything_like_toml(
        text in "(\\[{1,2}(node|port|policy|ha|ha\\.link|group|forward)\\]{1,2}\n|\
                 (name|from|nat|addresses|interface|listen)|= ?|\"[a-z0-9:./-]{0,12}\"|[\\[\\]{},.\n]|[0-9]{1,4}){0,60}",
    ) {
        check(&text);
    }

    #[test]
    fn so_is_a_mutated_example(
        example in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, "[\\[\\]\"=.,/:a-z0-9\n-]{0,4}"), 1..6),
    ) {
        let (_, mut text) = example.get(&examples()).clone();
        for (at, removed, inserted) in edits {
            let boundary = |from: usize| (from..=text.len()).find(|at| text.is_char_boundary(*at));
            let start = boundary(at.index(text.len() + 1)).unwrap();
            let end = boundary((start + removed).min(text.len())).unwrap();
            text.replace_range(start..end, &inserted);
        }
        check(&text);
    }

    #[test]
    fn so_is_an_example_with_its_lines_shuffled(
        example in any::<prop::sample::Index>(),
        swaps in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 1..8),
    ) {
        let (_, text) = example.get(&examples()).clone();
        let mut lines: Vec<&str> = text.lines().collect();
        for (a, b) in swaps {
            let (a, b) = (a.index(lines.len()), b.index(lines.len()));
            lines.swap(a, b);
        }
        check(&lines.join("\n"));
    }
}

/// Parses, renders, and holds the promises of both.
fn check(text: &str) {
    let file = Path::new("f.toml");
    let found = match parse(file, text) {
        Ok((_, found)) => {
            assert!(found.iter().all(|d| d.severity == Severity::Warning));
            found
        }
        Err(found) => {
            assert!(found.iter().any(|d| d.severity == Severity::Error));
            found
        }
    };
    assert!(found.is_sorted_by_key(|d| d.span.start));
    let shown = render(&found, &Sources::new(file, text), false);
    assert!(shown.matches("f.toml:").count() >= found.len());
}

/// Each problem as `LINE:COL severity: message | hint`, lines counted from after `skip` lines.
fn problems(text: &str, skip: usize) -> Vec<String> {
    let (Ok((_, found)) | Err(found)) = parse(Path::new("f.toml"), text);
    let show = |d: &tandemgw_core::config::Diagnostic| {
        let before = &text[..d.span.start];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
        let severity = match d.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let hint = d
            .hint
            .as_ref()
            .map_or(String::new(), |hint| format!(" | {hint}"));
        let line = line as isize - skip as isize;
        format!("{line}:{column} {severity}: {}{hint}", d.message)
    };
    found.iter().map(show).collect()
}

fn accepted(text: &str) -> Config {
    match parse(Path::new("f.toml"), text) {
        Ok((config, _)) => config,
        Err(found) => panic!(
            "{}",
            render(&found, &Sources::new(Path::new("f.toml"), text), false)
        ),
    }
}

fn example(name: &str) -> Config {
    let file = folder().join(name);
    let text = fs::read_to_string(&file).unwrap();
    parse(&file, &text).unwrap().0
}

fn examples() -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(folder()).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "toml")
    });
    files.sort();
    let read = |file: PathBuf| (file.clone(), fs::read_to_string(file).unwrap());
    files.into_iter().map(read).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}
