//! A changed configuration while sessions live.

use std::path::Path;

use tandemgw_core::config::{self, Config};
use tandemgw_core::event::{DropReason, Offload, Output, Verdict};
use tandemgw_core::gateway::Reloaded;
use tandemgw_core::time::Time;

use testkit::lab::{CONFIG, LAN, Lab, Net, WAN};
use testkit::packets::{fragments, udp};

fn parse(text: &str) -> Config {
    config::parse(Path::new("test.toml"), text).unwrap().0
}

fn reload(lab: &mut Lab, text: &str) -> Reloaded {
    let reloaded = lab.gateway.reload(lab.now, &parse(text)).unwrap();
    lab.gateway.check_invariants();
    lab.settle();
    lab.gateway.check_invariants();
    reloaded
}

#[test]
fn a_session_stays_as_long_as_a_policy_accepts_it() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = udp((net.host, 40000), (net.server, 53));
        let out = udp((net.wan_vip, 40000), (net.server, 53));
        lab.forwards(LAN, &query, &out, "udp+1");
        // By another policy, and without translation for new ones: it keeps its own.
        let other = CONFIG
            .replace("\"lan-out\"", "\"plain\"")
            .replace("nat = true", "");
        reload(&mut lab, &other);
        assert_eq!(lab.moved().1, "");
        lab.forwards(LAN, &query, &out, "");
        let policy = lab.gateway.page(0, 1, lab.now).0.next().unwrap().policy;
        assert_eq!(lab.gateway.policy_name(policy), "plain");
        let second = udp((net.host, 40001), (net.server, 53));
        lab.forwards(LAN, &second, &second, "udp+1");

        let forbidden = other.replace("\"udp/69\"", "\"udp/53\"");
        reload(&mut lab, &forbidden);
        assert_eq!(lab.moved().1, "cleared+2 forbidden+2 udp-2");
        lab.drops(LAN, &query, DropReason::PolicyDrop);
    }
}

/// A fragment without ports goes where its first one went. If the rules have changed since, it
/// waits for one that the new rules accept.
#[test]
fn a_later_fragment_does_not_follow_rules_of_before() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = udp((net.host, 40000), (net.server, 53)).payload(&[7; 300]);
        let pieces = fragments(&query.bytes(), 77, &[80, 160]);
        for piece in &pieces[..2] {
            let seen = lab.send_bytes(LAN, piece.clone(), Offload::default());
            assert_eq!(seen.verdict, Verdict::Forward);
        }
        let forbidden = CONFIG.replace("\"udp/69\"", "\"udp/53\"");
        reload(&mut lab, &forbidden);
        let seen = lab.send_bytes(LAN, pieces[2].clone(), Offload::default());
        assert_eq!((seen.verdict, seen.outputs), (Verdict::Consumed, vec![]));
    }
}

#[test]
fn a_session_ends_with_its_forward_and_with_its_address() {
    const POOL: &str =
        "[[nat-pool]]\nname = \"pool\"\naddresses = [\"10.77.2.9\", \"fd77:2::9\"]\n";
    for net in Net::both() {
        let pooled = CONFIG.replace("nat = true", "nat-pool = \"pool\"") + POOL;
        let mut lab = Lab::of(&pooled);
        let address = match net.host.is_v4() {
            true => testkit::lab::ip("10.77.2.9"),
            false => testkit::lab::ip("fd77:2::9"),
        };
        let query = udp((net.host, 40000), (net.server, 53));
        let out = udp((address, 40000), (net.server, 53));
        lab.forwards(LAN, &query, &out, "udp+1");
        // Its pool is no longer used, but there.
        reload(&mut lab, &(CONFIG.to_owned() + POOL));
        assert_eq!(lab.moved().1, "");
        lab.forwards(LAN, &query, &out, "");
        lab.forwards(WAN, &out.answer(), &query.answer(), "");
        // Its address is ours no more.
        reload(&mut lab, CONFIG);
        assert_eq!(lab.moved().1, "cleared+1 forbidden+1 udp-1");

        let dns = |port: &str| {
            let forward = |name: &str, wan: &str, web: &str| {
                format!(
                    "[[forward]]\nname = \"{name}\"\nport = \"wan\"\nprotocol = \"udp\"\n\
                     external = \"{wan}:53\"\ninternal = \"{web}:{port}\"\n"
                )
            };
            let policy = "[[policy]]\nname = \"dns\"\nfrom = [\"wan\"]\naction = \"accept\"\n";
            let v4 = forward("dns4", "10.77.2.1", "10.77.1.100");
            let v6 = forward("dns6", "[fd77:2::1]", "[fd77:1::100]");
            format!("{CONFIG}{policy}{v4}{v6}")
        };
        reload(&mut lab, &dns("5353"));
        let query = udp((net.server, 40000), (net.wan_vip, 53));
        let inside = udp((net.server, 40000), (net.web, 5353));
        lab.forwards(WAN, &query, &inside, "udp+1");
        reload(&mut lab, &dns("5353").replace("\"dns\"", "\"other\""));
        assert_eq!(lab.moved().1, "");
        reload(&mut lab, &dns("5354"));
        assert_eq!(lab.moved().1, "cleared+1 forbidden+1 udp-1");
        let inside = udp((net.server, 40000), (net.web, 5354));
        lab.forwards(WAN, &query, &inside, "udp+1");
        reload(&mut lab, CONFIG);
        assert_eq!(lab.moved().1, "cleared+1 forbidden+1 udp-1");
    }
}

