//! Where packets vanish between a port and the gateway, though the kernel leads them well.
//!
//! A packet filter of somebody else, a queue, or filters of tc may drop what comes for the gateway
//! or what it has forwarded. Any of these may also be of use and drop nothing that matters. So none
//! is judged by what it says, but by what the interfaces count: a port has an obstacle if nothing
//! passes while something should, and a cause is found. It stays until the cause is gone, or
//! something passes: a unit that has handed over has no traffic.

use std::collections::{BTreeMap, BTreeSet};

use crate::os::barrier::DroppingChain;
use crate::os::netlink::{Queue, Traffic, interface_name};
use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;

use super::Steering;
use super::plan::PortPlan;

/// With fewer packets between two looks, nothing is concluded.
const LEAST: u64 = 8;

/// So many packets between two looks may be errors that this kernel sends to a virtual address
/// itself.
const STRAY: u64 = 2;

/// As many looks in a row must agree.
const LOOKS: u32 = 2;

/// For so many looks a program or a filter is new: if nothing passes from then on, that is why.
/// Most count nothing.
const NEW_FOR: u32 = 8;

/// For so many looks without traffic, what has no known cause is taken to be there still.
const UNKNOWN_FOR: u32 = 40;

/// Something that stops packets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// The queue or the filters of an interface.
    Queue(u32, String),
    /// An XDP program at an interface.
    Program(u32),
    /// A chain of somebody else.
    Chain,
    /// The barrier has let packets pass that the gateway has not seen.
    Unknown,
}

struct Obstacle {
    cause: Cause,
    /// It stops what comes in, not what goes out.
    is_inward: bool,
    /// In how many looks in a row it was there.
    looks: u32,
    text: String,
}

/// The state at the last look, and the conclusions from it.
#[derive(Default)]
pub(super) struct Obstacles {
    traffic: BTreeMap<u32, Traffic>,
    queues: Vec<Queue>,
    /// Packets that the barrier has let pass to the gateway.
    let_pass: u64,
    /// Ports that the gateway read packets of, at the last look.
    fed: BTreeSet<PortId>,
    /// New readers of the packets of a port that the gateway read until then; and the looks since.
    new: BTreeMap<PortId, (Cause, u32)>,
    /// A chain of somebody else that drops some of the packets, already told.
    told: Option<DroppingChain>,
    found: BTreeMap<PortId, Obstacle>,
}

/// The traffic of a port since the last look.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Packets that came in by its interface.
    arrived: u64,
    /// Those of them that the gateway has read.
    delivered: u64,
    /// Those of them that came too fast for it.
    lost: u64,
    /// Packets that the gateway has written, for the port to send.
    written: u64,
    /// Packets that its interface has sent.
    left: u64,
}

impl Flow {
    /// Next to nothing of what the gateway forwards leaves; some frames are the gateway's own.
    fn is_mute(self) -> bool {
        self.written >= LEAST && self.left <= self.written / 4
    }

    fn passes_inward(self) -> bool {
        self.delivered > STRAY
    }

    fn passes_outward(self) -> bool {
        self.written >= LEAST && !self.is_mute()
    }
}

/// The facts known at a look.
struct Look<'a> {
    /// The barrier has let packets pass to the gateway, which has read none of any port. Where it
    /// reads some, others may be on their way, or came too fast.
    is_deaf: bool,
    queues: &'a [Queue],
    traffic: &'a BTreeMap<u32, Traffic>,
    /// By how much the queues have grown since the last look.
    more: &'a [Queue],
    chain: Option<&'a DroppingChain>,
}

