//! Streams to many: a sender on each WAN, and hosts on each LAN that want some of what it sends, of
//! both families.

use std::time::Duration;

use tandemgw_core::event::Offload;
use tandemgw_core::flow::{Addr, Family, PortId};
use tandemgw_core::multicast::ethernet;
use tandemgw_core::multicast::message::{self, Message, Record, RecordKind, Sender};
use tandemgw_core::packet;
use tandemgw_core::random::SplitMix64;
use tandemgw_core::time::Time;
use testkit::packets::udp;

use crate::faults::Faults;
use crate::hosts::read_payload;
use crate::scenario::{FAILURE_KINDS, run_with};
use crate::setup::{Shape, host_address, host_mac};
use crate::turn::Turn;
use crate::world::{Death, World};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Between two datagrams of a stream.
const INTERVAL: Duration = ms(20);
/// Hosts that have time to answer take at least so long: a takeover is over by then, so what they
/// get until then they get because peers knew that they want it.
const SLOW: Duration = ms(2000);
/// Between a report and its repetition.
const AGAIN: Duration = ms(700);
/// Datagrams that were under way while a role moved may come twice, or not at all.
const UNDER_WAY: Duration = ms(25);
const ETHERNET: usize = 14;

/// What one group of addresses carries, and the host that may want it.
#[derive(Debug)]
pub struct Stream {
    /// The group of virtual addresses whose primary sends it on.
    group: usize,
    to: Addr,
    /// The segment that it leads to.
    lan: usize,
    /// The host there.
    host: usize,
    wanted: bool,
    /// When it reports, once asked or to say it again.
    report_at: Option<Time>,
    /// By number: when it was sent, and how often it came.
    datagrams: Vec<(Time, u32)>,
}

impl Stream {
    fn new((group, lan): (usize, usize), host: usize, family: Family) -> Stream {
        let to = group_address(group, host as u8, family);
        Stream {
            group,
            to,
            lan,
            host,
            wanted: host == 1,
            report_at: (host == 1).then_some(Time::ZERO),
            datagrams: Vec::new(),
        }
    }
}

/// All streams of a run: one that a host wants throughout, and one that another wants at times.
pub fn streams_of(shape: &Shape) -> Vec<Stream> {
    let groups = (0..shape.groups).filter(|group| shape.has_streams(*group));
    let all = groups.flat_map(|group| [1, 2].map(|host| (group, host)));
    let of = |(group, host)| {
        let at = (group, shape.stream_lan(group));
        Family::ALL.map(|family| Stream::new(at, host, family))
    };
    all.flat_map(of).collect()
}

fn group_address(group: usize, last: u8, family: Family) -> Addr {
    let group = group as u8;
    match family {
        Family::V4 => Addr::v4([239, 1, group, last]),
        Family::V6 => Addr::v6([0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, group, last]),
    }
}

/// The policies of a group, for its config: one, or one for each host.
pub fn policies(group: usize, (from, to): (usize, usize), each: bool) -> String {
    let policy = |name: &str, last: u8, bits: u8| {
        let (v4, v6) = (32 - bits, 128 - bits);
        format!(
            "[[multicast-policy]]\nname = \"{name}{group}\"\nfrom = [\"p{from}\"]\nto = [\"p{to}\"]\n\
             group = [\"239.1.{group}.{last}/{v4}\", \"ff05::1:{group:02x}{last:02x}/{v6}\"]\n\
             action = \"accept\"\n"
        )
    };
    match each {
        false => policy("tv", 0, 8),
        true => policy("second", 2, 0) + &policy("first", 1, 0),
    }
}

/// The link-local address of a host or, with another first byte, of a unit.
pub fn link_local(kind: u8, at: usize, number: usize) -> Addr {
    let (at, number) = (at as u8, number as u8);
    Addr::v6([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        kind,
        at,
        number + 1,
    ])
}