#[test]
fn a_pass_that_is_under_way_keeps_another_reload_waiting() {
    let mut lab = Lab::new();
    for net in Net::both() {
        let query = udp((net.host, 40000), (net.server, 53));
        let out = udp((net.wan_vip, 40000), (net.server, 53));
        lab.forwards(LAN, &query, &out, "udp+1");
    }
    let drop_all = parse(&CONFIG.replace("\"accept\"", "\"drop\""));
    lab.gateway.reload(lab.now, &drop_all).unwrap();
    assert!(lab.gateway.is_reloading());
    assert_eq!(lab.gateway.poll_timeout(lab.now), Some(lab.now));
    assert!(lab.gateway.reload(lab.now, &parse(CONFIG)).is_err());
    assert_eq!(lab.gateway.config(), &drop_all);
    lab.settle();
    assert!(!lab.gateway.is_reloading());
    assert_eq!(lab.moved().1, "cleared+2 forbidden+2 udp-2");
    lab.gateway.reload(lab.now, &parse(CONFIG)).unwrap();
}

#[test]
fn timeouts_hold_for_sessions_that_are_there() {
    let mut lab = Lab::new();
    let net = Net::both()[0];
    let query = udp((net.host, 40000), (net.server, 53));
    let out = udp((net.wan_vip, 40000), (net.server, 53));
    lab.forwards(LAN, &query, &out, "udp+1");
    let reloaded = reload(
        &mut lab,
        &format!("{CONFIG}[timeouts]\nudp-unreplied = \"5s\"\n"),
    );
    assert_eq!(reloaded.applied[0].what, "120s to 5s");
    assert!(!reloaded.addresses_changed);
    assert!(!lab.gateway.is_reloading(), "no rule has changed");
    lab.pass(std::time::Duration::from_secs(4));
    assert_eq!(lab.sessions(), 1);
    lab.pass(std::time::Duration::from_secs(3));
    assert_eq!(lab.sessions(), 0);
}

#[test]
fn new_addresses_are_announced() {
    let mut lab = Lab::new();
    let pool = "[[nat-pool]]\nname = \"pool\"\naddresses = [\"10.77.2.9\"]\n";
    reload(&mut lab, &format!("{CONFIG}{pool}"));
    let (outputs, moved) = lab.moved();
    assert_eq!(moved, "");
    let wanted = [10, 77, 2, 9];
    let announces = |output: &Output| {
        matches!(output, Output::Frame { port, bytes }
            if *port == WAN && bytes.windows(4).any(|window| window == wanted))
    };
    assert!(outputs.iter().any(announces), "{outputs:?}");
}

#[test]
fn a_switch_that_needs_ha_is_refused_without() {
    let mut lab = Lab::new();
    let refused = lab.gateway.set_switch(Time::ZERO, "override", "true");
    assert_eq!(refused, Err(config::SwitchError::Standalone));
}
