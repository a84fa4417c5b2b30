//! Multicast through the core: who gets a stream, who is asked, and what survives the unit.

use std::time::Duration;

use tandemgw_core::capture::{CapturedFate, Filter, MAX_SNAPSHOT, Options, Record as Sight};
use tandemgw_core::event::{DropReason, LinkState, Offload, Output, RouteTarget};
use tandemgw_core::flow::{Addr, Family, PortId};
use tandemgw_core::gateway::{Gateway, PacketFate, Scope};
use tandemgw_core::multicast::ethernet;
use tandemgw_core::multicast::message::{
    self, Message, Query, Record, RecordKind, Sender, Version,
};
use tandemgw_core::time::Time;
use testkit::lab::{DMZ, LAN, Lab, PORTS, WAN, ip, link, mac};
use testkit::packets::{Pkt, fragments, udp};
use testkit::pair::Pair;

pub const POLICIES: &str = r#"
[[multicast-policy]]
name = "no-ads"
from = ["wan"]
to = ["lan"]
source = ["198.51.100.66", "2001:db8:7::66"]
group = ["239.0.0.0/8", "ff05::/16"]
action = "drop"

[[multicast-policy]]
name = "tv"
from = ["wan"]
to = ["lan", "dmz"]
group = ["239.1.0.0/16", "ff05::/32"]
action = "accept"

[[multicast-policy]]
name = "hidden"
from = ["wan"]
to = ["lan", "dmz"]
group = ["239.2.0.0/16", "ff05:2::/32"]
action = "accept"
snat = true

[[multicast-join]]
port = "dmz"
group = "239.1.9.9"
"#;

/// The addresses of a family.
pub struct Net {
    pub family: Family,
    pub sender: Addr,
    pub advertiser: Addr,
    pub host: Addr,
    pub group: Addr,
    pub hidden: Addr,
    pub vip: Addr,
}

pub fn nets() -> [Net; 2] {
    let of = |family, [sender, advertiser, host, group, hidden, vip]: [&str; 6]| Net {
        family,
        sender: ip(sender),
        advertiser: ip(advertiser),
        host: ip(host),
        group: ip(group),
        hidden: ip(hidden),
        vip: ip(vip),
    };
    [
        of(
            Family::V4,
            [
                "198.51.100.7",
                "198.51.100.66",
                "10.77.1.10",
                "239.1.1.1",
                "239.2.1.1",
                "10.77.1.1",
            ],
        ),
        of(
            Family::V6,
            [
                "2001:db8:7::7",
                "2001:db8:7::66",
                "fe80::10",
                "ff05::1:1",
                "ff05:2::1:1",
                "fd77:1::1",
            ],
        ),
    ]
}

fn lab() -> Lab {
    lab_of(POLICIES)
}

pub fn lab_of(policies: &str) -> Lab {
    let mut lab = Lab::with(policies);
    for port in PORTS {
        // The interfaces' own link-local addresses.
        let own = ip(&format!("fe80::a:{}", port.0 + 1));
        lab.gateway
            .handle_kernel_address(lab.now, own, Some(port), true);
    }
    lab.gateway.set_role(
        lab.now,
        tandemgw_core::flow::GroupId(0),
        tandemgw_core::gateway::Role::Primary,
    );
    lab.outputs();
    lab
}

fn frame(packet: &[u8], group: Addr) -> Vec<u8> {
    let ethertype: [u8; 2] = if group.is_v4() { [8, 0] } else { [0x86, 0xdd] };
    [
        &ethernet(&group)[..],
        &[2, 9, 9, 9, 9, 9],
        &ethertype,
        packet,
    ]
    .concat()
}

/// What the gateway makes of a packet: the port and packet of each copy.
fn copies(
    gateway: &mut Gateway,
    now: Time,
    port: PortId,
    packet: &[u8],
    group: Addr,
) -> Vec<(PortId, Vec<u8>)> {
    let (mut frame, offload) = (frame(packet, group), Offload::default());
    let count = gateway.handle_multicast(now, port, &mut frame, offload);
    let mut sent = Vec::new();
    for number in 0..count {
        if let Some(exit) = gateway.multicast_copy(number, &mut frame, offload) {
            assert_eq!(frame[..6], ethernet(&group));
            assert_eq!(frame[6..12], mac(exit), "from the port that it leaves by");
            sent.push((exit, frame[14..].to_vec()));
        }
    }
    sent
}

pub fn stream(sender: Addr, group: Addr) -> Pkt {
    udp((sender, 5004), (group, 5004)).hops(9)
}