impl Steering {
    /// Looks for obstacles at all ports.
    pub fn look_for_obstacles(&mut self) {
        let (Ok(traffic), Ok(queues)) = (self.netlink.traffic(), self.netlink.queues()) else {
            return;
        };
        let let_pass = self.let_pass;
        let mut flows = BTreeMap::new();
        for port in &self.plan.ports {
            let link = self.barrier.posts().get(port.id.index());
            if let Some(link) = link.and_then(|post| post.index) {
                let since = |number| more(&traffic, &self.obstacles.traffic, number);
                let (outside, inside) = (since(link), since(port.tun));
                let flow = Flow {
                    arrived: outside.received,
                    delivered: inside.sent,
                    lost: inside.unsent,
                    written: inside.received,
                    left: outside.sent,
                };
                flows.insert(port.id, ([link, port.tun], flow));
            }
        }
        let reached = flows.values().map(|(_, flow)| flow.delivered + flow.lost);
        let reached: u64 = reached.sum();
        let passed = let_pass.saturating_sub(self.obstacles.let_pass);
        let more = grown(&queues, &self.obstacles.queues);
        let stopped = passed.saturating_sub(reached);
        let is_deaf = stopped >= LEAST && flows.values().all(|(_, flow)| !flow.passes_inward());
        let is_doubtful = !self.obstacles.found.is_empty()
            || stopped >= LEAST
            || flows.values().any(|(_, flow)| flow.is_mute());
        let chain = is_doubtful.then(|| self.barrier.dropping_chain()).flatten();
        if stopped >= LEAST && chain.is_some() && chain != self.obstacles.told {
            let what = chain.iter().map(ToString::to_string).collect::<String>();
            log::warn!(
                "packets dropped by others count={stopped} why={}",
                InQuotes(&what)
            );
            self.obstacles.told = chain.clone();
        }
        let look = Look {
            is_deaf,
            queues: &queues,
            traffic: &traffic,
            more: &more,
            chain: chain.as_ref(),
        };
        for (port, (links, flow)) in &flows {
            for link in links {
                self.obstacles.note_new(*port, *link, &look);
            }
            self.obstacles.judge(*port, *links, *flow, &look);
        }
        let fed = flows.iter().filter(|(_, (_, flow))| flow.passes_inward());
        self.obstacles.fed = fed.map(|(port, _)| *port).collect();
        let gone = |port: &PortPlan| self.barrier.posts()[port.id.index()].index.is_none();
        for port in self.plan.ports.iter().filter(|port| gone(port)) {
            self.obstacles.found.remove(&port.id);
        }
        self.obstacles.traffic = traffic;
        self.obstacles.queues = queues;
        self.obstacles.let_pass = let_pass;
    }

    /// The obstacle to the packets of a port, in words.
    pub(super) fn obstacle(&self, port: PortId) -> Option<String> {
        let obstacle = self.obstacles.found.get(&port)?;
        (obstacle.looks >= LOOKS).then(|| obstacle.text.clone())
    }
}

impl Obstacles {
    /// Notes what has come to see the packets of a port since the last look.
    fn note_new(&mut self, port: PortId, link: u32, look: &Look<'_>) {
        let before = self.traffic.get(&link);
        let has_program = look.traffic.get(&link).is_some_and(|it| it.has_xdp);
        if has_program && before.is_none_or(|it| !it.has_xdp) {
            log::warn!(
                "xdp program on a port interface={0} effect=\"it sees what comes in before the gateway, and may drop \
                 it\" remedy=\"ip link set {0} xdp off, if it is not wanted\"",
                interface_name(link).unwrap_or_default()
            );
        }
        let is_new_program = has_program && before.is_some_and(|it| !it.has_xdp);
        let program = is_new_program.then_some(Cause::Program(link));
        let was_there = |queue: &Queue| find(&self.queues, queue.link, &queue.kind).is_some();
        let of_port = look.queues.iter().filter(|queue| queue.link == link);
        let mut of_port = of_port.filter(|queue| queue.is_filter && !was_there(queue));
        let filter = of_port
            .next()
            .map(|queue| Cause::Queue(link, queue.kind.clone()));
        match program.or(filter) {
            Some(cause) if self.fed.contains(&port) => drop(self.new.insert(port, (cause, 0))),
            _ => {}
        }
        if let Some((_, looks)) = self.new.get_mut(&port) {
            *looks += 1;
        }
        self.new.retain(|_, (_, looks)| *looks <= NEW_FOR);
    }

