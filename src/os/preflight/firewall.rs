//! Firewalls of this machine that would drop what the gateway forwards.
//!
//! Each packet passes the kernel's forward hook twice: to the TUN device and from it. Rules of
//! Docker, ufw and others there drop everything unknown. The rules are read with the tools that
//! made them; if these are missing, nothing is reported.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{Check, MachineProblem};
use tandemgw_core::config::Config;

/// A rule that names the gateway's devices was made for it, whatever it says.
const DEVICES: &str = "tgw-";

/// The tables of a firewall that track connections do it twice for each packet that the gateway
/// forwards, once on each side of it. Words of nft(8) have their colon: a rule may also name one as
/// a value, such as the ICMP type `redirect`.
const TRACKING: [&str; 9] = [
    "\"ct\":",
    "\"masquerade\":",
    "\"snat\":",
    "\"dnat\":",
    "\"redirect\":",
    "\"conntrack\"",
    "\"MASQUERADE\"",
    "\"SNAT\"",
    "\"DNAT\"",
];

/// Chains that drop what is forwarded.
pub(super) fn check(config: &Config) -> Check {
    let ruleset = nft_ruleset();
    let found = match ruleset {
        Some(_) => "no chain drops what is forwarded",
        None => "can't tell: nft (of nftables) is not installed",
    };
    let interfaces = config.ports.iter().map(|port| port.interface.as_str());
    let interfaces: Vec<&str> = interfaces.collect();
    let mut problems = ruleset.map_or_else(Vec::new, |json| nftables(&json, &interfaces));
    for (tool, tables) in [
        ("iptables-legacy", "/proc/net/ip_tables_names"),
        ("ip6tables-legacy", "/proc/net/ip6_tables_names"),
    ] {
        // If there is no such table yet, the tool would create one.
        let names = fs::read_to_string(tables).unwrap_or_default();
        if names.lines().any(|name| name == "filter") {
            let rules = output(tool, &["--list-rules"]);
            problems.extend(rules.and_then(|rules| legacy(tool, &rules)));
        }
    }
    Check::new("firewall", found, problems)
}

/// Connection tracking by the kernel.
pub(super) fn connection_tracking() -> Check {
    let problem = nft_ruleset().and_then(|json| tracking(&json));
    let entries = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    let found = match entries {
        Ok(count) => format!(
            "no rule needs it for what is forwarded; {} entries",
            count.trim()
        ),
        Err(_) => "the kernel does not track connections".to_owned(),
    };
    Check::new("conntrack", found, problem)
}

fn nft_ruleset() -> Option<String> {
    // Terse: without the elements of sets, of which there can be very many.
    output("nft", &["--json", "--terse", "list", "ruleset"])
}

/// The problem that a rule has turned on connection tracking, and none exempts the gateway's
/// packets.
fn tracking(json: &str) -> Option<MachineProblem> {
    let ruleset: Value = serde_json::from_str(json).ok()?;
    let rules = || {
        let objects = ruleset["nftables"].as_array().into_iter().flatten();
        objects.map(|object| &object["rule"])
    };
    let text = |rule: &Value| rule["expr"].to_string();
    let is_exempt = rules()
        .map(text)
        .any(|expr| expr.contains(DEVICES) && expr.contains("\"notrack\""));
    let tracks = |rule: &&Value| {
        let expr = text(rule);
        TRACKING.iter().any(|word| expr.contains(word))
    };
    let rule = rules().find(tracks).filter(|_| !is_exempt)?;
    let part = |key: &str| rule[key].as_str().unwrap_or("?").to_owned();
    Some(MachineProblem::warning(
        format!(
            "a rule of the nftables chain {} of table {} {} has the kernel track connections: it does so twice for each packet that the gateway forwards, and drops them when its table is full",
            part("chain"),
            part("family"),
            part("table"),
        ),
        format!(
            "nft 'add table inet tandemgw; add chain inet tandemgw raw {{ type filter hook prerouting priority raw; }}; \
             add rule inet tandemgw raw iifname \"{DEVICES}*\" notrack; \
             add rule inet tandemgw raw fib daddr type != local notrack', and the same in /etc/nftables.conf"
        ),
    ))
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    String::from_utf8(output.stdout).ok()
}