/// Passes a packet to many, and gives the ports that it leaves by.
pub fn exits(lab: &mut Lab, port: PortId, packet: &Pkt, group: Addr) -> Vec<PortId> {
    let sent = copies(&mut lab.gateway, lab.now, port, &packet.bytes(), group);
    sent.into_iter().map(|(exit, _)| exit).collect()
}

pub fn dropped(lab: &Lab, reason: DropReason) -> u64 {
    lab.gateway.counters().dropped[reason as usize]
}

fn report(gateway: &mut Gateway, now: Time, port: PortId, host: Addr, record: Record) {
    let sender = Sender {
        mac: [2, 8, 8, 8, 8, 8],
        addr: host,
    };
    let mut frame = message::report_frame(&[record], sender);
    assert_eq!(
        gateway.handle_multicast(now, port, &mut frame, Offload::default()),
        0
    );
}

pub fn joins(lab: &mut Lab, port: PortId, host: Addr, group: Addr) {
    says(lab, port, host, RecordKind::ToExclude, group, &[]);
}

fn leaves(lab: &mut Lab, port: PortId, host: Addr, group: Addr) {
    says(lab, port, host, RecordKind::ToInclude, group, &[]);
}

fn says(lab: &mut Lab, port: PortId, host: Addr, kind: RecordKind, group: Addr, of: &[Addr]) {
    let record = Record {
        kind,
        group,
        sources: of.to_vec(),
    };
    report(&mut lab.gateway, lab.now, port, host, record);
}

/// What the gateway has said of memberships since the last call: port, sender, message.
pub fn said(outputs: Vec<Output>) -> Vec<(PortId, message::Received)> {
    let all = outputs.into_iter().filter_map(|output| match output {
        Output::Frame { port, bytes } if message::is_membership(&bytes[14..]) => {
            Some((port, message::parse(&bytes[14..]).unwrap()))
        }
        _ => None,
    });
    all.collect()
}

#[test]
fn a_stream_goes_where_hosts_want_it() {
    for net in nets() {
        let mut lab = lab();
        let packet = stream(net.sender, net.group);
        assert!(exits(&mut lab, WAN, &packet, net.group).is_empty());
        assert_eq!(dropped(&lab, DropReason::NoMember), 1);
        joins(&mut lab, LAN, net.host, net.group);
        let sent = copies(&mut lab.gateway, lab.now, WAN, &packet.bytes(), net.group);
        let expected = packet.clone().hops(8).bytes();
        assert_eq!(sent, [(LAN, expected)], "one hop less, all else the same");
        let host2 = if net.family == Family::V4 {
            ip("10.77.3.10")
        } else {
            net.host
        };
        joins(&mut lab, DMZ, host2, net.group);
        assert_eq!(exits(&mut lab, WAN, &packet, net.group), [LAN, DMZ]);
        leaves(&mut lab, LAN, net.host, net.group);
        assert_eq!(
            exits(&mut lab, WAN, &packet, net.group),
            [LAN, DMZ],
            "others may want it"
        );
        lab.pass(Duration::from_millis(999));
        assert_eq!(exits(&mut lab, WAN, &packet, net.group), [DMZ]);
        let views: Vec<_> = lab.gateway.multicast_page(None, 9, lab.now).collect();
        assert_eq!(views.len(), 1);
        let (view, policy) = &views[0].1[0];
        assert_eq!((view.in_port, view.out_port, *policy), (WAN, DMZ, "tv"));
        assert_eq!(view.packets, [4, 0]);
        lab.gateway.check_invariants();
    }
}

