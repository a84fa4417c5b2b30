//! Servers behind forwards, and who goes past those.

use tandemgw_core::event::{DropReason, Verdict};
use tandemgw_core::gateway::Scope;
use tandemgw_core::policy::Mismatch;

use testkit::lab::{CONFIG, DMZ, Lab, Net, WAN};
use testkit::packets::{SYN, tcp};

/// The config whose policy for the server says this.
fn with(line: &str) -> String {
    let name = "name = \"web\"";
    CONFIG.replacen(name, &format!("{name}\n{line}"), 1)
}

#[test]
fn a_forwards_server_is_not_reached_by_its_own_address_unless_a_policy_says_so() {
    for net in Net::both() {
        for (line, by_forward, past_it) in [
            ("", true, false),
            ("forwarded = true", true, false),
            ("forwarded = false", false, true),
        ] {
            let mut lab = Lab::of(&with(line));
            let by = tcp((net.server, 40000), (net.wan_vip, 8080), SYN, 1, 0);
            let past = tcp((net.server, 40001), (net.web, 80), SYN, 1, 0);
            for (packet, passes) in [(by, by_forward), (past, past_it)] {
                let verdict = match passes {
                    true => Verdict::Forward,
                    false => Verdict::Drop(DropReason::NoPolicy),
                };
                let explained = lab
                    .gateway
                    .explain(lab.now, WAN, &packet.bytes(), Scope::Flow)
                    .expect("a whole packet");
                let told = explained
                    .passed_over
                    .mismatches
                    .contains(&Mismatch::Forwarded);
                assert_eq!((explained.decision.is_some(), told), (passes, !passes));
                assert_eq!(
                    lab.send(WAN, &packet).verdict,
                    verdict,
                    "{line}: {packet:?}"
                );
            }
        }
    }
}

#[test]
fn from_inside_the_own_address_is_as_before() {
    for net in Net::both() {
        let policy = "[[policy]]\nname = \"dmz-web\"\nfrom = [\"dmz\"]\nto = [\"lan\"]\naction = \"accept\"\n";
        let mut lab = Lab::with(policy);
        let inside = tcp((net.dmz_host, 40000), (net.web, 80), SYN, 1, 0);
        assert_eq!(lab.send(DMZ, &inside).verdict, Verdict::Forward);
    }
}