fn nftables(json: &str, interfaces: &[&str]) -> Vec<MachineProblem> {
    let ruleset: Value = serde_json::from_str(json).unwrap_or_default();
    let Some(objects) = ruleset["nftables"].as_array() else {
        return Vec::new();
    };
    let rules = || objects.iter().map(|object| &object["rule"]);
    let names = |chain: &Value, word: &str| {
        let mut of_table = rules()
            .filter(|rule| rule["family"] == chain["family"] && rule["table"] == chain["table"]);
        of_table.any(|rule| rule["expr"].to_string().contains(word))
    };
    let drops = |chain: &&Value| {
        let is_of = |rule: &&Value, keys: [&str; 3], names: [&str; 3]| {
            (0..3).all(|i| rule[keys[i]] == chain[names[i]])
        };
        let keys = ["family", "table", "chain"];
        let mut own = rules().filter(|rule| is_of(rule, keys, ["family", "table", "name"]));
        let last = own.next_back();
        chain["type"] == "filter" && (chain["policy"] == "drop" || last.is_some_and(is_drop))
    };
    let chains = objects.iter().map(|object| &object["chain"]);
    let problem = |chain: &Value| {
        let hook = chain["hook"].as_str()?;
        let of_ip = ["ip", "ip6", "inet"].iter().any(|f| chain["family"] == *f);
        match hook {
            "forward" | "prerouting" | "postrouting" if of_ip => {
                (!names(chain, DEVICES)).then(|| drops_forwarded(chain))
            }
            "ingress" | "egress" => {
                let devices = devices_of(chain);
                let is_ours = |name: &&str| devices.contains(&format!("\"{name}\""));
                interfaces.iter().any(is_ours).then(|| drops_device(chain))
            }
            "input" | "output" if chain["family"] == "arp" => Some(drops_neighbors(chain)),
            "input" | "output" if of_ip && chain["family"] != "ip" => {
                let knows_neighbors = ["icmpv6", "ipv6-icmp", "icmp6"];
                let knows = knows_neighbors.iter().any(|word| names(chain, word));
                (!knows).then(|| drops_neighbors(chain))
            }
            _ => None,
        }
    };
    chains.filter(drops).filter_map(problem).collect()
}

/// Family, table and name of a chain.
fn place(chain: &Value) -> [String; 3] {
    ["family", "table", "name"].map(|key| chain[key].as_str().unwrap_or("?").to_owned())
}

/// The devices that a chain is at, in quotes. Some versions of nft leave them out of their JSON.
fn devices_of(chain: &Value) -> String {
    if !chain["dev"].is_null() {
        return chain["dev"].to_string();
    }
    let [family, table, name] = place(chain);
    let listed = output("nft", &["--terse", "list", "chain", &family, &table, &name]);
    listed.unwrap_or_default()
}

fn drops_forwarded(chain: &Value) -> MachineProblem {
    let [family, table, name] = place(chain);
    let rule =
        |key| format!("nft 'insert rule {family} {table} {name} {key} \"{DEVICES}*\" accept'");
    MachineProblem::warning(
        format!(
            "the nftables chain {name} of table {family} {table} drops what the gateway forwards, \
             unless a rule accepts it"
        ),
        format!(
            "{} and {}, or do the same in the firewall that made the chain",
            rule("iifname"),
            rule("oifname")
        ),
    )
}

fn drops_device(chain: &Value) -> MachineProblem {
    let [family, table, name] = place(chain);
    MachineProblem::warning(
        format!(
            "the nftables chain {name} of table {family} {table} drops what a port brings or sends, \
             unless a rule accepts it"
        ),
        format!(
            "nft list chain {family} {table} {name}: let it accept what the gateway needs, or remove \
             it"
        ),
    )
}

/// The kernel looks for hosts with packets that pass these hooks as its own.
fn drops_neighbors(chain: &Value) -> MachineProblem {
    let [family, table, name] = place(chain);
    let (what, hosts, accepted) = match family.as_str() {
        "arp" => ("ARP", "IPv4 hosts", "accept"),
        _ => (
            "neighbour discovery",
            "IPv6 hosts",
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept",
        ),
    };
    MachineProblem::warning(
        format!(
            "the nftables chain {name} of table {family} {table} drops {what}, unless a rule accepts \
             it: the kernel does not find {hosts} by itself, and the gateway has to tell it"
        ),
        format!(
            "nft 'insert rule {family} {table} {name} {accepted}', or the same in the firewall that \
             made the chain"
        ),
    )
}

/// Whether a rule drops or rejects everything that reaches it.
fn is_drop(rule: &Value) -> bool {
    let steps = rule["expr"].as_array().into_iter().flatten();
    let names = steps.filter_map(|step| step.as_object()?.keys().next());
    let verdict: Vec<&String> = names.filter(|name| *name != "counter").collect();
    matches!(verdict[..], [name] if name == "drop" || name == "reject")
}

