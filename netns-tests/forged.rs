//! Floods of forged packets: what a host loses that has nothing to do with them, beside a quiet
//! time, and whether connections live on.

use std::thread;
use std::time::Duration;

use tandemgw_core::flow::Addr;
use tandemgw_core::random::SplitMix64;
use testkit::lab::ip;
use testkit::packets::{ACK, FIN_ACK, Pkt, RST, SYN, SYN_ACK, tcp, udp};
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

use crate::attack::Flood;
use crate::conversation::{Conversation, line_server};
use crate::lab::{LAN_GATEWAY, LAN1, LAN2, Lab, SERVER, WAN_GATEWAY};
use crate::pair::Pair;
use crate::unit::Unit;

/// Frames with packets of IPv4, from a host to an interface of a unit.
fn frames(
    host: &Namespace,
    (unit, interface): (&Unit, &str),
    packets: impl Iterator<Item = Pkt>,
) -> Vec<Vec<u8>> {
    let head = [&unit.ns.mac(interface)[..], &host.mac("eth0"), &[8, 0]].concat();
    packets
        .map(|packet| [&head[..], &packet.bytes()].concat())
        .collect()
}

/// The loss of the first host's pings, in percent, and their mean time in milliseconds.
fn victim(lab: &Lab) -> (f64, f64) {
    let said = lab
        .lan1
        .run(&format!("ping -q -i 0.005 -c 300 -W 1 {}", SERVER[0]));
    let before = |mark: &str, separator: char| {
        let (before, _) = said.split_once(mark).expect("a summary");
        let word = before.rsplit(separator).next().expect("a number");
        word.parse::<f64>().expect("a number")
    };
    let after = said.split("= ").nth(1).expect("times");
    let mean = after.split('/').nth(1).expect("a mean");
    (
        before("% packet loss", ' '),
        mean.parse().expect("a number"),
    )
}

/// Another host's flood costs the victim at most 1 %, and some times what its packets take anyway:
/// the machine may be busy with something else.
#[track_caller]
fn costs_little(lab: &Lab, flood: impl FnOnce() -> Flood, is_under_way: impl Fn() -> bool) {
    let quiet = victim(lab);
    let flood = flood();
    wait_until("the flood is felt", is_under_way);
    let loud = victim(lab);
    flood.stop();
    assert!(loud.0 <= 1.0, "lost: {loud:?}, quiet: {quiet:?}");
    assert!(
        loud.1 <= 5.0 * quiet.1 + 2.0,
        "late: {loud:?}, quiet: {quiet:?}"
    );
}

fn attacker() -> Addr {
    ip(LAN2[0])
}

#[test]
fn syns_into_an_exhausted_destination_cost_others_nothing() {
    let mut lab = Lab::new();
    lab.unit.prepend_policy(
        "name = \"few\"\nfrom = [\"lan\"]\nto = [\"wan\"]\nservice = [\"tcp/9\"]\naction = \"accept\"\nnat-pool = \"few\"",
    );
    lab.unit.config.push_str(
        "\n[[nat-pool]]\nname = \"few\"\naddresses = [\"10.77.2.9\"]\nports = \"20000-20255\"\n",
    );
    lab.unit.start();
    // Else its resets end the sessions.
    lab.server.run("nft add table ip quiet");
    lab.server
        .sh("nft 'add chain ip quiet in { type filter hook input priority 0; }'");
    lab.server.sh("nft 'add rule ip quiet in tcp dport 9 drop'");
    let syn = |port| tcp((attacker(), port), (ip(SERVER[0]), 9), SYN, 1, 0);
    let frames = frames(&lab.lan2, (&lab.unit, "eth0"), (1024..9216).map(syn));
    costs_little(
        &lab,
        || Flood::start(&lab.lan2, "eth0", 20_000, frames),
        || lab.unit.dropped("nat-exhausted") > 5_000,
    );
}

#[test]
fn half_open_sessions_in_the_name_of_a_host_keep_it_from_nothing() {
    let lab = Lab::started();
    // From the victim's own address.
    let forged = |port| udp((ip(LAN1[0]), port), (ip(SERVER[0]), 9));
    let frames = frames(&lab.lan2, (&lab.unit, "eth0"), (10_000..60_000).map(forged));
    let sessions = || lab.unit.status()["sessions"]["udp"].as_u64();
    costs_little(
        &lab,
        || Flood::start(&lab.lan2, "eth0", 4_000, frames),
        || sessions() > Some(3_000),
    );
}

