//! Hosts: they find the gateway by ARP and ND, open flows, answer, and retransmit.
//!
//! Every packet carries the number of its flow and of the exchange, so that one that reaches the
//! wrong flow is seen. All sequence numbers follow from that number.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tandemgw_core::event::Offload;
use tandemgw_core::flow::{Addr, Family, Protocol};
use tandemgw_core::packet::neighbor::{self, Neighbor};
use tandemgw_core::packet::{self, PacketKind};
use tandemgw_core::time::Time;

use crate::attack::is_forged;
use crate::setup::{HOSTS, WEB, host_address, host_mac, place_of, unit_mac, vip};
use crate::streams::is_stream;
use crate::world::{Arrival, Event, Spread, World};
use testkit::packets::{ACK, Body, FIN_ACK, Pkt, RST, SYN, SYN_ACK, echo_request, tcp, udp};

/// A host on a segment.
#[derive(Debug, Default)]
pub struct Host {
    /// Which part of the segment it is on, if that has fallen apart.
    pub part: usize,
    /// Where it believes the gateway to be, by family.
    pub gateway: [Option<[u8; 6]>; 2],
    /// TCP connections as a server: by its own port, and the client as it sees it.
    connections: BTreeMap<(u16, Addr, u16), u32>,
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Opening,
    Open,
    Closing,
    Done,
    /// Reset by the other end, which does not know it.
    Broken,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from, self.to);
        let stage = self.stage;
        write!(
            f,
            "{} port {} to {} port {}: {stage:?}",
            from.0, from.1, to.0, to.1
        )
    }
}

/// A conversation: the client asks and repeats, the server answers.
#[derive(Clone, Debug)]
pub struct Flow {
    pub protocol: Protocol,
    pub client: (usize, usize),
    pub from: (Addr, u16),
    pub to: (Addr, u16),
    pub stage: Stage,
    /// Exchanges that are complete.
    pub exchanges: u32,
    /// The client as the server saw it last.
    pub seen_as: Option<(Addr, u16)>,
    /// How often that has changed.
    pub moves: u32,
    last_sent: Time,
    repeats: u32,
    ask_at: Time,
}

const REPEAT_AFTER: Duration = Duration::from_millis(100);
const MOST_REPEATS: u32 = 100;
/// The interval of a flow's exchanges, at most.
const THINKING: Duration = Duration::from_millis(150);

const CLIENT_START: u32 = 1_000_000;
const SERVER_START: u32 = 9_000_000;
/// Bytes of data in each segment: the flow and the exchange.
const DATA: u32 = 8;

impl Flow {
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Broken)
    }

    fn request(&self, id: usize) -> Pkt {
        let payload = payload(id, self.exchanges);
        let client = CLIENT_START + 1 + DATA * self.exchanges;
        let server = SERVER_START + 1 + DATA * self.exchanges;
        match (self.protocol, self.stage) {
            (Protocol::TCP, Stage::Opening) => tcp(self.from, self.to, SYN, CLIENT_START, 0),
            (Protocol::TCP, Stage::Closing) => tcp(self.from, self.to, FIN_ACK, client, server),
            (Protocol::TCP, _) => tcp(self.from, self.to, ACK, client, server).payload(&payload),
            (Protocol::UDP, _) => udp(self.from, self.to).payload(&payload),
            _ => echo_request(self.from, self.to.0).payload(&payload),
        }
    }
}

fn payload(id: usize, exchange: u32) -> [u8; 8] {
    (u64::from(id as u32) << 32 | u64::from(exchange)).to_be_bytes()
}

/// The flow and the exchange that a packet is of.
pub fn read_payload(bytes: &[u8]) -> Option<(usize, u32)> {
    let tail = bytes.last_chunk::<8>()?;
    let word = u64::from_be_bytes(*tail);
    Some(((word >> 32) as usize, word as u32))
}

pub fn family_index(family: Family) -> usize {
    usize::from(family == Family::V6)
}