#[test]
fn what_must_not_pass_does_not_and_says_why() {
    for net in nets() {
        let mut lab = lab();
        joins(&mut lab, LAN, net.host, net.group);
        let tries = |sender: Addr, group: Addr, port: PortId, hops: u8| {
            (stream(sender, group).hops(hops), group, port)
        };
        let other = if net.family == Family::V4 {
            "239.7.1.1"
        } else {
            "ff05:7::1"
        };
        let near = if net.family == Family::V4 {
            "224.0.0.251"
        } else {
            "ff02::fb"
        };
        let unknown = if net.family == Family::V4 {
            "203.0.113.9"
        } else {
            "2001:db8:bad::9"
        };
        for ((packet, group, port), reason) in [
            (
                tries(net.sender, net.group, DMZ, 9),
                DropReason::ReversePath,
            ),
            (
                tries(ip(unknown), net.group, WAN, 9),
                DropReason::ReversePath,
            ),
            (tries(net.sender, ip(other), WAN, 9), DropReason::NoPolicy),
            (
                tries(net.sender, ip(near), WAN, 9),
                DropReason::NotForwardable,
            ),
            (tries(net.sender, net.group, WAN, 1), DropReason::HopLimit),
            (
                tries(net.advertiser, net.group, WAN, 9),
                DropReason::NoMember,
            ),
            (tries(net.sender, net.hidden, WAN, 9), DropReason::NoMember),
        ] {
            let before = dropped(&lab, reason);
            assert!(
                exits(&mut lab, port, &packet, group).is_empty(),
                "{reason:?}"
            );
            assert_eq!(dropped(&lab, reason), before + 1, "{reason:?}");
        }
        let own = if net.family == Family::V4 {
            "10.77.1.10"
        } else {
            "fd77:1::10"
        };
        let back = stream(ip(own), net.group);
        assert!(
            exits(&mut lab, LAN, &back, net.group).is_empty(),
            "from LAN to LAN"
        );
        assert_eq!(
            lab.gateway.multicast_count(),
            0,
            "nothing of this is remembered"
        );
    }
}

#[test]
fn what_another_unit_has_translated_is_not_sent_on() {
    for net in nets() {
        let mut lab = lab();
        joins(&mut lab, LAN, net.host, net.group);
        let vip = if net.family == Family::V4 {
            "10.77.2.1"
        } else {
            "fd77:2::1"
        };
        let echo = stream(ip(vip), net.group);
        assert!(exits(&mut lab, WAN, &echo, net.group).is_empty());
        assert_eq!(dropped(&lab, DropReason::SpoofedSource), 1);
    }
}

#[test]
fn a_translated_stream_comes_from_the_virtual_address() {
    for net in nets() {
        let mut lab = lab();
        joins(&mut lab, LAN, net.host, net.hidden);
        let packet = stream(net.sender, net.hidden);
        let sent = copies(&mut lab.gateway, lab.now, WAN, &packet.bytes(), net.hidden);
        assert_eq!(sent, [(LAN, packet.src(net.vip).hops(8).bytes())]);

        // The first fragment has the checksum, all of them the address.
        let big = stream(net.sender, net.hidden).payload(&[7; 3000]);
        let hidden = big.clone().src(net.vip).hops(8).bytes();
        let parts = fragments(&big.bytes(), 77, &[1024, 2048]);
        let expected = fragments(&hidden, 77, &[1024, 2048]);
        for (part, expected) in parts.into_iter().zip(expected) {
            let sent = copies(&mut lab.gateway, lab.now, WAN, &part, net.hidden);
            assert_eq!(sent, [(LAN, expected)]);
        }
    }
}

#[test]
fn hosts_choose_their_sources() {
    for net in nets() {
        let mut lab = lab();
        says(
            &mut lab,
            LAN,
            net.host,
            RecordKind::Allow,
            net.group,
            &[net.sender],
        );
        assert_eq!(
            exits(&mut lab, WAN, &stream(net.sender, net.group), net.group),
            [LAN]
        );
        let other = if net.family == Family::V4 {
            "198.51.100.8"
        } else {
            "2001:db8:7::8"
        };
        assert!(exits(&mut lab, WAN, &stream(ip(other), net.group), net.group).is_empty());
        says(
            &mut lab,
            LAN,
            net.host,
            RecordKind::Block,
            net.group,
            &[net.sender],
        );
        lab.pass(Duration::from_millis(999));
        assert!(exits(&mut lab, WAN, &stream(net.sender, net.group), net.group).is_empty());
    }
}

