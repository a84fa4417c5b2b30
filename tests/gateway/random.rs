//! Hosts that behave and attackers that don't, in random order under virtual time.
//!
//! A model checks the traffic: who may reach whom, and that both ends see one conversation. A seed
//! that fails is printed; `TANDEMGW_SEED=n` replays it alone, `TANDEMGW_SEEDS=n` tries n of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tandemgw_core::config;
use tandemgw_core::event::{DropReason, LinkState, Offload, Output, RouteChange, Verdict};
use tandemgw_core::flow::{Addr, Family, FlowKey, GroupId, PortId, Protocol};
use tandemgw_core::gateway::{Explanation, Matched, PacketFate, Role, Scope};
use tandemgw_core::packet::{self, PacketKind, Parsed, icmp_error as errors, neighbor};
use tandemgw_core::random::SplitMix64;

use testkit::lab::{CONFIG, DMZ, LAN, Lab, Net, PORTS, WAN, ip, link, route, to_port};
use testkit::packets::{
    ACK, Body, ErrorCode, FIN_ACK, Pkt, RST, SYN, SYN_ACK, echo_request, fragments, icmp_error,
    other, tcp, udp,
};

const STEPS: u32 = 1000;
const SEEDS: u64 = 40;
/// Addresses that sources are translated to in some configurations.
const POOL: [&str; 3] = ["10.77.2.9", "10.77.2.10", "fd77:2::9"];
/// Invariants take longer to check than steps to do.
const STEPS_PER_CHECK: u32 = 8;
const PLAIN: Offload = Offload {
    partial_checksum: None,
    checksum_verified: false,
    segment_size: 0,
};

#[test]
fn what_passes_is_what_may() {
    let from_env = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    if let Some(seed) = from_env("TANDEMGW_SEED") {
        return run(seed);
    }
    for seed in 0..from_env("TANDEMGW_SEEDS").unwrap_or(SEEDS) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("failed with TANDEMGW_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for step in 0..STEPS {
        world.step();
        if step % STEPS_PER_CHECK == 0 {
            world.lab.gateway.check_invariants();
        }
    }
    world.lab.gateway.check_invariants();
    // The run was not trivial, though the unit may have been standby for long.
    let counters = world.lab.gateway.counters();
    assert!(counters.forwarded > u64::from(STEPS) / 40, "{counters:?}");
    let out = PORTS.map(|port| world.lab.gateway.port_counters(port).out_packets);
    assert_eq!(out.iter().sum::<u64>(), counters.forwarded);
    assert!(world.explained > STEPS / 4, "{}", world.explained);
    // A standby lets none end.
    world
        .lab
        .gateway
        .set_role(world.lab.now, GroupId(0), Role::Primary);
    world.lab.pass(Duration::from_secs(8000));
    assert_eq!(world.lab.sessions(), 0, "all sessions end");
}

