//! One turn of a unit's loop: the same calls in the same order as `os::event_loop`.

use std::time::Duration;

use tandemgw_core::event::{LinkState, Offload, Output, Verdict};
use tandemgw_core::flow::{LinkId, PortId};
use tandemgw_core::gateway::{Gateway, Role};
use tandemgw_core::packet;
use tandemgw_core::pump::Pump;
use tandemgw_core::time::Time;

use crate::fast;
use crate::hosts::is_request;
use crate::setup::{NAMES, place_of, unit_mac};
use crate::wires::Wires;
use crate::world::{Arrival, Death, TURN, World};

/// The hold time of all units, see `setup.rs`.
pub const HOLD: Duration = Duration::from_millis(60);
/// Turns between two looks at the invariants.
const TURNS_PER_CHECK: u64 = 16;
/// Turns between two comparisons of what was acknowledged with what is held.
const TURNS_PER_COMPARISON: u64 = 128;

/// Turns between two comparisons of the status with what peers hold.
const TURNS_PER_AUDIT: u64 = 32;

/// A unit at work.
pub struct Turn {
    pub unit: usize,
    pub now: Time,
    pub gateway: Gateway,
    pub pump: Pump,
    /// The unit did not run for longer than the hold time.
    pub resumed: bool,
    /// By group: its role and term at the start of the turn.
    pub before: Vec<(Role, u64)>,
    /// Sessions that had no copy since no peer was in sync: those before the turn, and those of it
    /// whose packets were seen to leave.
    pub degraded: u64,
}

impl World {
    /// One turn of a unit's loop.
    pub fn turn(&mut self, unit: usize) {
        self.turns += 1;
        let now = self.local_time(unit);
        let Some(gateway) = self.units[unit].gateway.take() else {
            return;
        };
        let pump = std::mem::replace(&mut self.units[unit].pump, Pump::new(0));
        let last_turn = std::mem::replace(&mut self.units[unit].last_turn, self.now);
        let last_wake = last_turn.max(self.units[unit].last_wake);
        let mut turn = Turn {
            unit,
            now,
            degraded: gateway.counters().guarantee_degraded,
            gateway,
            pump,
            resumed: self.now.since(last_wake) > HOLD,
            before: Vec::new(),
        };
        turn.before = self.known_reigns(&turn);
        turn.gateway.handle_wake(now);
        let due = self.due(unit);
        let mut packets = Vec::new();
        let mut frames = Vec::new();
        let mut streams = Vec::new();
        for arrival in due {
            match arrival {
                Arrival::Packet { .. } => packets.push(arrival),
                Arrival::Frame { .. } => frames.push(arrival),
                Arrival::Stream { .. } => streams.push(arrival),
                Arrival::Link { .. } | Arrival::Carrier { .. } => self.handle(&mut turn, arrival),
            }
        }
        let mut wires = Wires::of(self, unit);
        turn.pump.receive(now, &mut turn.gateway, &mut wires);
        self.serve_witness(&mut turn);
        for arrival in frames {
            self.handle(&mut turn, arrival);
        }
        self.drain(&mut turn);
        for arrival in packets.into_iter().chain(streams) {
            self.handle(&mut turn, arrival);
        }
        if turn.gateway.poll_timeout(now).is_some_and(|at| at <= now) {
            turn.gateway.handle_timeout(now);
        }
        fast::enter_sessions(&mut turn);
        self.drain(&mut turn);
        let mut wires = Wires::of(self, unit);
        turn.pump.send(now, &mut turn.gateway, &mut wires);
        self.drain(&mut turn);
        self.finish_turn(turn);
    }

    /// Between turns, as for an administrator: the unit notices if it was paused. Returns its time.
    pub fn rouse(&mut self, unit: usize) -> Time {
        let now = self.local_time(unit);
        if let Some(gateway) = &mut self.units[unit].gateway {
            gateway.handle_wake(now);
        }
        self.units[unit].last_wake = self.now;
        now
    }

    /// The roles and terms of a unit, by group; not followed where units do not have the same
    /// groups.
    pub fn known_reigns(&self, turn: &Turn) -> Vec<(Role, u64)> {
        match self.shape.lacks.is_some() || self.shape.regrouped {
            false => self.reigns_of(turn),
            true => Vec::new(),
        }
    }

    /// The packets that have arrived on the ports of `unit`.
    fn due(&mut self, unit: usize) -> Vec<Arrival> {
        let inbox = &mut self.units[unit].inbox;
        let mut due = Vec::new();
        while let Some(entry) = inbox.first_entry().filter(|e| e.key().0 <= self.now) {
            due.push(entry.remove());
        }
        due
    }