/// Whether the sockets for frames to many take it: IPv4, or IPv6 other than neighbor discovery.
pub fn is_stream(frame: &[u8]) -> bool {
    let kind = (frame[12], frame[13]);
    frame[0] & 1 != 0 && (kind == (8, 0) || kind == (0x86, 0xdd) && frame[ETHERNET + 6] != 58)
}

impl World {
    /// Sends what is due: datagrams, and what hosts have to say.
    pub fn tend_streams(&mut self) {
        for at in 0..self.streams.len() {
            let stream = &self.streams[at];
            let last = stream.datagrams.last().map(|(sent, _)| *sent);
            if last.is_none_or(|last| self.now >= last + INTERVAL) {
                self.send_datagram_of(at);
            }
            if self.streams[at].report_at.is_some_and(|at| at <= self.now) {
                self.report(at);
            }
        }
    }

    fn send_datagram_of(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        let (to, wan) = (stream.to, 2 * stream.group + 1);
        let number = stream.datagrams.len() as u64;
        stream.datagrams.push((self.now, 0));
        let from = self.sender_of(&self.streams[at]);
        let datagram = udp((from, 5004), (to, 5004)).hops(9);
        let datagram = datagram.payload(&number.to_be_bytes()).bytes();
        let ethertype: [u8; 2] = if to.is_v4() { [8, 0] } else { [0x86, 0xdd] };
        let mac = host_mac(wan, 0);
        let frame = [&ethernet(&to)[..], &mac, &ethertype, &datagram].concat();
        self.carry_frame(wan, mac, frame);
    }

    /// The host says whether it wants the stream.
    fn report(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        stream.report_at = None;
        let (lan, host, family) = (stream.lan, stream.host, stream.to.family());
        let record = Record {
            kind: match stream.wanted {
                true => RecordKind::ToExclude,
                false => RecordKind::ToInclude,
            },
            group: stream.to,
            sources: Vec::new(),
        };
        let mac = host_mac(lan, host);
        let addr = match family {
            Family::V4 => host_address(lan, host, family),
            Family::V6 => link_local(1, lan, host),
        };
        self.carry_frame(
            lan,
            mac,
            message::report_frame(&[record], Sender { mac, addr }),
        );
    }

    /// The hosts that want a stream at times change their minds. Each says so twice.
    pub fn change_members(&mut self) {
        for at in 0..self.streams.len() {
            if self.streams[at].host == 2 && self.random.chance(500) {
                self.streams[at].wanted ^= true;
                self.report(at);
                self.streams[at].report_at = Some(self.now + AGAIN);
            }
        }
    }

    /// Links of hosts were down: they say again what they want.
    pub fn repeat_reports(&mut self) {
        for stream in self.streams.iter_mut().filter(|stream| stream.wanted) {
            stream.report_at = Some(self.now + AGAIN);
        }
    }

    /// A host hears a frame to many.
    pub fn host_hears_stream(&mut self, (segment, host): (usize, usize), frame: &[u8]) {
        let bytes = &frame[ETHERNET..];
        if message::is_membership(bytes) {
            let received = message::parse(bytes);
            let received = received.unwrap_or_else(|why| panic!("a bad message: {why:?}"));
            if let Message::Query(query) = received.message {
                self.host_is_asked((segment, host), received.from.family(), &query);
            }
            return;
        }
        let parsed = packet::parse(bytes, Offload::default());
        let parsed = parsed.unwrap_or_else(|why| panic!("a bad datagram: {why:?}"));
        assert!(packet::checksum_ok(bytes, &parsed, Offload::default()));
        let is_it = |stream: &Stream| {
            let place = (stream.lan, stream.host);
            (stream.to, place) == (parsed.key.dst, (segment, host))
        };
        let Some(at) = self.streams.iter().position(is_it) else {
            return;
        };
        assert_eq!(parsed.hop_limit, 8, "it has passed one gateway");
        let (_, number) = read_payload(bytes).unwrap();
        let stream = &mut self.streams[at];
        let datagram = &mut stream.datagrams[number as usize];
        datagram.1 += 1;
        let (twice, group, to) = (datagram.1 > 1, stream.group, stream.to);
        let recently = |at: Option<Time>| at.is_some_and(|at| self.now.since(at) < UNDER_WAY);
        let moves = recently(self.last_dual[group]) || recently(self.last_move[group]);
        assert!(!twice || moves, "datagram {number} to {to} came twice");
    }