/// Whether a packet goes from a client to its server.
pub fn is_request(parsed: &packet::Parsed) -> bool {
    matches!(parsed.key.dst_port, 443 | 53 | 80 | 8080) || parsed.kind == PacketKind::IcmpRequest
}

impl World {
    /// Opens a flow between random hosts, if its addresses and ports are free.
    pub fn open_flow(&mut self) {
        let group = self.random.below(self.shape.groups);
        self.open_flow_in(group);
    }

    /// The same between hosts of one group.
    pub fn open_flow_in(&mut self, group: usize) {
        let (lan, wan) = (2 * group, 2 * group + 1);
        let family = [Family::V4, Family::V6][self.random.below(2)];
        let inside = 1 + self.random.below(HOSTS - 1);
        let outside = self.random.below(HOSTS);
        // Few ports, so that hosts use the same ones.
        let port = self.client_ports + self.random.below(12) as u16;
        let inner = host_address(lan, inside, family);
        let outer = host_address(wan, outside, family);
        let (protocol, client, from, to) = match self.random.below(8) {
            0..3 => (Protocol::TCP, (lan, inside), (inner, port), (outer, 443)),
            3..5 => (Protocol::UDP, (lan, inside), (inner, port), (outer, 53)),
            5 => (Protocol::ICMP, (lan, inside), (inner, port), (outer, 0)),
            _ => {
                let from = (host_address(wan, outside, Family::V4), port);
                (
                    Protocol::TCP,
                    (wan, outside),
                    from,
                    (vip(wan, Family::V4), 8080),
                )
            }
        };
        let taken = |flow: &Flow| {
            !flow.is_over() && (flow.protocol, flow.from, flow.to) == (protocol, from, to)
        };
        if self.flows.iter().any(taken) {
            return;
        }
        let stage = if protocol == Protocol::TCP {
            Stage::Opening
        } else {
            Stage::Open
        };
        self.flows.push(Flow {
            protocol,
            client,
            from,
            to,
            stage,
            exchanges: 0,
            seen_as: None,
            moves: 0,
            last_sent: Time::ZERO,
            repeats: 0,
            ask_at: self.now,
        });
    }

    /// Sends what is due of all flows.
    pub fn tend_flows(&mut self) {
        for id in 0..self.flows.len() {
            let now = self.now;
            let flow = &mut self.flows[id];
            if flow.is_over() || now < flow.ask_at {
                continue;
            }
            let first = flow.last_sent < flow.ask_at;
            if !first && now.since(flow.last_sent) < REPEAT_AFTER {
                continue;
            }
            flow.repeats = if first { 0 } else { flow.repeats + 1 };
            self.repeated += u64::from(!first);
            flow.last_sent = now.max(flow.ask_at);
            if flow.repeats > MOST_REPEATS {
                flow.stage = Stage::Broken;
                continue;
            }
            let packet = flow.request(id);
            let (client, doubts) = (flow.client, flow.repeats % 4 == 3);
            if doubts {
                self.forget_gateway(client, packet.src.family());
            }
            self.host_sends(client, &packet);
        }
    }

    /// Ends some flow in good order.
    pub fn close_some_flow(&mut self) {
        if self.flows.is_empty() {
            return;
        }
        let at = self.random.below(self.flows.len());
        let flow = &mut self.flows[at];
        match (flow.stage, flow.protocol) {
            (Stage::Open, Protocol::TCP) => flow.stage = Stage::Closing,
            (Stage::Open, _) => flow.stage = Stage::Done,
            _ => {}
        }
    }