#[test]
fn it_asks_the_hosts_and_wants_of_the_senders() {
    for net in nets() {
        let mut lab = lab();
        lab.outputs();
        lab.pass(Duration::from_secs(11));
        let of = |all: &[(PortId, message::Received)], port: PortId| {
            let here = all
                .iter()
                .filter(|(at, it)| *at == port && it.from.family() == net.family);
            here.map(|(_, it)| it.clone()).collect::<Vec<_>>()
        };
        let all = said(lab.outputs());
        let own = if net.family == Family::V4 {
            ip("10.77.1.1")
        } else {
            ip("fe80::a:1")
        };
        let asked = of(&all, LAN);
        assert!(!asked.is_empty() && asked.iter().all(|it| it.from == own));
        assert!(
            asked
                .iter()
                .all(|it| matches!(&it.message, Message::Query(q) if q.group.is_none()))
        );
        let static_join = |it: &message::Received| matches!(&it.message, Message::Report(records) if records[0].group == ip("239.1.9.9"));
        assert!(of(&all, WAN).iter().all(static_join));

        joins(&mut lab, LAN, net.host, net.group);
        let wanted = of(&said(lab.outputs()), WAN);
        let Message::Report(records) = &wanted[0].message else {
            panic!("{wanted:?}");
        };
        assert_eq!(
            (records[0].kind, records[0].group),
            (RecordKind::ToExclude, net.group)
        );

        // A router of an older version there is told in its own.
        let query = Query {
            group: None,
            sources: vec![],
            max_response: Duration::from_secs(1),
            suppress: false,
            robustness: 2,
            interval: Duration::from_secs(125),
        };
        let router = if net.family == Family::V4 {
            "10.77.2.9"
        } else {
            "fe80::9"
        };
        let sender = Sender {
            mac: [2, 7, 7, 7, 7, 7],
            addr: ip(router),
        };
        let mut frame = message::query_frame(&query, sender);
        lab.gateway
            .handle_multicast(lab.now, WAN, &mut frame, Offload::default());
        lab.pass(Duration::from_millis(600));
        let answers = of(&said(lab.outputs()), WAN);
        assert!(
            answers.iter().any(|it| it.version == Version::Sources),
            "{answers:?}"
        );
        leaves(&mut lab, LAN, net.host, net.group);
        lab.pass(Duration::from_millis(999));
        let left = of(&said(lab.outputs()), WAN);
        let mut left = left.iter().filter_map(|it| match &it.message {
            Message::Report(records) => Some(records[0].kind),
            Message::Query(_) => None,
        });
        assert_eq!(left.next_back(), Some(RecordKind::ToInclude));
    }
}

#[test]
fn a_static_member_needs_no_host() {
    let mut lab = lab();
    let group = ip("239.1.9.9");
    let packet = stream(ip("198.51.100.7"), group);
    assert_eq!(exits(&mut lab, WAN, &packet, group), [DMZ]);
    let down = LinkState {
        up: false,
        ..link(DMZ)
    };
    lab.link(DMZ, down);
    assert!(exits(&mut lab, WAN, &packet, group).is_empty());
    assert_eq!(dropped(&lab, DropReason::PortDown), 1);
    lab.link(
        DMZ,
        LinkState {
            mtu: 20,
            ..link(DMZ)
        },
    );
    assert!(exits(&mut lab, WAN, &packet, group).is_empty());
    assert_eq!(dropped(&lab, DropReason::TooBig), 1);
}

#[test]
fn a_flood_of_groups_and_reports_is_bounded() {
    let mut lab = lab();
    let host = ip("10.77.1.10");
    for number in 0..5000u32 {
        let [_, _, high, low] = number.to_be_bytes();
        joins(&mut lab, LAN, host, Addr::v4([239, 1, high, low]));
    }
    assert!(dropped(&lab, DropReason::MembershipRate) > 4000);
    assert_eq!(
        lab.gateway.multicast_members().count(),
        200,
        "a tenth of a second's worth"
    );
    let far = ip("203.0.113.5");
    lab.pass(Duration::from_secs(1));
    let behind = RouteTarget::Port {
        port: LAN,
        gateway: Some(ip("10.77.1.9")),
    };
    lab.route("203.0.113.0/24", behind);
    joins(&mut lab, LAN, far, ip("239.1.1.1"));
    assert_eq!(
        dropped(&lab, DropReason::MembershipMalformed),
        1,
        "of another network"
    );
    for number in 0..5000u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let packet = stream(Addr::v4([198, 51, high, low]), ip("239.1.9.9"));
        lab.route("198.51.0.0/16", testkit::lab::to_port(WAN));
        exits(&mut lab, WAN, &packet, ip("239.1.9.9"));
    }
    assert_eq!(lab.gateway.multicast_count(), 4096);
    assert!(dropped(&lab, DropReason::MulticastLimit) > 800);
    lab.pass(Duration::from_secs(221));
    assert_eq!(lab.gateway.multicast_count(), 0, "they end without packets");
}

#[test]
fn without_a_policy_nothing_is_touched() {
    let mut lab = Lab::new();
    for net in nets() {
        joins(&mut lab, LAN, net.host, net.group);
        assert!(exits(&mut lab, WAN, &stream(net.sender, net.group), net.group).is_empty());
    }
    assert_eq!(lab.moved().1, "", "no counter moves");
}

