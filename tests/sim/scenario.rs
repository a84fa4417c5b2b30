//! The phases of a run: chaos; quiet, in which all must agree; then single failures, each of which
//! must cost no session.

use std::collections::BTreeMap;
use std::time::Duration;

use tandemgw_core::flow::{GroupId, PeerId};
use tandemgw_core::gateway::HandoverEnd;
use tandemgw_core::random::SplitMix64;

use crate::faults::Faults;
use crate::hosts::Stage;
use crate::setup::peer_id;
use crate::setup::{HOSTS, NAMES, Shape};
use crate::world::{Death, News, Spread, World};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Moments of chaos.
const MOMENTS: usize = 40;
/// Single failures in a run.
const FAILURES: usize = 3;
/// The limit of a table that is full most of the time, and of one that never is.
const FULL: u32 = 16;
const ROOMY: u32 = 256;
/// Election, connections and at least two comparisons of digests.
const SETTLE: Duration = ms(8000);

/// A failure that all sessions survive.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    Kill,
    PowerLoss,
    /// The process is back before anybody misses it.
    Restart,
    Stop,
    Pause,
    PortDown,
    AllLinksDown,
    CarrierLost,
    OneLinkDown,
    StreamEnds,
    Handover,
    StandbyDies,
    /// Not a failure, but nothing more may be lost by it.
    Reload,
}

pub const FAILURE_KINDS: [Failure; 13] = [
    Failure::Kill,
    Failure::PowerLoss,
    Failure::Restart,
    Failure::Stop,
    Failure::Pause,
    Failure::PortDown,
    Failure::AllLinksDown,
    Failure::CarrierLost,
    Failure::OneLinkDown,
    Failure::StreamEnds,
    Failure::Handover,
    Failure::StandbyDies,
    Failure::Reload,
];

/// A whole run; returns the hash of its trace.
pub fn run(seed: u64) -> u64 {
    run_in(seed, false).trace
}

/// A whole run, with or without the fast path.
pub fn run_in(seed: u64, fast: bool) -> World {
    let mut random = SplitMix64(seed ^ 0x5eed);
    let units = [2, 2, 2, 3, 3, 4, 4, 5 + random.below(4)][random.below(8)];
    let groups = [1, 1, 2, 2, 3, 4][random.below(6)];
    let mut shape = Shape {
        units,
        groups,
        shared_wan: random.chance(400),
        spread: random.chance(500),
        links: 1 + random.below(2),
        guarantee: ["off", "bounded", "strict"][random.below(3)],
        override_: random.chance(300),
        // Primaries of several groups fill their tables without regard to each other.
        max_sessions: if groups == 1 && random.chance(200) {
            FULL
        } else {
            ROOMY
        },
        fast,
        ..Shape::PAIR
    };
    // By a number of its own, so that a seed gives the same faults with streams and without.
    shape.multicast = !shape.shared_wan && SplitMix64(seed ^ 0x0ca57).chance(300);
    run_with(seed, shape, random)
}

/// A whole run of that shape.
pub fn run_with(seed: u64, shape: Shape, mut random: SplitMix64) -> World {
    let faults = some_of(&mut random);
    let mut world = World::new(seed, shape, faults);
    world.note(|| format!("{shape:?} {faults:?}"));
    // Hosts of slots use the unit that they are told.
    if shape.asymmetric && shape.slots == 0 {
        world.spread = Spread::EachPacket;
    }
    world.run(ms(1500));
    for _ in 0..MOMENTS {
        world.change_something();
        let wait = world.random.up_to(ms(250));
        world.run(wait);
    }
    world.heal();
    world.expect_agreement();
    let failures = if shape.max_sessions == FULL {
        0
    } else {
        FAILURES
    };
    for _ in 0..failures {
        world.survive_a_failure();
    }
    world.note(|| "end".into());
    world
}

/// Each kind of fault is left out of some runs, so that others come to the fore.
fn some_of(random: &mut SplitMix64) -> Faults {
    let mut faults = Faults::ALL;
    let kinds = [
        &mut faults.heartbeat_loss,
        &mut faults.heartbeat_copies,
        &mut faults.packet_loss,
        &mut faults.link_cuts,
        &mut faults.one_way_cuts,
        &mut faults.isolations,
        &mut faults.splits,
        &mut faults.port_downs,
        &mut faults.half_ports,
        &mut faults.stream_breaks,
        &mut faults.slow_streams,
        &mut faults.slow_readers,
        &mut faults.carrier_losses,
        &mut faults.false_hints,
        &mut faults.attacks,
        &mut faults.pauses,
        &mut faults.crashes,
        &mut faults.stops,
        &mut faults.handovers,
        &mut faults.reloads,
        &mut faults.switches,
    ];
    for kind in kinds {
        if random.chance(400) {
            *kind = 0;
        }
    }
    faults.stream_window = [600, 8 * 1024, 64 * 1024][random.below(3)];
    faults
}