    fn host_is_asked(
        &mut self,
        (segment, host): (usize, usize),
        family: Family,
        query: &message::Query,
    ) {
        let about = |to: &Addr| query.group.is_none_or(|group| group == *to);
        for at in 0..self.streams.len() {
            let stream = &self.streams[at];
            let place = (stream.lan, stream.host);
            let is_it = place == (segment, host) && stream.to.family() == family;
            if !is_it || !stream.wanted || !about(&stream.to) {
                continue;
            }
            let slow = SLOW.min(query.max_response / 2);
            let answer = self.now + slow + self.random.up_to(query.max_response / 2);
            let stream = &mut self.streams[at];
            stream.report_at = Some(stream.report_at.map_or(answer, |at| at.min(answer)));
        }
    }

    /// As the event loop does with a frame to many.
    pub fn handle_stream(&mut self, turn: &mut Turn, port: usize, mut frame: Vec<u8>) {
        let offload = Offload::default();
        let port = PortId(port as u16);
        let copies = turn
            .gateway
            .handle_multicast(turn.now, port, &mut frame, offload);
        assert!(
            copies == 0 || !turn.resumed,
            "a unit that has slept sends a stream on"
        );
        for copy in 0..copies {
            if let Some(exit) = turn.gateway.multicast_copy(copy, &mut frame, offload) {
                self.carry_from_port(turn.unit, exit.index(), frame.clone());
            }
        }
    }

    /// What was sent between two times came to who wants it, and to nobody else.
    pub fn check_streams(&self, from: Time, to: Time) {
        for stream in &self.streams {
            let sent = stream.datagrams.iter().enumerate();
            for (number, (at, came)) in sent.filter(|(_, (at, _))| (from..to).contains(at)) {
                assert_eq!(
                    *came,
                    u32::from(stream.wanted),
                    "datagram {number} to {}, sent at {:.3}",
                    stream.to,
                    at.as_nanos() as f64 / 1e9
                );
            }
        }
    }

    /// What the primary knows of streams, all others know too.
    pub fn check_stream_sessions(&self) {
        let sessions = |unit: usize| {
            let gateway = self.units[unit].gateway.as_ref().unwrap();
            let all = gateway.multicast_page(None, usize::MAX, self.now);
            all.map(|(at, _)| at).collect::<Vec<_>>()
        };
        for stream in &self.streams {
            let (group, source) = (stream.to, self.sender_of(stream));
            let primary = self.primaries(stream.group)[0];
            if !sessions(primary).contains(&(group, source)) {
                assert!(!stream.wanted, "{primary} does not send {group} on");
                continue;
            }
            let others = (0..self.shape.units).filter(|unit| *unit != primary);
            for unit in others.filter(|unit| self.is_alive(*unit)) {
                let knows = sessions(unit).contains(&(group, source));
                assert!(knows, "unit {unit} knows nothing of {group} of {primary}");
            }
        }
    }

    fn sender_of(&self, stream: &Stream) -> Addr {
        host_address(2 * stream.group + 1, 0, stream.to.family())
    }