    /// A client resets some flow that is open.
    pub fn reset_some_flow(&mut self) {
        let is_open = |flow: &Flow| flow.stage == Stage::Open && flow.protocol == Protocol::TCP;
        let open: Vec<usize> = (0..self.flows.len())
            .filter(|id| is_open(&self.flows[*id]))
            .collect();
        let Some(&id) = open.get(self.random.below(open.len())) else {
            return;
        };
        let flow = &mut self.flows[id];
        flow.stage = Stage::Done;
        let seq = CLIENT_START + 1 + DATA * flow.exchanges;
        let (client, reset) = (flow.client, tcp(flow.from, flow.to, RST, seq, 0));
        self.host_sends(client, &reset);
    }

    fn forget_gateway(&mut self, (segment, host): (usize, usize), family: Family) {
        self.hosts[segment][host].gateway[family_index(family)] = None;
    }

    /// Sends a packet to the gateway, or asks first where that is: the packet is repeated anyway.
    fn host_sends(&mut self, (segment, host): (usize, usize), packet: &Pkt) {
        let family = packet.src.family();
        let known = match self.router_of((segment, host)) {
            Some(unit) => Some(self.macs(unit, segment)),
            None => self.hosts[segment][host].gateway[family_index(family)],
        };
        match known {
            Some(mac) => self.carry_packet((segment, host), mac, packet.bytes()),
            None => {
                let (own, mac) = (host_address(segment, host, family), host_mac(segment, host));
                let frame = neighbor::solicit(vip(segment, family), own, mac);
                self.carry_frame(segment, mac, frame);
            }
        }
    }

    /// The unit that the routers choose, if there are any.
    fn router_of(&mut self, (segment, host): (usize, usize)) -> Option<usize> {
        if self.spread == Spread::Gateway {
            return None;
        }
        let part = self.hosts[segment][host].part;
        let units = (0..self.shape.units).filter(|unit| self.runs(*unit));
        let there: Vec<usize> = units
            .filter(|unit| self.hears(*unit, segment, part))
            .collect();
        match self.spread {
            Spread::To(unit) if there.contains(&unit) => Some(unit),
            _ => {
                let at = self.random.below(there.len().max(1));
                there.get(at).copied()
            }
        }
    }

    /// A frame of a unit or another host.
    pub fn host_hears(&mut self, (segment, host): (usize, usize), frame: &[u8]) {
        if is_stream(frame) {
            return self.host_hears_stream((segment, host), frame);
        }
        let (addr, mac) = match neighbor::parse_frame(frame) {
            Ok(Neighbor::Advertise(claim)) => (claim.addr, claim.mac),
            Ok(Neighbor::Solicit(solicit)) => (solicit.sender, solicit.sender_mac),
            _ => return,
        };
        if addr == vip(segment, addr.family()) {
            let known = &mut self.hosts[segment][host].gateway[family_index(addr.family())];
            if known.replace(mac) != Some(mac) {
                self.note(|| format!("host {host} of {segment} finds {addr} at unit {}", mac[4]));
            }
        }
    }

    /// A packet that a unit has forwarded.
    pub fn host_receives(&mut self, place: (usize, usize), bytes: &[u8]) {
        let Ok(parsed) = packet::parse(bytes, Offload::default()) else {
            panic!("a host got an invalid packet: {bytes:02x?}");
        };
        assert!(
            packet::checksum_ok(bytes, &parsed, Offload::default()),
            "a wrong checksum: {}",
            parsed.key
        );
        let is_reset = matches!(parsed.kind, PacketKind::Tcp(segment) if segment.flags.rst());
        if is_reset || parsed.kind == PacketKind::IcmpError {
            self.refusals.push((place.0, parsed.key.src));
        }
        if is_forged(bytes) || parsed.kind == PacketKind::IcmpError {
            return;
        }
        let key = parsed.key;
        if key.dst_port == 53 && bytes.ends_with(b"many") {
            self.forwarded_many += 1;
            return;
        }
        let (own, other) = ((key.dst, key.dst_port), (key.src, key.src_port));
        let serves = matches!(own.1, 443 | 53 | 80) || parsed.kind == PacketKind::IcmpRequest;
        if serves {
            self.serve(place, bytes, &parsed);
        } else {
            let own = if parsed.kind == PacketKind::IcmpReply {
                (key.dst, key.dst_port)
            } else {
                own
            };
            self.hear_answer(own, other, bytes, &parsed);
        }
    }