struct World {
    random: SplitMix64,
    lab: Lab,
    primary: bool,
    /// Packets that were explained beforehand.
    explained: u32,
    /// The inside flow that each flow outside stands for, the last one that left.
    inside_of: BTreeMap<String, (FlowKey, FlowKey)>,
    /// Packets that passed, as they came in and as they left, with the port of arrival.
    passed: Vec<(PortId, Vec<u8>, Vec<u8>)>,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: SplitMix64(seed),
            lab: Lab::of(CONFIG),
            primary: true,
            explained: 0,
            inside_of: BTreeMap::new(),
            passed: Vec::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..25 => self.host_sends(),
            25..45 => self.somebody_answers(),
            45..55 => self.attacker_invents(),
            55..70 => self.attacker_mutates(),
            70..80 => self.somebody_fragments(),
            80..88 => self.router_reports(),
            88..91 => self.frame(),
            91..96 => {
                let ms = self.random.of(&[1, 10, 100, 1000, 60_000]);
                self.lab.pass(Duration::from_millis(ms));
            }
            96 => self.config_changes(),
            97 => self.routes_flap(),
            98 => self.link_flaps(),
            _ => self.role_changes(),
        }
        self.check_outputs(None);
    }

    fn net(&mut self) -> Net {
        Net::of(self.random.of(&Family::ALL))
    }

    fn host_sends(&mut self) {
        let net = self.net();
        let host = self.random.of(&[net.host, net.neighbor]);
        let to = self
            .random
            .of(&[net.server, net.server, net.dmz_host, net.wan_vip]);
        let port = 40000 + self.random.below(20) as u16;
        let flags = self.random.of(&[SYN, SYN, ACK, FIN_ACK, RST]);
        let service = if to == net.wan_vip { 8080 } else { 443 };
        let packet = match self.random.below(4) {
            0 => tcp((host, port), (to, service), flags, 100, 1),
            1 => udp((host, port), (to, 53)),
            2 => echo_request((host, self.random.of(&[0, 7, 4000])), to),
            _ => other(47, host, to),
        };
        self.inject(LAN, packet.bytes());
        let client = (net.server, port);
        let inwards = tcp(client, (net.wan_vip, 8080), flags, 100, 1);
        if self.random.below(4) == 0 {
            self.inject(WAN, inwards.bytes());
        }
    }

    /// An answer to a packet that passed, by its receiver.
    fn somebody_answers(&mut self) {
        let Some((_, _, left)) = self.some_passed() else {
            return;
        };
        let parsed = packet::parse(&left, PLAIN).unwrap();
        let key = parsed.key;
        let (src, dst) = ((key.dst, key.dst_port), (key.src, key.src_port));
        let answer = match parsed.kind {
            PacketKind::Tcp(segment) => {
                let flags = self.random.of(&[SYN_ACK, SYN_ACK, ACK, FIN_ACK, RST]);
                tcp(src, dst, flags, segment.ack, segment.seq.wrapping_add(1)).payload(b"x")
            }
            PacketKind::Udp => udp(src, dst).payload(&self.random.next().to_be_bytes()),
            PacketKind::IcmpRequest => echo_request(dst, src.0).answer(),
            PacketKind::Other => other(key.protocol.0, src.0, dst.0),
            _ => return,
        };
        self.inject(home(&key.dst), answer.bytes());
    }

    fn attacker_invents(&mut self) {
        let net = self.net();
        let addresses = [
            net.host,
            net.neighbor,
            net.web,
            net.server,
            net.router,
            net.dmz_host,
            net.lan_vip,
            net.wan_vip,
            net.unrouted,
            net.elsewhere,
        ];
        let (src, dst) = (self.random.of(&addresses), self.random.of(&addresses));
        let ports = [0, 23, 53, 69, 80, 443, 8080, 40000, 40001, 40010];
        let (sport, dport) = (self.random.of(&ports), self.random.of(&ports));
        let packet = match self.random.below(5) {
            0 => tcp(
                (src, sport),
                (dst, dport),
                self.random.of(&[SYN, SYN_ACK, ACK, RST]),
                1,
                1,
            ),
            1 => udp((src, sport), (dst, dport)),
            2 => echo_request((src, sport), dst),
            3 => echo_request((dst, dport), src).answer(),
            _ => {
                let code = (self.random.next() as u8, 0);
                let payload = vec![self.random.next() as u8; 30];
                Pkt::new(
                    src,
                    dst,
                    Body::Icmp {
                        code,
                        word: 0,
                        payload,
                    },
                )
            }
        };
        let port = self.random.of(&PORTS);
        self.inject(port, packet.bytes());
    }

    /// A packet that was seen, with bytes replaced or cut off, from anywhere.
    fn attacker_mutates(&mut self) {
        let Some((_, came, left)) = self.some_passed() else {
            return;
        };
        let mut bytes = if self.random.below(2) == 0 {
            came
        } else {
            left
        };
        for _ in 0..self.random.below(4) {
            let at = self.random.below(bytes.len());
            bytes[at] = self.random.next() as u8;
        }
        if self.random.below(8) == 0 {
            bytes.truncate(self.random.below(bytes.len()));
        }
        let port = self.random.of(&PORTS);
        self.inject(port, bytes);
    }

    fn somebody_fragments(&mut self) {
        let Some((port, came, _)) = self.some_passed() else {
            return;
        };
        let parsed = packet::parse(&came, PLAIN).unwrap();
        if parsed.fragment.is_some() || parsed.kind != PacketKind::Udp {
            return;
        }
        let key = parsed.key;
        let big = udp((key.src, key.src_port), (key.dst, key.dst_port)).payload(&[3; 200]);
        let mut pieces = fragments(&big.bytes(), self.random.below(50) as u32, &[72, 144]);
        while !pieces.is_empty() {
            let piece = pieces.remove(self.random.below(pieces.len()));
            if self.random.below(8) > 0 {
                self.inject(port, piece);
            }
        }
    }

    fn router_reports(&mut self) {
        let Some((port, _, left)) = self.some_passed() else {
            return;
        };
        let key = packet::parse(&left, PLAIN).unwrap().key;
        let net = Net::of(key.src.family());
        let from = self.random.of(&[key.dst, net.router, net.neighbor]);
        let kind = self
            .random
            .of(&[ErrorCode::TimeExceeded, ErrorCode::TooBig(1300)]);
        let at = self.random.of(&[home(&key.dst), port]);
        self.inject(at, icmp_error(kind, from, key.src, &left).bytes());
    }

    fn frame(&mut self) {
        let net = self.net();
        let target = self.random.of(&[net.lan_vip, net.wan_vip, net.host]);
        let mut frame = match self.random.below(2) {
            0 => neighbor::solicit(target, net.router, [2; 6]),
            _ => neighbor::announce(target, [2; 6]).remove(0),
        };
        if self.random.below(2) == 0 {
            let at = self.random.below(frame.len());
            frame[at] = self.random.next() as u8;
        }
        let port = self.random.of(&PORTS);
        self.lab.gateway.handle_frame(self.lab.now, port, &frame);
    }

    fn routes_flap(&mut self) {
        for network in ["198.51.100.0/24", "2001:db8:7::/48"] {
            let route = route(network, to_port(WAN));
            self.lab
                .gateway
                .handle_route(RouteChange::Remove(route.clone()));
            self.lab.gateway.handle_timeout(self.lab.now);
            self.lab.gateway.handle_route(RouteChange::Add(route));
        }
    }

    /// Sources are translated to other addresses, and policies have other names and places, with no
    /// difference in what may pass.
    fn config_changes(&mut self) {
        let mut text = CONFIG.to_owned();
        if self.random.below(2) == 0 {
            text = text.replace("nat = true", "nat-pool = \"pool\"");
        }
        if self.random.below(2) == 0 {
            let first = "[[policy]]\nname = \"idle\"\nfrom = [\"dmz\"]\naction = \"drop\"\n";
            text = text.replacen("[[policy]]", &format!("{first}[[policy]]"), 1);
        }
        if self.random.below(2) == 0 {
            text = text.replace("\"lan-out\"", "\"outwards\"");
        }
        if text.contains("nat-pool") || self.random.below(2) == 0 {
            let addresses = POOL.map(|addr| format!("\"{addr}\"")).join(", ");
            text += &format!("[[nat-pool]]\nname = \"pool\"\naddresses = [{addresses}]\n");
        }
        let (config, _) = config::parse(Path::new("test.toml"), &text).unwrap();
        // One that comes while sessions are compared with the last one has to wait.
        let is_reloading = self.lab.gateway.is_reloading();
        let result = self.lab.gateway.reload(self.lab.now, &config);
        assert_eq!(result.is_err(), is_reloading, "{result:?}");
        if self.random.below(2) == 0 {
            self.lab.settle();
        }
    }

    fn link_flaps(&mut self) {
        let port = self.random.of(&PORTS);
        let up = self.random.below(3) > 0;
        self.lab.link(port, LinkState { up, ..link(port) });
    }

    fn role_changes(&mut self) {
        self.primary = self.random.below(4) > 0;
        let role = if self.primary {
            Role::Primary
        } else {
            Role::Standby
        };
        self.lab.gateway.set_role(self.lab.now, GroupId(0), role);
    }

    fn some_passed(&mut self) -> Option<(PortId, Vec<u8>, Vec<u8>)> {
        let recent = self.passed.len().min(64);
        let index = self.passed.len() - recent + self.random.below(recent.max(1));
        self.passed.get(index).cloned()
    }

    fn inject(&mut self, port: PortId, came: Vec<u8>) {
        let mut left = came.clone();
        let (gateway, now) = (&mut self.lab.gateway, self.lab.now);
        let foretold = gateway.explain(now, port, &came, Scope::Packet);
        assert_eq!(
            format!("{foretold:?}"),
            format!("{:?}", gateway.explain(now, port, &came, Scope::Packet)),
            "an explanation has no effect"
        );
        let verdict = gateway.handle_packet(now, port, &mut left, PLAIN);
        self.explained += u32::from(foretold.is_ok());
        self.check_explanation(foretold, verdict, &left);
        match verdict {
            Verdict::Forward => self.check_passed(port, came, left),
            Verdict::Drop(_) | Verdict::Consumed => assert_eq!(came, left, "{verdict:?}"),
        }
        self.check_outputs(Some(port));
    }

    /// The explanation has come true: verdict, translation, and the session that was opened.
    fn check_explanation(
        &self,
        foretold: Result<Explanation, Option<DropReason>>,
        verdict: Verdict,
        left: &[u8],
    ) {
        let foretold = match foretold {
            Ok(foretold) => foretold,
            Err(Some(reason)) => return assert_eq!(Verdict::Drop(reason), verdict),
            Err(None) => return,
        };
        let fate = match foretold.fate_here {
            PacketFate::Forward => Verdict::Forward,
            PacketFate::Answer | PacketFate::Wait(_) => Verdict::Consumed,
            PacketFate::Drop { reason, .. } => Verdict::Drop(reason),
            PacketFate::Kernel => panic!("what the kernel takes does not come to a TUN"),
        };
        assert_eq!(fate, verdict, "{foretold:#?}");
        if verdict != Verdict::Forward {
            return;
        }
        let after = packet::parse(left, PLAIN).unwrap().key;
        assert_eq!(
            self.lab.gateway.exit(),
            home(&after.dst),
            "where the kernel leads it"
        );
        assert_eq!(foretold.leaves_as, Some(after), "{foretold:#?}");
        if matches!(foretold.matched, Matched::Nothing) {
            let (mut views, _) = self.lab.gateway.page(0, u32::MAX, self.lab.now);
            let view = views.find(|view| view.original == foretold.key).unwrap();
            assert_eq!(Some(view.out_port), foretold.egress);
            let policy = foretold.decision.map(|it| it.policy);
            assert_eq!(Some(view.policy), policy);
            assert_eq!(Some(view.group), foretold.group);
            let name = self.lab.gateway.policy_name(view.policy);
            let policies = &self.lab.gateway.config().policies;
            let place = policies.iter().position(|policy| policy.name == name);
            assert_eq!(Some(foretold.passed_over.mismatches.len()), place);
        }
    }

    fn check_passed(&mut self, port: PortId, came: Vec<u8>, left: Vec<u8>) {
        assert!(self.primary, "a standby forwards nothing");
        let before = packet::parse(&came, PLAIN).unwrap();
        let after = packet::parse(&left, PLAIN).unwrap();
        assert_eq!(after.hop_limit, before.hop_limit.saturating_add(1));
        let right = |bytes: &[u8], parsed: &Parsed| packet::checksum_ok(bytes, parsed, PLAIN);
        assert_eq!(
            right(&came, &before),
            right(&left, &after),
            "{}",
            before.key
        );
        if before.kind == PacketKind::IcmpError {
            self.check_error(port, &came, &before, &left, &after);
        } else {
            self.check_way(port, &after.key);
        }
        if !matches!(
            before.kind,
            PacketKind::IcmpError | PacketKind::LaterFragment
        ) {
            assert_eq!(payload(&came, &before), payload(&left, &after));
            self.check_translation(port, &before.key, &after.key);
        }
        if before.fragment.is_none() {
            self.passed.push((port, came, left));
        }
    }

    /// From where to where anything may go at all, and with what source.
    fn check_way(&self, port: PortId, after: &FlowKey) {
        let net = Net::of(after.src.family());
        match (port, home(&after.dst)) {
            // Answers under a policy without NAT, which the forward needs, are not translated.
            (LAN, WAN) if (after.src, after.src_port) == (net.web, 80) => {}
            (LAN, WAN) => assert!(
                after.src == net.wan_vip || POOL.map(ip).contains(&after.src),
                "shows an inside address: {after}"
            ),
            (LAN, DMZ) => assert_eq!(home(&after.src), LAN),
            // Nor is what goes to the server by its own address.
            (LAN, LAN) if self.lives(after, after) => {}
            (LAN, LAN) => assert!([net.lan_vip, net.wan_vip].contains(&after.src)),
            (WAN | DMZ, LAN) => assert_eq!(home(&after.src), port),
            (from, to) => panic!("{after} went from {from:?} to {to:?}"),
        }
    }

    /// Each end sees the same conversation: an answer arrives as one to what was sent.
    fn check_translation(&mut self, port: PortId, before: &FlowKey, after: &FlowKey) {
        if let Some((outside, inside)) = self.inside_of.get(&before.reply().to_string())
            && *inside != after.reply()
            && self.lives(inside, outside)
        {
            panic!("{before} answers {outside}, which is {inside}, and became {after}");
        }
        let net = Net::of(before.src.family());
        let is_answer = self.inside_of.contains_key(&before.reply().to_string());
        let is_forward = before.protocol == Protocol::TCP
            && [(net.wan_vip, 8080), (net.web, 80)].contains(&(before.dst, before.dst_port))
            && (after.dst, after.dst_port) == (net.web, 80);
        assert!(
            port == LAN || is_answer || is_forward,
            "{before} came in as {after}"
        );
        if let Some((_, old)) = self.inside_of.get(&after.to_string())
            && old != before
        {
            // Another flow has the outside end now: the one before must have ended.
            let both = self.lives(old, after);
            assert!(!both, "{old} and {before}: both {after}");
        }
        self.inside_of.insert(after.to_string(), (*after, *before));
    }

    /// Whether there is a session that makes `outside` of `inside`.
    fn lives(&self, inside: &FlowKey, outside: &FlowKey) -> bool {
        let (mut views, _) = self.lab.gateway.page(0, u32::MAX, self.lab.now);
        views.any(|view| {
            let (original, translated) = (view.original, view.translated);
            (original, translated) == (*inside, *outside)
                || (translated.reply(), original.reply()) == (*inside, *outside)
        })
    }

    /// An error quotes to its receiver a packet as the receiver sent it.
    fn check_error(&self, port: PortId, came: &[u8], before: &Parsed, left: &[u8], after: &Parsed) {
        let outside = errors::quoted(came, before).unwrap().key;
        let inside = errors::quoted(left, after).unwrap().key;
        let known = self.inside_of.get(&outside.to_string());
        let known = known.map(|(_, inside)| *inside);
        // A session whose first packet was dropped, at a port that was down, may have the end
        // since.
        assert!(
            known == Some(inside) || known.is_some() && self.lives(&inside, &outside),
            "an error about {outside}, which was {known:?}, was told {inside}"
        );
        assert_eq!(after.key.dst, inside.src);
        // Any router may be its source, but none inside of a translated session is shown.
        let way = (port, home(&after.key.src), home(&after.key.dst));
        assert!(inside == outside || way != (LAN, LAN, WAN), "{}", after.key);
    }

    /// Answers of the gateway itself go back where the packet came from; a packet that had waited
    /// goes where the kernel leads it.
    fn check_outputs(&mut self, from: Option<PortId>) {
        for output in self.lab.outputs() {
            let Output::Packet { port, bytes, .. } = output else {
                assert!(self.primary);
                continue;
            };
            let from = from.filter(|_| self.primary).unwrap();
            let parsed = packet::parse(&bytes, PLAIN).unwrap();
            assert_eq!(home(&parsed.key.dst), port, "{}", parsed.key);
            if parsed.fragment.is_none() {
                assert!(packet::checksum_ok(&bytes, &parsed, PLAIN));
                assert_eq!(port, from, "{} answers a forged source", parsed.key);
            } else {
                self.check_way(from, &parsed.key);
            }
        }
    }
}

/// The payload of the transport.
fn payload<'a>(bytes: &'a [u8], parsed: &Parsed) -> &'a [u8] {
    let header = if let PacketKind::Other = parsed.kind {
        0
    } else {
        8
    };
    let transport = parsed.transport(bytes);
    match parsed.kind {
        // All but ports and checksum.
        PacketKind::Tcp(_) => &transport[18..],
        _ => &transport[header..],
    }
}

/// The port that routes lead out of for `addr`.
fn home(addr: &Addr) -> PortId {
    let within = |prefix: &str| match addr.family() {
        Family::V4 => addr.last4()[..3] == ip(prefix).last4()[..3],
        Family::V6 => addr.octets()[..6] == ip(prefix).octets()[..6],
    };
    let networks = match addr.family() {
        Family::V4 => ["10.77.1.0", "10.77.2.0", "10.77.3.0", "198.51.100.0"],
        Family::V6 => ["fd77:1::", "fd77:2::", "fd77:3::", "2001:db8:7::"],
    };
    match networks.iter().position(|network| within(network)) {
        Some(0) => LAN,
        Some(1 | 3) => WAN,
        Some(2) => DMZ,
        _ => PortId(u16::MAX),
    }
}