fn legacy(tool: &str, rules: &str) -> Option<MachineProblem> {
    let drops = rules.lines().any(|line| line == "-P FORWARD DROP");
    (drops && !rules.contains(DEVICES)).then(|| {
        MachineProblem::warning(
            format!("the chain FORWARD of {tool} drops what the gateway forwards, unless a rule accepts it"),
            format!("{tool} -I FORWARD -i {DEVICES}+ -j ACCEPT and {tool} -I FORWARD -o {DEVICES}+ -j ACCEPT"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(policy: &str, rules: &[&str]) -> String {
        let rules: String = rules
            .iter()
            .map(|expr| {
                format!(
                    r#",{{"rule":{{"family":"ip","table":"filter","chain":"FORWARD","expr":{expr}}}}}"#
                )
            })
            .collect();
        format!(
            r#"{{"nftables":[{{"metainfo":{{}}}},{{"chain":{{"family":"ip","table":"filter",
            "name":"FORWARD","type":"filter","hook":"forward","policy":"{policy}"}}}}{rules}]}}"#
        )
    }

    #[test]
    fn a_chain_that_drops_by_policy_or_at_its_end_is_told() {
        const DROP: &str = r#"[{"counter":{"packets":0,"bytes":0}},{"drop":null}]"#;
        const REJECT: &str = r#"[{"reject":{"type":"icmpx"}}]"#;
        const SOME: &str = r#"[{"match":{"op":"in","right":"invalid"}},{"drop":null}]"#;
        const OURS: &str = r#"[{"match":{"op":"==","right":"tgw-*"}},{"accept":null}]"#;
        for (policy, rules, is_told) in [
            ("accept", &[][..], false),
            ("drop", &[], true),
            ("drop", &[SOME], true),
            ("drop", &[OURS], false),
            ("accept", &[SOME], false),
            ("accept", &[SOME, DROP], true),
            ("accept", &[REJECT], true),
            ("accept", &[OURS, REJECT], false),
        ] {
            let problems = nftables(&ruleset(policy, rules), &[]);
            assert_eq!(problems.len(), usize::from(is_told), "{policy} {rules:?}");
            assert!(
                problems
                    .iter()
                    .all(|p| !p.fatal && p.what.contains("ip filter"))
            );
        }
        assert_eq!(nftables("no JSON", &[]), []);
    }

    #[test]
    fn tracking_of_what_is_forwarded_is_told_unless_it_is_exempt() {
        const STATE: &str =
            r#"[{"match":{"left":{"ct":{"key":"state"}},"right":"invalid"}},{"drop":null}]"#;
        const MASQUERADE: &str = r#"[{"masquerade":null}]"#;
        const XTABLES: &str = r#"[{"xt":{"type":"target","name":"MASQUERADE"}}]"#;
        const REDIRECTED: &str = r#"[{"redirect":{"port":80}}]"#;
        const ICMP: &str = r#"[{"match":{"op":"==","right":"redirect"}},{"drop":null}]"#;
        const EXEMPT: &str = r#"[{"match":{"op":"==","right":"tgw-*"}},{"notrack":null}]"#;
        const OTHER: &str = r#"[{"counter":{"packets":0,"bytes":0}},{"accept":null}]"#;
        for (rules, is_told) in [
            (&[][..], false),
            (&[OTHER], false),
            (&[STATE], true),
            (&[OTHER, MASQUERADE], true),
            (&[XTABLES], true),
            (&[REDIRECTED], true),
            (&[ICMP], false),
            (&[EXEMPT, STATE], false),
        ] {
            let problem = tracking(&ruleset("accept", rules));
            assert_eq!(problem.is_some(), is_told, "{rules:?}");
            assert!(problem.is_none_or(|p| !p.fatal && p.remedy.contains("notrack")));
        }
        assert_eq!(tracking("no JSON"), None);
    }

    #[test]
    fn a_legacy_chain_that_drops_is_told() {
        let rules = "-P INPUT ACCEPT\n-P FORWARD DROP\n";
        assert!(legacy("iptables-legacy", rules).is_some());
        let ours = format!("{rules}-A FORWARD -i tgw-+ -j ACCEPT\n");
        assert_eq!(legacy("iptables-legacy", &ours), None);
        assert_eq!(legacy("iptables-legacy", "-P FORWARD ACCEPT\n"), None);
    }
}
