//! ARP and Neighbor Discovery: answers, claims of others, and announcements.

use std::time::Duration;

use tandemgw_core::event::{LinkState, Output};
use tandemgw_core::flow::{Addr, PortId};
use tandemgw_core::gateway::Role;
use tandemgw_core::packet::neighbor::{self, Neighbor, Solicit};

use testkit::lab::{CONFIG, LAN, Lab, Net, WAN, ip, link, mac};

const THEIRS: [u8; 6] = [2, 0, 0, 0, 9, 9];

fn ask(lab: &mut Lab, port: PortId, frame: &[u8]) -> (Vec<Output>, String) {
    lab.gateway.handle_frame(lab.now, port, frame);
    lab.moved()
}

#[test]
fn answers_for_its_own_addresses_on_their_port_only() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let question = |target| neighbor::solicit(target, net.host, THEIRS);
        let solicit = Solicit {
            target: net.lan_vip,
            sender: net.host,
            sender_mac: THEIRS,
        };
        let answer = Output::Frame {
            port: LAN,
            bytes: neighbor::reply(&solicit, mac(LAN)),
        };
        assert_eq!(
            ask(&mut lab, LAN, &question(net.lan_vip)),
            (vec![answer], String::new())
        );
        for (port, target) in [(WAN, net.lan_vip), (LAN, net.wan_vip), (LAN, net.neighbor)] {
            assert_eq!(
                ask(&mut lab, port, &question(target)),
                (vec![], String::new())
            );
        }
        let probe = neighbor::probe(net.lan_vip, THEIRS);
        assert_eq!(ask(&mut lab, LAN, &probe).0.len(), 1);
        let mut lab = Lab::standby(CONFIG);
        assert_eq!(
            ask(&mut lab, LAN, &question(net.lan_vip)),
            (vec![], String::new())
        );
    }
}

#[test]
fn a_pool_in_the_network_of_a_port_is_answered_for() {
    let pool = "\n[[nat-pool]]\nname = \"pool\"\naddresses = [\"10.77.2.10-10.77.2.12\"]\n";
    let mut lab = Lab::with(pool);
    let question = |target| neighbor::solicit(ip(target), ip("10.77.2.254"), THEIRS);
    assert_eq!(ask(&mut lab, WAN, &question("10.77.2.11")).0.len(), 1);
    assert_eq!(ask(&mut lab, WAN, &question("10.77.2.13")).0.len(), 0);
    assert_eq!(ask(&mut lab, LAN, &question("10.77.2.11")).0.len(), 0);
}

#[test]
fn a_claim_to_our_address_is_counted_and_defended_once_in_a_while() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let claim = |addr| neighbor::announce(addr, THEIRS).remove(0);
        let defence: Vec<Output> = neighbor::announce(net.lan_vip, mac(LAN))
            .into_iter()
            .map(|bytes| Output::Frame { port: LAN, bytes })
            .collect();
        assert_eq!(
            ask(&mut lab, LAN, &claim(net.lan_vip)),
            (defence.clone(), "conflicts+1".into())
        );
        assert_eq!(
            ask(&mut lab, LAN, &claim(net.lan_vip)),
            (vec![], "conflicts+1".into())
        );
        assert_eq!(
            ask(&mut lab, LAN, &claim(net.host)),
            (vec![], String::new())
        );
        assert_eq!(
            ask(&mut lab, WAN, &claim(net.lan_vip)),
            (vec![], String::new())
        );
        // Our own frames that come back.
        let ours = neighbor::announce(net.lan_vip, mac(LAN)).remove(0);
        assert_eq!(ask(&mut lab, LAN, &ours), (vec![], String::new()));
        lab.pass(Duration::from_secs(10));
        lab.outputs();
        assert_eq!(
            ask(&mut lab, LAN, &claim(net.lan_vip)),
            (defence, "conflicts+1".into())
        );
    }
}

/// Which addresses a list of outputs announces, by port.
fn announced(outputs: &[Output]) -> Vec<(PortId, Addr)> {
    let mut all: Vec<(PortId, Addr)> = outputs
        .iter()
        .map(|output| match output {
            Output::Frame { port, bytes } => match neighbor::parse_frame(bytes).unwrap() {
                Neighbor::Advertise(claim) => {
                    assert_eq!(claim.mac, mac(*port));
                    (*port, claim.addr)
                }
                other => panic!("{other:?}"),
            },
            other => panic!("no frame: {other:?}"),
        })
        .collect();
    all.dedup();
    all
}

fn all_addresses() -> Vec<(PortId, Addr)> {
    let of_port = |port: u8| {
        [
            ip(&format!("10.77.{port}.1")),
            ip(&format!("fd77:{port}::1")),
        ]
        .map(|addr| (PortId(u16::from(port) - 1), addr))
    };
    (1..=3).flat_map(of_port).collect()
}

#[test]
fn a_new_primary_announces_at_once_and_repeats() {
    let mut lab = Lab::standby(CONFIG);
    assert_eq!(lab.gateway.poll_timeout(lab.now), None);
    lab.gateway.start(lab.now);
    assert_eq!(announced(&lab.outputs()), all_addresses());
    for _ in 0..4 {
        lab.pass(Duration::from_millis(900));
        assert_eq!(lab.outputs(), []);
        lab.pass(Duration::from_millis(100));
        assert_eq!(announced(&lab.outputs()), all_addresses());
    }
    lab.pass(Duration::from_secs(60));
    assert_eq!(lab.outputs(), []);
    assert_eq!(lab.gateway.poll_timeout(lab.now), None);
}

#[test]
fn a_port_that_comes_up_is_announced_and_one_that_is_down_is_not() {
    let mut lab = Lab::new();
    lab.pass(Duration::from_secs(60));
    lab.outputs();
    lab.link(
        LAN,
        LinkState {
            up: false,
            ..link(LAN)
        },
    );
    assert_eq!(lab.outputs(), []);
    lab.gateway.start(lab.now);
    assert_eq!(lab.outputs(), []);
    lab.link(LAN, link(LAN));
    let outputs = lab.outputs();
    assert!(announced(&outputs).contains(&(LAN, ip("10.77.1.1"))));
    // A new hardware address is news as well; the same state again is not.
    lab.link(
        WAN,
        LinkState {
            mtu: 1400,
            ..link(WAN)
        },
    );
    assert_eq!(lab.outputs(), []);
    lab.link(
        WAN,
        LinkState {
            mac: THEIRS,
            ..link(WAN)
        },
    );
    assert!(!lab.outputs().is_empty());
}

#[test]
fn a_unit_that_steps_down_announces_no_more() {
    let mut lab = Lab::new();
    let group = tandemgw_core::flow::GroupId(0);
    lab.gateway.set_role(lab.now, group, Role::Standby);
    lab.pass(Duration::from_secs(10));
    assert_eq!(lab.outputs(), []);
    assert_eq!(lab.gateway.role_of(group), Role::Standby);
    for net in Net::both() {
        let claim = neighbor::announce(net.lan_vip, THEIRS).remove(0);
        assert_eq!(
            ask(&mut lab, LAN, &claim),
            (vec![], String::new()),
            "the primary may"
        );
    }
}