/// Junk to the virtual address; and each time, "fragmentation needed" arrives all the same.
#[test]
fn junk_to_the_virtual_address_costs_no_error_that_keeps_connections_alive() {
    let mut lab = Lab::new();
    lab.unit.ns.run("ip link set eth1 mtu 1400");
    lab.unit.start();
    let junk = |port| udp((attacker(), port), (ip(LAN_GATEWAY[0]), 9));
    let frames = frames(&lab.lan2, (&lab.unit, "eth0"), (1024..9216).map(junk));
    costs_little(
        &lab,
        || Flood::start(&lab.lan2, "eth0", 20_000, frames.clone()),
        || lab.unit.dropped("no-listener") > 20_000,
    );
    let flood = Flood::start(&lab.lan2, "eth0", 20_000, frames);
    for _ in 0..20 {
        lab.lan1.run("ip route flush cache");
        let refused = lab
            .lan1
            .try_run(&format!("ping -c 1 -W 1 -M do -s 1472 {}", SERVER[0]));
        assert!(refused.stdout.contains("1400"), "{}", refused.stdout);
    }
    flood.stop();
}

/// Somebody knows addresses and ports of connections, and sends a burst in the name of their server
/// to the unit that has just taken over.
#[test]
fn blind_segments_of_a_server_after_a_takeover_end_no_connection() {
    let as_server = |client, server| (server, (ip(WAN_GATEWAY[0]), client));
    no_connection_ends(&[("eth1", |lab| &lab.server, &as_server)]);
}

/// The same in the name of the client.
#[test]
fn blind_segments_of_a_client_after_a_takeover_end_no_connection() {
    let as_client = |client, server| ((ip(LAN1[0]), client), server);
    no_connection_ends(&[("eth0", |lab| &lab.lan2, &as_client)]);
}

/// In the name of both at once.
#[test]
fn blind_segments_of_both_sides_after_a_takeover_end_no_connection() {
    let as_server = |client, server| (server, (ip(WAN_GATEWAY[0]), client));
    let as_client = |client, server| ((ip(LAN1[0]), client), server);
    no_connection_ends(&[
        ("eth1", |lab| &lab.server, &as_server),
        ("eth0", |lab| &lab.lan2, &as_client),
    ]);
}

type End = (Addr, u16);

/// The interface of the units that a burst goes to, the host that sends it, and how the ends are
/// made of a client's port and the server.
type Burst<'a> = (
    &'static str,
    fn(&Lab) -> &Namespace,
    &'a dyn Fn(u16, End) -> (End, End),
);

/// Bursts of segments to gw-b as it takes over, about connections whose addresses and ports are
/// known.
#[track_caller]
fn no_connection_ends(bursts: &[Burst<'_>]) {
    const FIRST: u16 = 41_000;
    let ports = || (FIRST..FIRST + 20).cycle();
    let mut pair = Pair::started();
    let _server = line_server(&pair.lab.server, SERVER[0]);
    let mut all: Vec<Conversation> = ports()
        .take(20)
        .map(|port| Conversation::start_from(&pair.lab.lan1, SERVER[0], port))
        .collect();
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
    let floods: Vec<(&Namespace, Vec<Vec<u8>>)> = bursts
        .iter()
        .map(|(interface, attacker, ends)| {
            let mut random = SplitMix64(3);
            let forge = |port| {
                let (from, to) = ends(port, (ip(SERVER[0]), 7100));
                let flags = [RST, FIN_ACK, ACK, SYN, SYN_ACK, RST][random.below(6)];
                let [seq, ack] = [0; 2].map(|_| random.next() as u32);
                tcp(from, to, flags, seq, ack).payload(b"x")
            };
            let host = attacker(&pair.lab);
            let packets = ports().take(8000).map(forge);
            (host, frames(host, (pair.b(), interface), packets))
        })
        .collect();
    let term = pair.a().term();
    let start = |(host, frames): (&Namespace, _)| Flood::start(host, "eth0", 4000, frames);
    let floods: Vec<Flood> = floods.into_iter().map(start).collect();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(term);
    thread::sleep(Duration::from_secs(2));
    floods.into_iter().for_each(|flood| {
        flood.stop();
    });
    let alive = pair.b().sessions("proto=tcp state=established");
    assert_eq!(alive.len(), 20);
    for conversation in &mut all {
        conversation.go_on();
    }
    all.into_iter().for_each(Conversation::finish);
}
