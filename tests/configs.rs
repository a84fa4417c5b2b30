//! The example configs are right, and wrong ones are told all that is wrong, in the right place.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use tandemgw::config::{Config, Nat, Severity, parse, render};

#[test]
fn every_example_loads_without_a_warning() {
    let examples = examples();
    assert!(examples.len() >= 5);
    for (file, text) in examples {
        let (Ok((_, found)) | Err(found)) = parse(&file, &text);
        assert!(found.is_empty(), "{}", render(&found, &file, &text, false));
    }
}

#[test]
fn the_units_of_the_pair_belong_together() {
    let [a, b] = ["lab-pair-a.toml", "lab-pair-b.toml"].map(example);
    assert_eq!(
        (&a.ports, &a.policies, &a.forwards),
        (&b.ports, &b.policies, &b.forwards)
    );
    let (a_ha, b_ha) = (a.ha.unwrap(), b.ha.unwrap());
    assert_eq!(a_ha.group_id, b_ha.group_id);
    assert_eq!(
        (&a_ha.peers[0].name, &b_ha.peers[0].name),
        (&b.node.name, &a.node.name)
    );
    assert_eq!(a_ha.peers[0].addresses, [b_ha.links[0].listen]);
    assert_eq!(b_ha.peers[0].addresses, [a_ha.links[0].listen]);
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
    assert_eq!(config.limits.half_open_per_source, 4096);
    assert!(config.ports.iter().all(|port| port.source_check));
    assert_eq!(config.groups.len(), 1);
    assert_eq!(config.groups[0].name, "default");
    assert!(config.policies.is_empty() && config.ha.is_none());
    assert!(!config.limits.tcp_pickup);
    assert!(accepted(&format!("{BASE_HA}\n{HA}")).limits.tcp_pickup);
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
    assert_eq!(config.nat_pools[0].ports, (1024, 65535));
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
    let shown = render(&found, Path::new("etc/gw.toml"), text, false);
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
etc/gw.toml:13:9: error: unknown port `lam`
   |
13 | from = ["lam"]
   |         ^^^^^
   |
   = help: did you mean `lan`?
etc/gw.toml:16:7: error: `5 minutes` is no duration
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
        let lines = base.lines().count();
        let text = format!("{base}{wrong}");
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
        example in 0usize..5,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, "[\\[\\]\"=.,/:a-z0-9\n-]{0,4}"), 1..6),
    ) {
        let (_, mut text) = examples().swap_remove(example);
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
        example in 0usize..5,
        swaps in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 1..8),
    ) {
        let (_, text) = examples().swap_remove(example);
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
    let shown = render(&found, file, text, false);
    assert!(shown.matches("f.toml:").count() >= found.len());
}