impl World {
    fn change_something(&mut self) {
        for _ in 0..self.random.below(4) {
            self.open_flow();
        }
        if self.random.chance(300) {
            self.close_some_flow();
        }
        let (units, faults) = (self.shape.units, self.faults);
        let (one, other) = (self.random.below(units), self.random.below(units));
        let link = self.random.below(self.shape.links);
        if one != other && self.random.chance(faults.link_cuts) {
            let cut = !self.cuts[link][one][other];
            self.note(|| format!("link {link} {} to {} cut={cut}", NAMES[one], NAMES[other]));
            self.cuts[link][one][other] = cut;
            self.cuts[link][other][one] = cut;
        }
        if one != other && self.random.chance(faults.one_way_cuts) {
            self.cuts[link][one][other] ^= true;
            self.note(|| format!("link {link} {} to {} cut one way", NAMES[one], NAMES[other]));
        }
        if one != other && self.random.chance(faults.isolations) {
            let cut = !self.cut_off[one][other];
            self.note(|| format!("all links {} to {} cut={cut}", NAMES[one], NAMES[other]));
            self.cut_off[one][other] = cut;
            self.cut_off[other][one] = cut;
        }
        if self.random.chance(faults.splits) {
            self.split();
        }
        if self.random.chance(faults.port_downs) {
            let port = self.random.below(self.shape.ports());
            let up = !self.units[one].ports[port].up;
            self.set_port(one, port, up);
        }
        if self.random.chance(faults.half_ports) {
            self.break_a_direction(one);
        }
        if self.random.chance(faults.stream_breaks) {
            self.break_some_stream();
        }
        if self.random.chance(faults.carrier_losses) {
            let up = !self.units[one].carrier[0];
            self.set_carrier(one, up);
        }
        self.disturb_a_reader(one, other);
        self.change_a_process(one, other);
        self.change_some_config(one);
    }

    /// A port carries one way only, or both ways again.
    fn break_a_direction(&mut self, unit: usize) {
        let at = self.random.below(self.shape.ports());
        let is_deaf = self.random.chance(500);
        let port = &mut self.units[unit].ports[at];
        match is_deaf {
            true => port.deaf ^= true,
            false => port.mute ^= true,
        }
        let state = *port;
        self.note(|| format!("{} port {at} is {state:?}", NAMES[unit]));
    }

    fn disturb_a_reader(&mut self, one: usize, other: usize) {
        if self.random.chance(self.faults.slow_readers) {
            let pause = self.random.up_to(ms(300));
            self.note(|| format!("{} reads no streams for {pause:?}", NAMES[one]));
            self.units[one].reads_from = self.now + pause;
        }
        if one != other && self.random.chance(self.faults.false_hints) {
            let peer = peer_id(one, other);
            let news = match self.random.chance(500) {
                true => News::Ended(peer),
                false => News::Refused(peer),
            };
            self.note(|| format!("{} hears {news:?}", NAMES[one]));
            self.tell_soon(one, news);
        }
    }

    fn change_a_process(&mut self, one: usize, other: usize) {
        let faults = self.faults;
        if self.random.chance(faults.pauses) {
            let pause = self.random.up_to(ms(400));
            self.pause(one, pause);
        }
        if self.is_alive(other) && self.random.chance(faults.crashes) {
            let death = match self.random.chance(500) {
                true => Death::Killed,
                false => Death::PowerLoss,
            };
            self.die(other, death);
        }
        if self.runs(one) && self.random.chance(faults.stops) {
            self.stop(one);
        }
        let dead: Vec<usize> = (0..self.shape.units)
            .filter(|unit| !self.is_alive(*unit))
            .collect();
        for unit in dead {
            if self.random.chance(faults.starts) {
                self.start(unit);
            }
        }
        for group in 0..self.shape.groups {
            if self.runs(one) && self.random.chance(faults.handovers) {
                let result = self.hand_over(one, group);
                self.note(|| format!("{} hands over group {group}: {result:?}", NAMES[one]));
            }
        }
    }