    fn judge(&mut self, port: PortId, links: [u32; 2], flow: Flow, look: &Look<'_>) {
        let known = self.found.get_mut(&port);
        if let Some(obstacle) = known.filter(|obstacle| obstacle.looks >= LOOKS) {
            let still_there = match &obstacle.cause {
                Cause::Chain => look.chain.is_some(),
                Cause::Program(link) => look.traffic.get(link).is_some_and(|it| it.has_xdp),
                Cause::Queue(link, kind) => find(look.queues, *link, kind).is_some(),
                Cause::Unknown => obstacle.looks < UNKNOWN_FOR,
            };
            let passes = match obstacle.is_inward {
                true => flow.passes_inward(),
                false => flow.passes_outward(),
            };
            if still_there && !passes {
                obstacle.looks = obstacle.looks.saturating_add(1);
                return;
            }
            self.found.remove(&port);
        }
        let new = self.new.get(&port).map(|(cause, _)| cause);
        let stops = flow.arrived >= LEAST && !flow.passes_inward() || flow.is_mute();
        let new = new.filter(|_| stops);
        let new = new.and_then(|cause| Some((cause.clone(), told_of(cause)?)));
        let seen = look.cause(links, flow).or(new);
        let seen = seen.or_else(|| look.unknown(flow));
        // Until it is told, each look must see it.
        let before = self.found.remove(&port);
        if let Some((cause, text)) = seen {
            let before = before.filter(|obstacle| obstacle.cause == cause);
            let obstacle = Obstacle {
                cause,
                is_inward: !flow.is_mute(),
                looks: before.map_or(1, |obstacle| obstacle.looks + 1),
                text,
            };
            self.found.insert(port, obstacle);
        }
    }
}

impl Look<'_> {
    /// The cause, if all packets of a port are stopped.
    fn cause(&self, links: [u32; 2], flow: Flow) -> Option<(Cause, String)> {
        let of_port = self.more.iter().filter(|queue| links.contains(&queue.link));
        let stops = |queue: &&Queue| match queue.is_filter {
            // Incoming packets may be meant for the queues and filters that were there before; new
            // ones are judged anyway.
            true => flow.is_mute(),
            false => queue.passed == 0,
        };
        if let Some(queue) = of_port.filter(|queue| queue.dropped >= LEAST).find(stops) {
            let cause = Cause::Queue(queue.link, queue.kind.clone());
            let text = told_of(&cause)?;
            return Some((cause, text));
        }
        let stops = self.is_deaf && flow.arrived > 0 || flow.is_mute();
        let chain = self.chain.filter(|_| stops)?;
        Some((Cause::Chain, chain.to_string()))
    }

    /// A certain stop without a known cause.
    fn unknown(&self, flow: Flow) -> Option<(Cause, String)> {
        let text = "the kernel drops what comes in by it before the gateway sees it: look at nft list ruleset, \
                    and iptables-legacy-save";
        let stops = self.is_deaf && flow.arrived > 0;
        stops.then(|| (Cause::Unknown, text.to_owned()))
    }
}

/// In words, with the remedy; none if the interface is gone, or if the cause is elsewhere.
fn told_of(cause: &Cause) -> Option<String> {
    match cause {
        Cause::Chain | Cause::Unknown => None,
        Cause::Program(link) => {
            let name = interface_name(*link)?;
            Some(format!(
                "since an XDP program is at {name}, nothing passes: ip link set {name} xdp off"
            ))
        }
        Cause::Queue(link, kind) if kind == "clsact" || kind == "ingress" => {
            let name = interface_name(*link)?;
            Some(format!(
                "filters of tc take or drop the packets of {name}: tc filter show dev {name} ingress, and egress; \
                 tc qdisc del dev {name} {kind} removes them"
            ))
        }
        Cause::Queue(link, kind) => {
            let name = interface_name(*link)?;
            Some(format!(
                "the queue of {name} ({kind}) drops all that is sent: tc -s qdisc show dev {name} tells; \
                 tc qdisc del dev {name} root removes it"
            ))
        }
    }
}

/// By how much the counters of an interface have grown; not at all if it was not there.
fn more(now: &BTreeMap<u32, Traffic>, before: &BTreeMap<u32, Traffic>, link: u32) -> Traffic {
    match (now.get(&link), before.get(&link)) {
        (Some(now), Some(before)) => Traffic {
            received: now.received.saturating_sub(before.received),
            sent: now.sent.saturating_sub(before.sent),
            unsent: now.unsent.saturating_sub(before.unsent),
            ..*now
        },
        _ => Traffic::default(),
    }
}