/// Each problem as `LINE:COL severity: message | hint`, lines counted from after `skip` lines.
fn problems(text: &str, skip: usize) -> Vec<String> {
    let (Ok((_, found)) | Err(found)) = parse(Path::new("f.toml"), text);
    let show = |d: &tandemgw::config::Diagnostic| {
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
        Err(found) => panic!("{}", render(&found, Path::new("f.toml"), text, false)),
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
    files.sort();
    let read = |file: PathBuf| (file.clone(), fs::read_to_string(file).unwrap());
    files.into_iter().map(read).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

/// What the wrong parts below are appended to.
const BASE: &str = r#"[node]
name = "gw"
[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.0.1.1/24", "fd00:1::1/64"]
[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["10.0.2.1/24", "fd00:2::1/64"]
"#;

const BASE_HA: &str = r#"[node]
name = "gw"
key = "gw.key"
[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.0.1.1/24", "fd00:1::1/64"]
[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["10.0.2.1/24", "fd00:2::1/64"]
"#;

const HA: &str = r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "gw-b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#;

/// A base, what is appended to it, and the problems, with lines counted in the latter.
type Wrong = (&'static str, &'static str, &'static [&'static str]);

#[rustfmt::skip]
const WRONG: &[Wrong] = &[
    // Syntax.
    ("", r#"[node]
name = 
[port
"#, &[
        r#"2:8 error: string values must be quoted, expected literal string"#,
        r#"3:6 error: unclosed table, expected `]`"#,
    ]),
    ("", r#"[node]
name = "a"
name = "b"
"#, &[
        r#"3:1 error: duplicate key"#,
    ]),
    // Structure.
    ("", r#""#, &[
        r#"1:1 error: `name` is missing in `node`"#,
        r#"1:1 error: there is no port | add a `[[port]]` with `name` and `interface`"#,
    ]),
    ("", r#"node = 3
[port]
name = "lan"
"#, &[
        r#"1:1 error: `name` is missing in `node`"#,
        r#"1:8 error: expected a table, found an integer | write `[node]`"#,
        r#"2:1 error: expected an array of tables, found a table | write `[[port]]`"#,
    ]),
    (BASE, r#"[timeout]
udp = "5s"
"#, &[
        r#"1:2 error: unknown key `timeout` | did you mean `timeouts`?"#,
    ]),
    (BASE, r#"[timeouts]
udp = 300
icmp = "5"
other = "0s"
tcp-syn = "2d"
bogus = 1
"#, &[
        r#"2:7 error: expected a duration, found an integer | write the unit as well, such as "300s" or "300ms""#,
        r#"3:8 error: `5` is no duration | write a number and a unit, such as "50ms", "2s", "5m", "2h" or "1d""#,
        r#"4:9 error: `other` is 0s; it must be 1s to 1d"#,
        r#"5:11 error: `tcp-syn` is 2d; it must be 1s to 1d"#,
        r#"6:1 error: unknown key `bogus` in `timeouts` | the keys here are tcp-established, tcp-transitory, tcp-syn, tcp-time-wait, tcp-reset, udp, udp-unreplied, icmp, other"#,
    ]),
    (BASE, r#"[limits]
half-open-per-source = -1
tcp-pickup = "true"
icmp-errors-per-second = "many"
"#, &[
        r#"2:24 error: `half-open-per-source` is -1; it must be 0 to 16777216"#,
        r#"3:14 error: expected true or false, found a string | write true without quotes"#,
        r#"4:26 error: expected an integer, found a string"#,
    ]),
    // Ports.
    (BASE, r#"[[port]]
name = "lan"
interface = "eth0"
"#, &[
        r#"2:8 error: a second port named `lan` | each port needs a name of its own"#,
        r#"3:13 error: a second port with the interface named `eth0` | each port with the interface needs a name of its own"#,
    ]),
    (BASE, r#"[[port]]
name = "Management-Port"
interface = "an-interface-name"
"#, &[
        r#"2:8 error: the name contains 'M' | use small letters, digits and `-`"#,
        r#"3:13 error: the name has 17 bytes, more than 15"#,
    ]),
    (BASE, r#"[[port]]
name = "management-1"
interface = "tgw-lan"
"#, &[
        r#"2:8 error: the name has 12 bytes, more than 11"#,
        r#"3:13 error: `tgw-lan` is a name for the gateway's own devices | name the interface that the hosts are on"#,
    ]),
    (BASE, r#"[[port]]
name = "dmz"
"#, &[
        r#"1:1 error: `interface` is missing in `port`"#,
    ]),
    (BASE, r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.0/24", "10.0.3.255/24", "127.0.0.1/8", "224.0.0.1/24", "fe80::1/64", "fd00:3::/64", "::ffff:10.0.0.1/120", "10.9.9.9/0"]
"#, &[
        r#"4:22 error: `10.0.3.0` is the network address of 10.0.3.0/24 | give an address of the link that no machine has as its own"#,
        r#"4:37 error: `10.0.3.255` is the broadcast address of 10.0.3.0/24 | give an address of the link that no machine has as its own"#,
        r#"4:54 error: `127.0.0.1` is a loopback address | give an address of the link that no machine has as its own"#,
        r#"4:69 error: `224.0.0.1` is a multicast address | give an address of the link that no machine has as its own"#,
        r#"4:85 error: `fe80::1` is a link-local address | give a global address, or a private or unique local one"#,
        r#"4:99 error: `fd00:3::` is the subnet-router anycast address of fd00:3::/64 | give an address of the link that no machine has as its own"#,
        r#"4:114 error: `::ffff:10.0.0.1` is an IPv4-mapped address | give an address of the link that no machine has as its own"#,
        r#"4:137 error: `10.9.9.9/0` is on a link with all addresses | write the prefix length of the link"#,
        r#"4:137 error: the network 0.0.0.0/0 overlaps 10.0.1.0/24 of port `lan` | the kernel could not tell which port a host is on"#,
    ]),
    (BASE, r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.1", "fd00:3::1", "10.0.3", "10.0.3.1/33"]
"#, &[
        r#"4:22 error: `10.0.3.1` has no prefix length | write the one of the link, such as "10.0.3.1/24""#,
        r#"4:34 error: `fd00:3::1` has no prefix length | write the one of the link, such as "fd00:3::1/64""#,
        r#"4:47 error: `10.0.3` can't be read as an address | write it as in "10.0.0.1/24""#,
        r#"4:57 error: `10.0.3.1/33` can't be read as an address | write it as in "10.0.0.1/24""#,
    ]),
    (BASE, r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.1.1/24", "10.0.2.128/25", "10.0.3.1/24", "10.0.3.2/24"]
"#, &[
        r#"4:22 error: `10.0.1.1` is a virtual address of port `lan` already"#,
        r#"4:37 error: `10.0.2.128` is the network address of 10.0.2.128/25 | give an address of the link that no machine has as its own"#,
        r#"4:37 error: the network 10.0.2.128/25 overlaps 10.0.2.0/24 of port `wan` | the kernel could not tell which port a host is on"#,
    ]),
    (BASE, r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = "10.0.3.1/24"
"#, &[
        r#"4:21 error: expected an array, found a string | write ["10.0.3.1/24"]"#,
    ]),
    // Groups.
    (BASE_HA, r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
[[group]]
name = "one"
ports = ["lan", "wna"]
virtual-addresses = ["10.0.2.1", "10.0.2.9"]
"#, &[
        r#"12:17 error: unknown port `wna` | did you mean `wan`?"#,
        r#"13:34 error: `10.0.2.9` is no virtual address of a port | add it to a `[[port]]`"#,
    ]),
    (BASE_HA, r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
[[group]]
name = "one"
ports = ["lan"]
virtual-addresses = ["10.0.2.1"]
"#, &[
        r#"0:37 error: `fd00:2::1` is in no group | name it, or its port, in a `[[group]]`"#,
    ]),
    (BASE_HA, r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
[[group]]
name = "one"
ports = ["lan", "wan"]
priority = 256
[[group]]
name = "one"
ports = ["lan"]
"#, &[
        r#"13:12 error: `priority` is 256; it must be 0 to 255"#,
        r#"15:8 error: a second group named `one` | each group needs a name of its own"#,
        r#"16:10 error: `10.0.1.1` is in a group already | each virtual address belongs to one group"#,
        r#"16:10 error: `fd00:1::1` is in a group already | each virtual address belongs to one group"#,
    ]),
    (BASE, r#"[[group]]
name = "one"
ports = ["lan", "wan"]
"#, &[
        r#"1:1 warning: groups have no effect without `[ha]` | remove the groups, or add `[ha]`"#,
    ]),
    // Policies.
    (BASE, r#"[[policy]]
name = "a"
action = "accept"
from = ["lan", "lan"]
to = []
source = ["any"]
"#, &[
        r#"4:16 warning: `lan` is listed twice"#,
        r#"5:6 error: `to` is empty | leave `to` out to match any"#,
        r#"6:11 error: `any` is no prefix | leave the key out to match any address"#,
    ]),
    (BASE, r#"[[policy]]
name = "a"
action = "accept"
from = ["dmz"]
to = ["wam"]
"#, &[
        r#"4:9 error: unknown port `dmz` | there is `lan`, `wan`"#,
        r#"5:7 error: unknown port `wam` | did you mean `wan`?"#,
    ]),
    (BASE, r#"[[policy]]
name = "a"
action = "acept"
from = "lan"
[[policy]]
name = "a"
action = "deny"
"#, &[
        r#"3:10 error: `acept` is no action | did you mean `accept`?"#,
        r#"4:8 error: expected an array, found a string | write ["lan"]"#,
        r#"6:8 error: a second policy named `a` | each policy needs a name of its own"#,
        r#"7:10 error: `deny` is no action | one of accept, drop, reject"#,
    ]),
    (BASE, r#"[[policy]]
name = "a"
action = "accept"
source = ["10.0.1.7/24", "10.0.1.8", "10.0.0.0/40", "::ffff:10.0.0.0/104"]
"#, &[
        r#"4:11 warning: `10.0.1.7/24` has bits set beyond its prefix length | it matches "10.0.1.0/24": write that"#,
        r#"4:38 error: `10.0.0.0/40` can't be read as an address | write it as in "10.0.0.0/8""#,
        r#"4:53 error: `::ffff:10.0.0.0/104` is IPv4-mapped | write the IPv4 prefix"#,
    ]),
    (BASE, r#"[[policy]]
name = "a"
action = "accept"
service = ["tcp/0", "tcp/90-80", "tpc/80", "http", "icmp/8", "proto/300", "tcp/80-"]
"#, &[
        r#"4:12 error: `0` is no port | ports are 1 to 65535"#,
        r#"4:21 error: `90-80` ends before it begins | write 80-90"#,
        r#"4:34 error: `tpc/80` is no service | did you mean `tcp`?"#,
        r#"4:44 error: `http` is no service | write tcp/443, tcp/8000-8099, tcp, udp/53, icmp, gre, esp, proto/47 or any"#,
        r#"4:52 error: `icmp` has no ports | write "icmp""#,
        r#"4:62 error: `300` is no protocol number | protocol numbers are 0 to 255"#,
        r#"4:75 error: `` is no port | ports are 1 to 65535"#,
    ]),
    (BASE, r#"[[policy]]
name = "a"
action = "accept"
source = ["10.0.1.0/24"]
destination = ["fd00::/16"]
"#, &[
        r#"2:8 warning: policy `a` can't match anything | `source` and `destination` share no address family"#,
    ]),
    (BASE, r#"[[policy]]
name = "a"
action = "accept"
nat = true
nat-pool = "p"
"#, &[
        r#"5:12 error: unknown NAT pool `p` | there is no NAT pool with a name"#,
    ]),
    (BASE, r#"[[policy]]
name = "a"
action = "drop"
nat = true
pickup-guarantee = "bounded"
"#, &[
        r#"2:8 warning: `pickup-guarantee` of policy `a` has no effect without `[ha]`"#,
        r#"4:7 warning: translation has no effect here | only "accept" policies translate"#,
    ]),
    (BASE, r#"[[port]]
name = "dmz"
interface = "eth2"
[[policy]]
name = "a"
action = "accept"
to = ["dmz"]
nat = true
"#, &[
        r#"8:7 error: port `dmz` has no address that sessions of the policy could get | add a virtual address of the family that the policy matches"#,
    ]),
    (BASE, r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.1/24"]
[[policy]]
name = "a"
action = "accept"
from = ["lan"]
to = ["dmz"]
nat = true
"#, &[
        r#"10:7 warning: port `dmz` has no IPv6 address: IPv6 sessions are dropped | add one, or limit `source` to IPv4 prefixes"#,
    ]),
    (BASE, r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.1/24"]
[[policy]]
name = "a"
action = "accept"
to = ["dmz"]
source = ["10.0.0.0/8"]
nat = true
"#, &[
    ]),
    (BASE, r#"[[policy]]
name = "a"
action = "accept"
from = ["lan"]
service = ["tcp"]
[[policy]]
name = "b"
action = "accept"
from = ["lan"]
source = ["10.0.0.0/8"]
service = ["tcp/80-90"]
[[policy]]
name = "c"
action = "accept"
from = ["lan"]
service = ["udp"]
"#, &[
        r#"7:8 warning: policy `b` is never reached: `a` before it matches all that it matches | move it up, or remove it"#,
    ]),
    (BASE, r#"[[policy]]
name = "a"
action = "accept"
source = ["0.0.0.0/0", "::/0"]
[[policy]]
name = "b"
action = "accept"
"#, &[
        r#"6:8 warning: policy `b` is never reached: `a` before it matches all that it matches | move it up, or remove it"#,
    ]),
    // Pools.
    (BASE, r#"[[nat-pool]]
name = "p"
addresses = ["10.0.2.9-10.0.2.8", "10.0.2.8-fd00::1", "10.0.2.300", "10.0.2.255", "10.0.2.1-10.9.0.0"]
ports = "0-99"
"#, &[
        r#"3:14 error: `10.0.2.9-10.0.2.8` ends before it begins | write "10.0.2.8-10.0.2.9""#,
        r#"3:35 error: `10.0.2.8-fd00::1` begins in one address family and ends in the other"#,
        r#"3:55 error: `10.0.2.300` can't be read as an address | write it as in "10.0.0.10-10.0.0.12""#,
        r#"3:69 error: `10.0.2.255` is the broadcast address"#,
        r#"3:83 error: the pools have more than 4096 addresses"#,
        r#"4:9 error: `0` is no port | ports are 1 to 65535"#,
    ]),
    (BASE, r#"[[nat-pool]]
name = "p"
addresses = ["10.0.2.8-10.0.2.9", "10.0.2.9", "10.0.7.1"]
[[nat-pool]]
name = "q"
addresses = ["10.0.2.8"]
ports = "60000-60099"
[[nat-pool]]
name = "r"
addresses = []
"#, &[
        r#"3:35 error: `10.0.2.9` is in the pool already"#,
        r#"3:47 warning: the addresses are outside the networks of all ports | hosts on the link ask only for addresses of their network: the others need a route to the gateway"#,
        r#"6:14 error: `10.0.2.8` is in pool `p` already | give the pools addresses of their own, or `ports` that do not overlap"#,
        r#"8:1 error: the pool has no addresses"#,
    ]),
    (BASE, r#"[[nat-pool]]
name = "p"
addresses = ["10.0.2.8"]
[[policy]]
name = "a"
action = "accept"
nat-pool = "p"
source = ["fd00::/16"]
"#, &[
        r#"7:12 error: pool `p` has no address that sessions of the policy could get | add a virtual address of the family that the policy matches"#,
    ]),
    // Forwards.
    (BASE, r#"[[forward]]
name = "web"
port = "wan"
protocol = "tcp"
external = "10.0.1.1:80"
internal = "fd00:1::5:80"
"#, &[
        r#"5:12 error: `10.0.1.1` is no virtual address of port `wan` | it is one of port `lan`"#,
        r#"6:12 error: `fd00:1::5:80` is no address with a port | add brackets and a port, such as "[fd00:1::5:80]:8080""#,
    ]),
    (BASE, r#"[[forward]]
name = "web"
port = "wan"
protocol = "tcp"
external = "10.0.2.9:80"
internal = "[fd00:1::5]:80"
"#, &[
        r#"5:12 error: `10.0.2.9` is no virtual address of port `wan` | add it to the port, or to a `[[nat-pool]]`"#,
        r#"6:12 error: a forward can't change between IPv4 and IPv6 | give both in the same address family"#,
    ]),
    (BASE, r#"[[forward]]
name = "web"
port = "wan"
protocol = "tcp"
external = "10.0.2.1:80"
internal = "10.0.1.1:80"
[[forward]]
name = "web2"
port = "wan"
protocol = "tcp"
external = "10.0.2.1:80"
internal = "127.0.0.1:80"
[[forward]]
name = "web3"
port = "wan"
protocol = "icmp"
external = "10.0.2.1:0"
internal = "10.0.1.5"
"#, &[
        r#"6:12 error: `10.0.1.1` is a virtual address of the gateway | give the server's address"#,
        r#"11:12 error: forward `web` has the same external address and port"#,
        r#"12:12 error: `127.0.0.1` is a loopback address | give the server's address"#,
        r#"16:12 error: `icmp` is no protocol | one of tcp, udp"#,
        r#"17:12 error: port 0 can't be used | ports are 1 to 65535"#,
        r#"18:12 error: `10.0.1.5` is no address with a port | add a port, such as "10.0.1.5:8080""#,
    ]),
    // High availability.
    (BASE, r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"1:1 error: `[ha]` needs a node key | make one with `tandemgw keygen` and name it with `key` in `[node]`"#,
    ]),
    (BASE_HA, r#"[ha]
"#, &[
        r#"1:1 error: there is no link to the peers | add an `[[ha.link]]` with `interface` and `listen`"#,
        r#"1:1 error: there is no peer | add an `[[ha.peer]]` with `name`, `addresses` and `public-key`"#,
        r#"1:1 error: `group-id` is missing in `ha`"#,
    ]),
    (BASE_HA, r#"[ha]
group-id = 300
heartbeat-interval = "0ms"
heartbeat-lost-threshold = 1
monitor = ["lan", "wann"]
pickup-guarantee = "on"
session-pick-up = true
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"2:12 error: `group-id` is 300; it must be 1 to 255"#,
        r#"3:22 error: `heartbeat-interval` is 0s; it must be 1ms to 10s"#,
        r#"4:28 error: `heartbeat-lost-threshold` is 1; it must be 2 to 60"#,
        r#"5:19 error: unknown port `wann` | did you mean `wan`?"#,
        r#"6:20 error: `on` is no pickup-guarantee | one of off, bounded, strict"#,
        r#"7:1 error: unknown key `session-pick-up` in `ha` | did you mean `session-pickup`?"#,
    ]),
    (BASE_HA, r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "0.0.0.0:7030"
[[ha.link]]
interface = "sync1"
listen = "10.0.1.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"5:10 error: `0.0.0.0` is the unspecified address | give an address that the unit alone has on this link"#,
        r#"8:10 error: `10.0.1.1` is a virtual address | give an address that this unit alone has"#,
        r#"11:14 error: the peer has 1 addresses, but there are 2 links | give one address a link, in the order of the links"#,
    ]),
    (BASE_HA, r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "gw"
addresses = ["10.0.9.1:7030", "[fe80::1]:7030"]
public-key = "AAEC"
"#, &[
        r#"7:8 error: the peer is named `gw`, as this unit is | give each unit a name of its own"#,
        r#"8:14 error: `10.0.9.1:7030` is used twice"#,
        r#"8:31 error: the peer has 2 addresses, but there are 1 links | give one address a link, in the order of the links"#,
        r#"8:31 error: `fe80::1` is a link-local address | give an address that the unit alone has on this link"#,
        r#"9:14 error: the public key has 3 bytes, not 32 | copy what `tandemgw pubkey` prints on the peer"#,
    ]),
    (BASE_HA, r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["[fd00:9::2]:7030"]
public-key = "not base64!"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
[[ha.peer]]
name = "b"
addresses = ["10.0.9.3:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"8:14 error: `[fd00:9::2]:7030` can't be reached from 10.0.9.1:7030 | give both in the same address family"#,
        r#"9:14 error: the public key is not valid base64 | copy what `tandemgw pubkey` prints on the peer"#,
        r#"11:8 error: a second peer named `b` | each peer needs a name of its own"#,
        r#"15:8 error: a second peer named `b` | each peer needs a name of its own"#,
        r#"17:14 error: another peer has the same public key | copy what `tandemgw pubkey` prints on this peer"#,
    ]),
    (BASE_HA, r#"[ha]
group-id = 7
session-pickup-delay = "2s"
pickup-guarantee = "strict"
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"4:20 warning: `pickup-guarantee` waits for sessions that `session-pickup-delay` holds back | remove one of them"#,
    ]),
    (BASE_HA, r#"[ha]
group-id = 7
session-pickup = false
pickup-guarantee = "strict"
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"4:20 warning: `pickup-guarantee` has no effect without `session-pickup`"#,
    ]),
    // The node.
    ("", r#"[node]
name = "a/b"
key = ""
control-socket = "/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
max-sessions = 1000
routing-table = 254
[[port]]
name = "lan"
interface = ""
"#, &[
        r#"2:8 error: the name contains '/' | use letters, digits, `-`, `_` and `.`"#,
        r#"3:7 error: the path is empty"#,
        r#"4:18 error: the path has 108 bytes, more than 107 | the kernel takes no longer path for a socket"#,
        r#"5:16 error: `max-sessions` is 1000; it must be 1024 to 16777216"#,
        r#"6:17 error: `routing-table` is 254; it must be 256 to 32000"#,
        r#"9:13 error: the name is empty"#,
    ]),
];