    /// What the primary knows of its hosts, all others know too.
    pub fn check_members(&self) {
        let members = |unit: usize| {
            let gateway = self.units[unit].gateway.as_ref().unwrap();
            let all = gateway.multicast_members();
            all.map(|member| (member.port, member.group, member.wanted))
                .collect::<Vec<_>>()
        };
        let groups = (0..self.shape.groups).filter(|group| self.shape.has_streams(*group));
        for group in groups {
            let segment = self.shape.stream_lan(group);
            let lan = PortId(self.shape.port_of(segment) as u16);
            let primary = self.primaries(segment / 2)[0];
            let wanted: Vec<_> = members(primary)
                .into_iter()
                .filter(|(port, ..)| *port == lan)
                .collect();
            for unit in (0..self.shape.units).filter(|unit| self.shape.multicast_at(*unit, group)) {
                let held = members(unit);
                for member in &wanted {
                    assert!(
                        held.contains(member),
                        "unit {unit} lacks {member:?} of {primary}"
                    );
                }
            }
        }
    }
}

/// Streams go on whatever happens to the unit that sends them on, and come to nobody twice.
#[test]
fn streams_survive_whatever_happens() {
    crate::try_seeds(4, |seed| {
        let mut random = SplitMix64(seed ^ 0x57ea);
        let shape = Shape {
            units: 2 + random.below(2),
            groups: 1 + random.below(2),
            spread: random.chance(500),
            multicast: true,
            ..Shape::PAIR
        };
        run_with(seed, shape, random);
    });
}

/// The same for each failure by itself, in a good network.
#[test]
fn streams_survive_each_failure() {
    survive_each_failure(Shape {
        multicast: true,
        ..Shape::PAIR
    });
}

/// The primary of the port that a stream comes in by has no hosts of its own to ask.
#[test]
fn streams_into_the_ports_of_another_group_survive_each_failure() {
    survive_each_failure(Shape {
        groups: 2,
        spread: true,
        multicast: true,
        crossed: true,
        ..Shape::PAIR
    });
}

/// Two and three units in turns.
fn survive_each_failure(shape: Shape) {
    crate::install_logger();
    for (seed, failure) in FAILURE_KINDS.into_iter().enumerate() {
        let shape = Shape {
            units: 2 + seed % 2,
            ..shape
        };
        let mut world = World::new(seed as u64, shape, Faults::NONE);
        world.run(ms(10_000));
        world.survive(failure);
    }
}

/// A unit is told of streams by who takes over, though it could not reach who sent them on before.
#[test]
fn who_takes_over_tells_units_that_were_told_nothing() {
    crate::install_logger();
    let shape = Shape {
        units: 3,
        groups: 2,
        spread: true,
        multicast: true,
        crossed: true,
        ..Shape::PAIR
    };
    for seed in 0..4 {
        let mut world = World::new(seed, shape, Faults::NONE);
        world.run(ms(10_000));
        world.check_stream_sessions();
        // It is the router of the hosts before, and has no members to ask for when it takes over.
        let [primary, other] = [0, 1].map(|group| world.primaries(group)[0]);
        let late = 3 - primary - other;
        world.die(late, Death::Killed);
        world.run(ms(1000));
        world.cut_off[late][primary] = true;
        world.cut_off[primary][late] = true;
        world.start(late);
        world.run(ms(3000));
        assert_eq!(world.primaries(0), [primary]);
        world.die(primary, Death::Killed);
        world.run(ms(2000));
        assert_eq!(world.primaries(0), [other]);
        world.check_stream_sessions();
    }
}

/// Other policies that let the same streams pass cost none of them a datagram.
#[test]
fn streams_lose_nothing_by_a_reload() {
    crate::install_logger();
    let shape = Shape {
        groups: 2,
        multicast: true,
        ..Shape::PAIR
    };
    for seed in 0..4 {
        let mut world = World::new(seed, shape, Faults::NONE);
        world.run(ms(10_000));
        let began = world.now;
        for _ in 0..3 {
            world.reload_harmlessly();
        }
        let ended = world.now;
        world.run(ms(500));
        world.check_streams(began, ended);
    }
}