fn find<'a>(queues: &'a [Queue], link: u32, kind: &str) -> Option<&'a Queue> {
    let mut queues = queues.iter();
    queues.find(|queue| queue.link == link && queue.kind == kind)
}

/// By how much the counters of queues have grown; those that were not there before began with 0.
fn grown(now: &[Queue], before: &[Queue]) -> Vec<Queue> {
    let difference = |queue: &Queue| {
        let same = find(before, queue.link, &queue.kind);
        let (passed, dropped) = same.map_or((0, 0), |it| (it.passed, it.dropped));
        Queue {
            passed: queue.passed.saturating_sub(passed),
            dropped: queue.dropped.saturating_sub(dropped),
            ..queue.clone()
        }
    };
    now.iter().map(difference).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: PortId = PortId(0);

    fn queue(kind: &str, passed: u64, dropped: u64) -> Queue {
        Queue {
            link: 1,
            kind: kind.to_owned(),
            is_filter: kind == "clsact",
            passed,
            dropped,
        }
    }

    /// Whether a port is told to have an obstacle after each of these looks.
    fn told(looks: &[(Flow, &[Queue])]) -> Vec<bool> {
        told_if(false, looks)
    }

    fn told_if(is_deaf: bool, looks: &[(Flow, &[Queue])]) -> Vec<bool> {
        let mut obstacles = Obstacles::default();
        let judge = |(flow, more): &(Flow, &[Queue])| {
            let look = Look {
                is_deaf,
                queues: more,
                traffic: &BTreeMap::new(),
                more,
                chain: None,
            };
            obstacles.judge(PORT, [1, 2], *flow, &look);
            let found = obstacles.found.get(&PORT);
            found.is_some_and(|obstacle| obstacle.looks >= LOOKS)
        };
        looks.iter().map(judge).collect()
    }

    #[test]
    fn what_lets_something_pass_is_no_obstacle() {
        let busy = Flow {
            arrived: 100,
            delivered: 90,
            written: 90,
            left: 60,
            ..Flow::default()
        };
        let dropping = &[queue("clsact", 0, 40), queue("netem", 60, 40)][..];
        assert_eq!(told(&[(busy, dropping), (busy, dropping)]), [false, false]);
        // Hosts that do not answer: nothing leaves but requests for them, and nobody drops.
        let unanswered = Flow {
            arrived: 100,
            delivered: 90,
            written: 90,
            left: 3,
            ..Flow::default()
        };
        let idle = &[queue("clsact", 100, 0), queue("fq", 3, 0)][..];
        assert_eq!(
            told(&[(unanswered, idle), (unanswered, idle)]),
            [false, false]
        );
    }

    #[test]
    fn what_vanishes_must_do_so_at_two_looks_in_a_row() {
        let arrives = Flow {
            arrived: 100,
            ..Flow::default()
        };
        let calm = Flow::default();
        assert_eq!(
            told_if(true, &[(arrives, &[]), (arrives, &[])]),
            [false, true]
        );
        assert_eq!(
            told_if(true, &[(arrives, &[]), (calm, &[])]),
            [false, false]
        );
    }

    #[test]
    fn an_obstacle_is_told_at_the_second_look_and_stays_without_traffic() {
        let mute = Flow {
            arrived: 100,
            delivered: 90,
            written: 90,
            left: 0,
            ..Flow::default()
        };
        let calm = Flow::default();
        let dropping = &[queue("netem", 0, 90)][..];
        let there = &[queue("netem", 0, 0)][..];
        let looks = [
            (mute, dropping),
            (mute, dropping),
            (calm, there),
            (calm, &[]),
            (calm, &[]),
        ];
        assert_eq!(told(&looks), [false, true, true, false, false]);
        let works = Flow { left: 90, ..mute };
        let looks = [(mute, dropping), (mute, dropping), (works, there)];
        assert_eq!(told(&looks), [false, true, false]);
    }
}