    pub fn pause(&mut self, unit: usize, pause: Duration) {
        self.note(|| format!("{} is paused for {pause:?}", NAMES[unit]));
        self.units[unit].runs_from = self.now + pause;
    }

    pub fn stop(&mut self, unit: usize) {
        self.note(|| format!("{} is to end", NAMES[unit]));
        let now = self.rouse(unit);
        if let Some(gateway) = &mut self.units[unit].gateway {
            gateway.shut_down(now);
        }
        self.wake(unit);
    }

    pub fn hand_over(&mut self, unit: usize, group: usize) -> Result<(), String> {
        self.request(unit, group, None)
    }

    /// As [`World::hand_over`], to that unit.
    pub fn ask_for_handover(&mut self, unit: usize, group: usize, to: usize) -> Result<(), String> {
        self.request(unit, group, Some(peer_id(unit, to)))
    }

    /// How the next planned handover has ended, if it has.
    pub fn handover_end(&mut self, unit: usize, group: usize) -> Option<Result<(), String>> {
        let gateway = self.units[unit].gateway.as_mut()?;
        let end = gateway.poll_handover(GroupId(group as u8))?;
        Some(end.result.map_err(|why| why.to_string()))
    }

    fn request(&mut self, unit: usize, group: usize, to: Option<PeerId>) -> Result<(), String> {
        let now = self.rouse(unit);
        let gateway = self.units[unit].gateway.as_mut().ok_or("it is dead")?;
        let asked = gateway.request_failover(now, GroupId(group as u8), to);
        asked.map_err(|why| why.to_string())?;
        self.wake(unit);
        Ok(())
    }

    /// As [`World::hand_over`], also to a unit that is not ready.
    pub fn force_over(&mut self, unit: usize, group: usize) -> Result<(), String> {
        let now = self.rouse(unit);
        let gateway = self.units[unit].gateway.as_mut().ok_or("it is dead")?;
        let forced = gateway.force_failover(now, GroupId(group as u8), None);
        forced.map_err(|why| why.to_string())?;
        self.wake(unit);
        Ok(())
    }

    /// Puts hosts and units on one part of the data network or the other.
    fn split(&mut self) {
        self.note(|| "the data network is split, or is not".into());
        self.let_hosts_notice_outage();
        let parts = 1 + self.random.below(2);
        for unit in 0..self.shape.units {
            let part = self.random.below(parts);
            for port in &mut self.units[unit].ports {
                port.part = part;
            }
        }
        for segment in &mut self.hosts {
            for host in segment {
                host.part = self.random.below(parts);
            }
        }
    }

    /// Everything works again.
    fn heal(&mut self) {
        self.note(|| "healed".into());
        // An attacker is not a fault that could be repaired.
        let attacks = self.faults.attacks;
        self.faults = Faults {
            attacks,
            ..Faults::NONE
        };
        self.let_hosts_notice_outage();
        self.repeat_reports();
        self.cut_off.iter_mut().for_each(|row| row.fill(false));
        self.cuts
            .iter_mut()
            .flatten()
            .for_each(|row| row.fill(false));
        self.conns.iter_mut().for_each(|conn| conn.rate = None);
        for host in 0..HOSTS {
            self.hosts
                .iter_mut()
                .for_each(|segment| segment[host].part = 0);
        }
        for unit in 0..self.shape.units {
            for port in &mut self.units[unit].ports {
                (port.part, port.deaf, port.mute) = (0, false, false);
            }
            self.units[unit].runs_from = self.now;
            self.units[unit].reads_from = self.now;
            self.set_carrier(unit, true);
            if !self.is_alive(unit) {
                self.start(unit);
            }
            (0..self.shape.ports()).for_each(|port| self.set_port(unit, port, true));
        }
        self.unify_configs();
    }

    /// Hosts that no primary can reach find that their gateway is gone (RFC 4861, section 7.3).
    fn let_hosts_notice_outage(&mut self) {
        for segment in 0..self.shape.segments() {
            let primaries = self.primaries(segment / 2);
            for host in 0..HOSTS {
                let part = self.hosts[segment][host].part;
                if !primaries
                    .iter()
                    .any(|unit| self.is_on(*unit, segment, part))
                {
                    self.hosts[segment][host].gateway = [None; 2];
                }
            }
        }
    }