    fn serve(&mut self, place: (usize, usize), bytes: &[u8], parsed: &packet::Parsed) {
        let key = parsed.key;
        let (own, client) = ((key.dst, key.dst_port), (key.src, key.src_port));
        let answer = match parsed.kind {
            PacketKind::Tcp(segment) => {
                let connections = &mut self.hosts[place.0][place.1].connections;
                let entry = (own.1, client.0, client.1);
                let flags = segment.flags;
                if flags.rst() {
                    connections.remove(&entry);
                    return;
                }
                if flags.syn() {
                    connections.insert(entry, segment.seq);
                    tcp(
                        own,
                        client,
                        SYN_ACK,
                        SERVER_START,
                        segment.seq.wrapping_add(1),
                    )
                } else if !connections.contains_key(&entry) {
                    tcp(own, client, RST, segment.ack, 0)
                } else if flags.fin() {
                    connections.remove(&entry);
                    tcp(
                        own,
                        client,
                        FIN_ACK,
                        segment.ack,
                        segment.seq.wrapping_add(1),
                    )
                } else if let Some((id, exchange)) = read_payload(bytes) {
                    self.note_source(id, client);
                    tcp(
                        own,
                        client,
                        ACK,
                        segment.ack,
                        segment.seq.wrapping_add(DATA),
                    )
                    .payload(&payload(id, exchange))
                } else {
                    return;
                }
            }
            _ => {
                let Some((id, exchange)) = read_payload(bytes) else {
                    return;
                };
                self.note_source(id, client);
                let answer = match parsed.kind {
                    PacketKind::Udp => udp(own, client),
                    _ => {
                        let id = key.src_port;
                        let body = Body::Echo {
                            reply: true,
                            id,
                            payload: Vec::new(),
                        };
                        Pkt::new(own.0, client.0, body)
                    }
                };
                answer.payload(&payload(id, exchange))
            }
        };
        self.host_sends(place, &answer);
    }

    fn note_source(&mut self, id: usize, client: (Addr, u16)) {
        if let Some(flow) = self.flows.get_mut(id) {
            let before = flow.seen_as.replace(client);
            flow.moves += u32::from(before.is_some_and(|before| before != client));
        }
    }

    fn hear_answer(
        &mut self,
        own: (Addr, u16),
        other: (Addr, u16),
        bytes: &[u8],
        parsed: &packet::Parsed,
    ) {
        let key = parsed.key;
        let protocol = if key.protocol == Protocol::ICMPV6 {
            Protocol::ICMP
        } else {
            key.protocol
        };
        let is_mine = |flow: &Flow| {
            let to = if protocol == Protocol::ICMP {
                (other.0, 0)
            } else {
                other
            };
            !flow.is_over() && (flow.protocol, flow.from, flow.to) == (protocol, own, to)
        };
        let Some(id) = self.flows.iter().position(is_mine) else {
            return;
        };
        let think = self.random.up_to(THINKING);
        let ask_at = self.now + think;
        let flow = &mut self.flows[id];
        if let PacketKind::Tcp(segment) = parsed.kind {
            let flags = segment.flags;
            if flags.rst() {
                flow.stage = if flow.stage == Stage::Closing {
                    Stage::Done
                } else {
                    Stage::Broken
                };
                return;
            }
            if flags.syn() || flags.fin() {
                flow.stage = if flags.syn() {
                    Stage::Open
                } else {
                    Stage::Done
                };
                flow.ask_at = ask_at;
                // The handshake ends with the first data; the last acknowledgment is not missed.
                return;
            }
        }
        let Some((of, exchange)) = read_payload(bytes) else {
            return;
        };
        if of != id {
            self.crossed += 1;
            return;
        }
        if exchange == flow.exchanges && flow.stage == Stage::Open {
            flow.exchanges += 1;
            flow.ask_at = ask_at;
        }
    }