#[test]
fn members_and_sessions_survive_the_unit() {
    for net in nets() {
        let mut pair = Pair::with(POLICIES);
        let packet = stream(net.sender, net.group).bytes();
        let record = |kind| Record {
            kind,
            group: net.group,
            sources: vec![],
        };
        for unit in 0..2 {
            let (at, now) = (&mut pair.units[unit], pair.now);
            for port in PORTS {
                let own = ip(&format!("fe80::a:{}", port.0 + 1));
                at.handle_kernel_address(now, own, Some(port), true);
            }
        }
        report(
            &mut pair.units[0],
            pair.now,
            LAN,
            net.host,
            record(RecordKind::ToExclude),
        );
        report(
            &mut pair.units[1],
            pair.now,
            LAN,
            net.host,
            record(RecordKind::ToExclude),
        );
        assert_eq!(
            pair.units[1].multicast_members().count(),
            0,
            "a standby asks nobody"
        );
        let sent = |pair: &mut Pair, unit: usize| {
            let now = pair.now;
            let sent = copies(&mut pair.units[unit], now, WAN, &packet, net.group);
            sent.into_iter().map(|(exit, _)| exit).collect::<Vec<_>>()
        };
        assert_eq!(sent(&mut pair, 0), [LAN]);
        assert!(sent(&mut pair, 1).is_empty(), "only the primary sends");
        pair.pass(Duration::from_millis(900));
        let members =
            |pair: &Pair, unit: usize| pair.units[unit].multicast_members().collect::<Vec<_>>();
        assert_eq!(members(&pair, 0), members(&pair, 1));
        assert_eq!(pair.units[1].multicast_count(), 1);
        let by_standby = sent(&mut pair, 1);
        assert!(by_standby.is_empty(), "nor when it knows who wants it");

        // A peer that comes later is told everything, and a leave too.
        pair.connect(false);
        pair.connect(true);
        pair.pass(Duration::from_millis(900));
        assert_eq!(members(&pair, 1).len(), 1);

        pair.take_over();
        assert_eq!(sent(&mut pair, 1), [LAN], "before any host has reported");
        let view = |pair: &Pair| {
            let (_, views) = pair.units[1]
                .multicast_page(None, 9, pair.now)
                .next()
                .unwrap();
            views[0].0.packets[0]
        };
        assert_eq!(view(&pair), 2, "counted on");
        pair.pass(Duration::from_secs(40));
        assert!(sent(&mut pair, 1).is_empty(), "nobody has answered");
    }
}

#[test]
fn a_stream_is_captured_and_explained_as_it_fares() {
    for net in nets() {
        let mut lab = lab();
        let packet = stream(net.sender, net.hidden);
        let explained = |lab: &Lab| {
            let bytes = packet.bytes();
            lab.gateway
                .explain(lab.now, WAN, &bytes, Scope::Packet)
                .unwrap()
        };
        let refused = PacketFate::Drop {
            reason: DropReason::NoMember,
            told: false,
        };
        assert_eq!(explained(&lab).fate, refused);
        joins(&mut lab, LAN, net.host, net.hidden);
        let explanation = explained(&lab);
        assert_eq!(
            (explanation.fate, explanation.egress),
            (PacketFate::Forward, Some(LAN))
        );
        assert_eq!(explanation.leaves_as.unwrap().src, net.vip);

        let options = Options {
            filter: Filter::parse(&[], lab.gateway.config()).unwrap(),
            snapshot: MAX_SNAPSHOT,
            count: u64::MAX,
        };
        lab.gateway.start_capture(lab.now, options);
        assert_eq!(exits(&mut lab, WAN, &packet, net.hidden), [LAN]);
        leaves(&mut lab, LAN, net.host, net.hidden);
        lab.pass(Duration::from_millis(999));
        assert!(exits(&mut lab, WAN, &packet, net.hidden).is_empty());
        let capture = lab.gateway.capture_mut().unwrap();
        let records: Vec<Sight> = std::iter::from_fn(|| capture.fetch()).collect();
        let seen = records
            .iter()
            .map(|it| (it.port, it.outbound, it.facts.fate, it.bytes.to_vec()));
        let came = packet.bytes();
        let left = packet.clone().src(net.vip).hops(8).bytes();
        let expected = [
            (WAN, false, CapturedFate::Forward, came.clone()),
            (LAN, true, CapturedFate::Forward, left),
            (WAN, false, CapturedFate::Drop(DropReason::NoMember), came),
        ];
        assert!(seen.eq(expected), "{records:#?}");
    }
}