    /// After time to settle: all units agree.
    fn expect_agreement(&mut self) {
        self.silent = true;
        self.run(SETTLE);
        // A process that was ending when all was healed.
        for unit in 0..self.shape.units {
            if !self.is_alive(unit) {
                self.start(unit);
            }
        }
        // It may be one of those that hold a group, in the place of another one.
        self.run(ms(if self.shape.copies > 0 { 9000 } else { 4000 }));
        self.check_agreement();
        if self.shape.multicast {
            self.check_members();
            self.check_stream_sessions();
        }
        self.forget_switches();
        self.silent = false;
    }

    fn survive_a_failure(&mut self) {
        let failure = FAILURE_KINDS[self.random.below(FAILURE_KINDS.len())];
        self.survive(failure);
    }

    /// Flows go on, and no session is lost, through a single failure.
    pub fn survive(&mut self, failure: Failure) {
        self.flows.clear();
        self.client_ports += 100;
        self.crossed = 0;
        self.change_members();
        for _ in 0..12 {
            self.open_flow();
        }
        self.run(ms(1500));
        // Flows of before may have left connections at servers, and are reset.
        self.silent = true;
        self.run(ms(150));
        let sessions = self.acknowledged();
        let flows = self.progress();
        let moves: BTreeMap<usize, u32> = flows
            .iter()
            .map(|(id, _)| (*id, self.flows[*id].moves))
            .collect();
        let opening = self
            .flows
            .iter()
            .filter(|flow| flow.stage == Stage::Opening)
            .count();
        assert_eq!(opening, 0, "flows do not open: {:?}", self.flows);
        self.silent = false;
        let group = self.random.below(self.shape.groups);
        self.note(|| format!("single failure: {failure:?} of the primary of group {group}"));
        let unit = self.primaries(group)[0];
        let began = self.now;
        self.fail(failure, unit, group);
        self.run(ms(3000));
        self.check_streams(began + ms(1000), began + ms(1900));
        self.check_one_primary();
        self.check_kept(&sessions);
        self.check_flows(&flows, &moves);
        self.heal();
        self.expect_agreement();
        self.check_kept(&sessions);
    }

    fn fail(&mut self, failure: Failure, unit: usize, group: usize) {
        let next = (unit + 1) % self.shape.units;
        match failure {
            Failure::Kill => self.die(unit, Death::Killed),
            Failure::PowerLoss => self.die(unit, Death::PowerLoss),
            Failure::Restart => {
                self.die(unit, Death::Killed);
                let wait = self.random.up_to(ms(40));
                self.run(wait);
                self.start(unit);
            }
            Failure::Stop => self.stop(unit),
            Failure::Pause => {
                let pause = ms(50) + self.random.up_to(ms(400));
                self.pause(unit, pause);
            }
            Failure::PortDown => {
                let port = self.shape.port_of(2 * group + self.random.below(2));
                self.set_port(unit, port, false);
            }
            Failure::AllLinksDown => {
                for other in (0..self.shape.units).filter(|other| *other != unit) {
                    self.cut_off[unit][other] = true;
                    self.cut_off[other][unit] = true;
                }
            }
            Failure::CarrierLost => self.set_carrier(unit, false),
            Failure::OneLinkDown => {
                if self.shape.links > 1 {
                    let link = self.random.below(self.shape.links);
                    self.cuts[link].iter_mut().for_each(|row| row.fill(true));
                }
            }
            Failure::StreamEnds => (0..4).for_each(|_| self.break_some_stream()),
            Failure::Handover => {
                self.handover_ends();
                for group in 0..self.shape.all_groups() {
                    let unit = self.primaries(group)[0];
                    let result = self.hand_over(unit, group);
                    assert_eq!(result, Ok(()), "in quiet times a group can be handed over");
                }
                self.run(ms(1200));
                for end in self.handover_ends() {
                    assert_eq!(end.result, Ok(()), "the handover of group {}", end.group.0);
                }
            }
            Failure::StandbyDies => self.die(next, Death::Killed),
            Failure::Reload => self.reload_harmlessly(),
        }
    }

    /// The ends of planned handovers that nobody has asked for yet.
    pub fn handover_ends(&mut self) -> Vec<HandoverEnd> {
        let mut ends = Vec::new();
        for gateway in self
            .units
            .iter_mut()
            .filter_map(|unit| unit.gateway.as_mut())
        {
            for group in 0..self.shape.all_groups() {
                let group = GroupId(group as u8);
                ends.extend(std::iter::from_fn(|| gateway.poll_handover(group)));
            }
        }
        ends
    }
}