    /// Puts an IP packet of a host on its segment.
    pub fn carry_packet(&mut self, (segment, host): (usize, usize), mac: [u8; 6], bytes: Vec<u8>) {
        let part = self.hosts[segment][host].part;
        let unit = (0..self.shape.units).find(|unit| self.macs(*unit, segment) == mac);
        let Some(unit) = unit else { return };
        if !self.hears(unit, segment, part) || self.random.chance(self.faults.packet_loss) {
            return;
        }
        let port = self.shape.port_of(segment);
        let arrival = Arrival::Packet { port, bytes };
        self.arrive_soon(unit, arrival);
    }

    /// Hands a forwarded packet to the host that it is for.
    pub fn deliver_packet(&mut self, unit: usize, bytes: Vec<u8>) {
        let Ok(parsed) = packet::parse(&bytes, Offload::default()) else {
            panic!("a unit forwarded an invalid packet");
        };
        let (segment, last) = place_of(&parsed.key.dst);
        let Some(host) = last.checked_sub(10).filter(|host| *host < HOSTS) else {
            return;
        };
        let part = self.hosts[segment][host].part;
        if !self.speaks(unit, segment, part) || self.random.chance(self.faults.packet_loss) {
            return;
        }
        let delay = self.random.up_to(self.faults.most_delay);
        self.post(
            delay,
            Event::Packet {
                place: (segment, host),
                bytes,
            },
        );
    }

    /// Puts a frame of a unit on the networks behind a port.
    pub fn carry_from_port(&mut self, unit: usize, port: usize, frame: Vec<u8>) {
        let state = self.units[unit].ports[port];
        if state.up && !state.mute {
            self.carry(port, state.part, unit_mac(unit, port), frame);
        }
    }

    /// Puts a frame of a host on its segment.
    pub fn carry_frame(&mut self, segment: usize, from: [u8; 6], frame: Vec<u8>) {
        let host = (0..HOSTS).find(|host| host_mac(segment, *host) == from);
        if let Some(host) = host {
            let part = self.hosts[segment][host].part;
            self.carry(self.shape.port_of(segment), part, from, frame);
        }
    }

    fn carry(&mut self, port: usize, part: usize, from: [u8; 6], frame: Vec<u8>) {
        let to: [u8; 6] = frame[..6].try_into().unwrap();
        let is_group = to[0] & 1 != 0;
        let places = self.shape.segments_of(port);
        for (segment, host) in
            places.flat_map(|segment| (0..HOSTS).map(move |host| (segment, host)))
        {
            let mac = host_mac(segment, host);
            let heard = mac != from && (is_group || mac == to);
            if heard && self.hosts[segment][host].part == part {
                let delay = self.random.up_to(self.faults.most_delay);
                let place = (segment, host);
                self.post(
                    delay,
                    Event::Frame {
                        place,
                        frame: frame.clone(),
                    },
                );
            }
        }
        for unit in 0..self.shape.units {
            let mac = unit_mac(unit, port);
            let state = self.units[unit].ports[port];
            let is_reached = state.up && state.part == part && !state.deaf;
            if mac != from && (is_group || mac == to) && is_reached {
                let bytes = frame.clone();
                let arrival = match is_stream(&frame) {
                    true => Arrival::Stream { port, bytes },
                    false => Arrival::Frame { port, bytes },
                };
                self.arrive_soon(unit, arrival);
            }
        }
    }

    /// All flows that ask for something, and how far they are.
    pub fn progress(&self) -> Vec<(usize, u32)> {
        let open = self
            .flows
            .iter()
            .enumerate()
            .filter(|(_, flow)| flow.stage == Stage::Open);
        open.map(|(id, flow)| (id, flow.exchanges)).collect()
    }
}

const _: () = assert!(WEB == 0, "inside hosts other than the server are clients");