    fn finish_turn(&mut self, turn: Turn) {
        self.check_reigns(&turn, &turn.before);
        if self.turns.is_multiple_of(TURNS_PER_COMPARISON) && self.liar.is_none() {
            self.check_copies(&turn);
        }
        if self.turns.is_multiple_of(TURNS_PER_AUDIT) {
            self.check_figures(&turn);
        }
        // A unit in the middle of a batch is the one that could promise too much.
        let is_sample = self.turns.is_multiple_of(TURNS_PER_COMPARISON);
        if (turn.pump.is_busy() || is_sample) && self.liar.is_none() {
            self.check_applied(&turn);
        }
        let after = self.known_reigns(&turn);
        let Turn {
            unit,
            now,
            gateway,
            pump,
            before,
            ..
        } = turn;
        if self.turns.is_multiple_of(TURNS_PER_CHECK) {
            gateway.check_invariants();
            let lost = gateway.counters().outputs_lost;
            assert_eq!(lost, 0, "{} has dropped outputs", NAMES[unit]);
        }
        for (group, ((old, _), (new, term))) in before.iter().zip(after).enumerate() {
            if *old != new {
                self.last_move[group] = Some(self.now);
                // The others have not heard of it.
                self.calm_since = self.now;
                self.note(|| format!("{} is {new:?} of group {group}, term {term}", NAMES[unit]));
            }
        }
        let timeout = gateway.poll_timeout(now).map(|at| self.now + at.since(now));
        let gone = gateway.is_gone();
        let soon = pump.is_busy().then_some(self.now + TURN);
        let machine = &mut self.units[unit];
        let inbox = machine.inbox.first_key_value().map(|((at, _), _)| *at);
        let news = machine.news.first_key_value().map(|((at, _), _)| *at);
        let reads = machine.heard.has_streams().then_some(machine.reads_from);
        let next = [inbox, news, reads, timeout, soon, machine.asks_at]
            .into_iter()
            .flatten()
            .min();
        machine.wakes_at = next.unwrap_or(self.now + Duration::from_secs(1));
        machine.gateway = Some(gateway);
        machine.pump = pump;
        if gone {
            self.die(unit, Death::Goodbye);
        }
    }

    fn handle(&mut self, turn: &mut Turn, arrival: Arrival) {
        let (unit, now) = (turn.unit, turn.now);
        match arrival {
            Arrival::Frame { port, bytes } => {
                turn.gateway.handle_frame(now, PortId(port as u16), &bytes);
            }
            Arrival::Link { port, up } => {
                let state = link_state(unit, port, up);
                turn.gateway.handle_link(now, PortId(port as u16), state);
            }
            Arrival::Carrier { link, up } => {
                let link = LinkId(link as u8);
                turn.pump.handle_carrier(now, link, up, &mut turn.gateway);
            }
            Arrival::Packet { port, bytes } => self.handle_packet(turn, port, bytes),
            Arrival::Stream { port, bytes } => self.handle_stream(turn, port, bytes),
        }
    }

    fn handle_packet(&mut self, turn: &mut Turn, port: usize, mut bytes: Vec<u8>) {
        // Not the number of sessions: in a full table a new one takes the place of another.
        let known = turn.gateway.counters().opened;
        let parsed = packet::parse(&bytes, Offload::default());
        let asks = parsed.as_ref().is_ok_and(is_request);
        let asked = parsed.map(|parsed| parsed.key);
        let port = PortId(port as u16);
        let offload = Offload::default();
        let verdict = turn
            .gateway
            .handle_packet(turn.now, port, &mut bytes, offload);
        if let Ok(key) = asked
            && turn.gateway.counters().opened > known
        {
            let session = (turn.unit, key.to_string());
            self.asked.insert(session, self.now);
        }
        match verdict {
            Verdict::Forward => {
                self.check_awake(turn, &bytes);
                if let Some(group) = group_of(&bytes).filter(|it| *it < self.shape.groups) {
                    if !self.shape.asymmetric {
                        self.check_role(turn, group);
                    }
                    if self.shape.slots == 0 {
                        self.note_carried(turn.unit, group, asks);
                    }
                }
                if turn.gateway.counters().opened > known {
                    self.check_guarantee(turn, &bytes);
                }
                self.deliver_packet(turn.unit, bytes);
            }
            Verdict::Drop(reason) => {
                self.note(|| format!("{} drops: {}", NAMES[turn.unit], reason.name()));
            }
            _ => {}
        }
    }

    fn drain(&mut self, turn: &mut Turn) {
        while let Some(output) = turn.gateway.poll_output() {
            match output {
                Output::Packet { bytes, .. } => {
                    self.check_awake(turn, &bytes);
                    self.check_guarantee(turn, &bytes);
                    self.deliver_packet(turn.unit, bytes);
                }
                Output::Frame { port, bytes } => {
                    self.carry_from_port(turn.unit, port.index(), bytes);
                }
                Output::Heartbeat { peer, link, bytes } => {
                    self.send_datagram(turn.unit, peer, link, &bytes);
                }
                Output::PassOn { peer, link, bytes } => {
                    self.pass_on(turn.unit, peer, link, bytes);
                }
                // The kernels of this world know their neighbours.
                Output::Resolve { .. } | Output::Neighbor { .. } | Output::Probe { .. } => {}
                Output::CloseStream { peer, link } => {
                    self.note(|| {
                        format!(
                            "{} leaves the stream to {peer:?} on {link:?}",
                            NAMES[turn.unit]
                        )
                    });
                    let mut wires = Wires::leaving(self, turn.unit);
                    turn.pump.close_stream(peer, link, &mut wires);
                }
            }
        }
    }
}

/// The group of the hosts that a packet goes to.
fn group_of(bytes: &[u8]) -> Option<usize> {
    let parsed = packet::parse(bytes, Offload::default()).ok()?;
    Some(place_of(&parsed.key.dst).0 / 2)
}

pub fn sessions(gateway: &Gateway) -> u32 {
    let counts = gateway.session_counts();
    counts.tcp + counts.udp + counts.icmp + counts.other
}

pub fn link_state(unit: usize, port: usize, up: bool) -> LinkState {
    LinkState {
        up,
        mtu: 1500,
        mac: unit_mac(unit, port),
    }
}
