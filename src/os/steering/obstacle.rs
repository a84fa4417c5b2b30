//! Where packets vanish between a port and the gateway, though the kernel leads them well.
//!
//! A packet filter of somebody else, a queue, or filters of tc may drop what comes for the gateway
//! or what it has forwarded. Any of these may also be of use and drop nothing that matters. So none
//! is judged by what it says, but by what the interfaces count: a port has an obstacle if nothing
//! passes while something should, and a cause is found. Where that is in doubt, or the packet
//! filter has changed, it is measured between which places packets of one family vanish
//! ([`super::gap`]). An obstacle stays until the cause is gone, or something passes: a unit that
//! has handed over has no traffic.

use std::collections::{BTreeMap, BTreeSet};

use crate::os::barrier::{ForeignChain, Passed, Place, Post};
use crate::os::fast_path::{Taken, TakenCount};
use crate::os::netlink::{Queue, Traffic, has_ipsec_policies, interface_name};
use tandemgw_core::flow::PortId;
use tandemgw_core::gateway::PORT_OF_ERRORS;
use tandemgw_core::in_quotes::InQuotes;

use super::Steering;
use super::gap::{Gap, refused_by_policies};
use super::plan::PortPlan;

/// With fewer packets between two looks, nothing is concluded.
pub(super) const LEAST: u64 = 8;

/// So many packets between two looks may be errors that this kernel sends to a virtual address
/// itself.
pub(super) const STRAY: u64 = 2;

/// As many looks in a row must agree.
const LOOKS: u32 = 2;

/// For so many looks a program or a filter is new: if nothing passes from then on, that is why.
/// Most count nothing.
const NEW_FOR: u32 = 8;

/// For so many looks without traffic, what has no known cause is taken to be there still. Each time
/// that this was wrong, for twice as many, up to the second number: ten minutes.
const UNKNOWN_FOR: u32 = 40;
const UNKNOWN_AT_MOST: u32 = 1280;

/// Something that stops packets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// The queue or the filters of an interface.
    Queue(u32, String),
    /// An XDP program at an interface.
    Program(u32),
    /// A chain of somebody else.
    Chain(ForeignChain),
    /// Policies of IPsec.
    Policies,
    /// Something that drops packets where the gateway can only count them.
    Unknown,
}

struct Obstacle {
    cause: Cause,
    /// It stops what comes in, not what goes out.
    is_inward: bool,
    /// Where the packets of one family vanish, if that is what was found.
    gap: Option<Gap>,
    /// In how many looks in a row it was there.
    looks: u32,
    text: String,
}

/// The state at the last look, and the conclusions from it.
#[derive(Default)]
pub(super) struct Obstacles {
    traffic: BTreeMap<u32, Traffic>,
    queues: Vec<Queue>,
    /// By interface: what the fast path has taken of its packets.
    taken: BTreeMap<u32, [TakenCount; 2]>,
    /// By interface: what the fast path has sent by it.
    given: BTreeMap<u32, TakenCount>,
    /// Packets that the barrier has let pass to the gateway.
    let_pass: u64,
    /// Errors of the kernel that it has led there, by the first port.
    led: u64,
    /// What policies of IPsec have refused.
    refused: u64,
    /// Ports that the gateway read packets of, at the last look.
    fed: BTreeSet<PortId>,
    /// New readers of the packets of a port that the gateway read until then; and the looks since.
    new: BTreeMap<PortId, (Cause, u32)>,
    /// A chain of somebody else that drops some of the packets, already told.
    told: Option<ForeignChain>,
    found: BTreeMap<PortId, Obstacle>,
    /// For how many looks something unknown is taken to be there, where that has come back.
    unknown_for: BTreeMap<PortId, u32>,
}

/// The traffic of a port since the last look.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Packets that came in by its interface, except those that the fast path took.
    arrived: u64,
    /// What the fast path took instead.
    forwarded: u64,
    /// Those of them that the gateway has read.
    delivered: u64,
    /// Those of them that came too fast for it.
    lost: u64,
    /// Packets that the gateway has written, for the port to send.
    written: u64,
    /// Packets that its interface has sent, except those of the fast path.
    left: u64,
}

impl Flow {
    /// Next to nothing of what the gateway forwards leaves; some frames are the gateway's own.
    fn is_mute(self) -> bool {
        self.written >= LEAST && self.left <= self.written / 4
    }

    fn is_read(self) -> bool {
        self.delivered > STRAY
    }

    fn passes_inward(self) -> bool {
        self.is_read() || self.forwarded > STRAY
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
    /// It is known what stops the packets of some port.
    is_explained: bool,
    queues: &'a [Queue],
    traffic: &'a BTreeMap<u32, Traffic>,
    /// By how much the queues have grown since the last look.
    more: &'a [Queue],
    chains: &'a [ForeignChain],
    /// How many packets policies of IPsec have refused since then.
    refused: u64,
    /// What has passed which place, where that is measured.
    passed: &'a BTreeMap<PortId, Passed>,
}

/// What has counted at a look: interfaces, their queues, and the fast path.
type Seen = (
    BTreeMap<u32, Traffic>,
    Vec<Queue>,
    BTreeMap<u32, [TakenCount; 2]>,
);

impl Steering {
    /// Looks for obstacles at all ports.
    pub fn look_for_obstacles(&mut self) {
        // Before the interfaces are read, and after them for the next look: it is rather too little
        // then, never more than what the interface has counted.
        let given = self.given();
        let (Ok(traffic), Ok(queues)) = (self.netlink.traffic(), self.netlink.queues()) else {
            return;
        };
        let more_of_queues = grown(&queues, &self.obstacles.queues);
        let given = self.obstacles.given_since(&given, &more_of_queues);
        let taken = self.taken_everywhere();
        let flows = self.flows(&traffic, &taken, &given);
        let passed = self.measurements.read(self.taken);
        let refused = refused_by_policies();
        let reached = flows.values().map(|(_, flow)| flow.delivered + flow.lost);
        let reached: u64 = reached.sum();
        let stopped = self.let_pass.saturating_sub(self.obstacles.let_pass);
        let stopped = stopped.saturating_sub(reached);
        let is_deaf = stopped >= LEAST && flows.values().all(|(_, flow)| !flow.is_read());
        let is_doubtful = !self.obstacles.found.is_empty()
            || stopped >= LEAST
            || passed.values().any(|passed| Gap::find(passed).is_some())
            || flows.values().any(|(_, flow)| flow.is_mute());
        let chains = match is_doubtful {
            true => self.barrier.dropping_chains(),
            false => Vec::new(),
        };
        if stopped >= LEAST {
            self.obstacles.tell_dropped(stopped, &chains);
        }
        let found = self.obstacles.found.values();
        let look = Look {
            is_deaf,
            is_explained: found
                .into_iter()
                .any(|it| it.is_inward && it.cause != Cause::Unknown),
            queues: &queues,
            traffic: &traffic,
            more: &more_of_queues,
            chains: &chains,
            refused: refused.saturating_sub(self.obstacles.refused),
            passed: &passed,
        };
        for (port, (links, flow)) in &flows {
            for link in links {
                self.obstacles.note_new(*port, *link, &look);
            }
            self.obstacles.judge(*port, *links, *flow, &look);
        }
        let is_in_doubt = |flow: &Flow| {
            let vanishes = stopped >= LEAST || look.refused >= LEAST;
            flow.is_mute()
                || flow.arrived >= LEAST && !flow.passes_inward()
                || flow.arrived > 0 && vanishes
        };
        let new: BTreeSet<PortId> = self.obstacles.new.keys().copied().collect();
        let in_doubt = flows
            .iter()
            .filter(|(port, (_, flow))| is_in_doubt(flow) || new.contains(port));
        let found = &self.obstacles.found;
        self.measurements.end_some(|port| found.contains_key(&port));
        let in_doubt = in_doubt.map(|(port, _)| *port);
        let busy = flows
            .iter()
            .filter(|(_, (_, flow))| flow.arrived >= LEAST || flow.written >= LEAST);
        let busy: Vec<PortId> = busy.map(|(port, _)| *port).collect();
        self.measure_some(in_doubt, &busy);
        let fed = flows.iter().filter(|(_, (_, flow))| flow.passes_inward());
        self.obstacles.fed = fed.map(|(port, _)| *port).collect();
        self.obstacles.given = self.given();
        self.forget_lost_ports();
        self.obstacles
            .end_look((traffic, queues, taken), (self.let_pass, self.led), refused);
    }

    /// A port without an interface has no obstacle.
    fn forget_lost_ports(&mut self) {
        let gone = |port: &PortPlan| self.barrier.posts()[port.id.index()].index.is_none();
        for port in self.plan.ports.iter().filter(|port| gone(port)) {
            self.obstacles.found.remove(&port.id);
        }
    }

    /// What the ports have done since the last look, with the numbers of their interfaces and TUN
    /// devices.
    fn flows(
        &self,
        traffic: &BTreeMap<u32, Traffic>,
        taken: &BTreeMap<u32, [TakenCount; 2]>,
        given: &BTreeMap<u32, u64>,
    ) -> BTreeMap<PortId, ([u32; 2], Flow)> {
        let posts = self.barrier.posts();
        let flow = |port: &PortPlan| {
            let link = posts.get(port.id.index())?.index?;
            let since = |number| more(traffic, &self.obstacles.traffic, number);
            let (outside, inside) = (since(link), since(port.tun));
            let led = match port.id {
                PORT_OF_ERRORS => self.led.saturating_sub(self.obstacles.led),
                _ => 0,
            };
            let forwarded = self.taken_since_last_look(link, taken);
            // Where several packets of the wire are one to the kernel, not all drivers count alike,
            // and the counters are not read at the same instant: rather too few.
            let others = forwarded.saturating_add(forwarded / 16);
            let flow = Flow {
                arrived: outside.received.saturating_sub(others),
                forwarded,
                delivered: inside.sent.saturating_sub(led)
                    + self.taken_since_last_look(port.tun, taken),
                lost: inside.unsent,
                written: inside.received,
                left: outside
                    .sent
                    .saturating_sub(given.get(&link).copied().unwrap_or(0)),
            };
            Some((port.id, ([link, port.tun], flow)))
        };
        self.plan.ports.iter().filter_map(flow).collect()
    }

    /// From now on the program of the fast path takes some of what comes in by the ports.
    pub fn set_taken(&mut self, taken: Taken) {
        self.taken = Some(taken);
    }

    /// The ports as the barrier knows them.
    pub(in crate::os) fn posts(&self) -> &[Post] {
        self.barrier.posts()
    }

    /// What it has taken of the packets of an interface until now, by family.
    pub(super) fn taken(&self, link: u32) -> [TakenCount; 2] {
        self.taken.map(|taken| taken.of(link)).unwrap_or_default()
    }

    /// The same of all ports, and what has come to the process past the queues of TUN devices, by
    /// the number of the interface.
    fn taken_everywhere(&self) -> BTreeMap<u32, [TakenCount; 2]> {
        let posts = self.barrier.posts().iter();
        let at_ports = posts.clone().filter_map(|post| post.index);
        let at_ports = at_ports.map(|link| (link, self.taken(link)));
        let at_tuns = posts.filter_map(|post| Some((post.tun, self.taken?.entered(post.tun))));
        at_ports.chain(at_tuns).collect()
    }

    /// What it has sent by the interfaces of ports until now.
    fn given(&self) -> BTreeMap<u32, TakenCount> {
        let links = self.barrier.posts().iter().filter_map(|post| post.index);
        let given = |link| {
            self.taken
                .map(|taken| taken.given(link))
                .unwrap_or_default()
        };
        links.map(|link| (link, given(link))).collect()
    }

    fn taken_since_last_look(&self, link: u32, now: &BTreeMap<u32, [TakenCount; 2]>) -> u64 {
        let at = |looked: &BTreeMap<u32, [TakenCount; 2]>| looked.get(&link).copied();
        let (now, before) = (at(now).unwrap_or_default(), at(&self.obstacles.taken));
        let before = before.unwrap_or_default();
        let each = now.into_iter().zip(before);
        each.map(|(now, before)| now.segments_since(before)).sum()
    }

    /// The obstacle to the packets of a port, in words.
    pub(super) fn obstacle(&self, port: PortId) -> Option<String> {
        let obstacle = self.obstacles.found.get(&port)?;
        (obstacle.looks >= LOOKS).then(|| obstacle.text.clone())
    }
}

impl Obstacles {
    /// The next look compares with this.
    fn end_look(
        &mut self,
        (traffic, queues, taken): Seen,
        (let_pass, led): (u64, u64),
        refused: u64,
    ) {
        (self.traffic, self.queues, self.taken) = (traffic, queues, taken);
        (self.let_pass, self.led, self.refused) = (let_pass, led, refused);
    }

    /// How many packets the fast path has sent by each interface since the last look: rather too
    /// few, since what the queues of the interface have dropped may have been of them.
    fn given_since(&self, now: &BTreeMap<u32, TakenCount>, more: &[Queue]) -> BTreeMap<u32, u64> {
        let since = |(link, now): (&u32, &TakenCount)| {
            let before = self.given.get(link);
            let packets = before.map_or(0, |before| now.packets_since(*before));
            let queues = more.iter().filter(|queue| queue.link == *link);
            let dropped: u64 = queues.map(|queue| queue.dropped).sum();
            (*link, packets.saturating_sub(dropped))
        };
        now.iter().map(since).collect()
    }

    /// Tells once of a chain that drops some of the packets.
    fn tell_dropped(&mut self, count: u64, chains: &[ForeignChain]) {
        let mut chains = chains.iter();
        let chain = chains.find(|chain| chain.is_at(Place::Forward, "") && !chain.knows_us());
        if let Some(chain) = chain.filter(|chain| self.told.as_ref() != Some(chain)) {
            log::warn!(
                "packets dropped by others count={count} why={}",
                InQuotes(chain)
            );
            self.told = Some(chain.clone());
        }
    }

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
        let unknown_for = self.unknown_for.get(&port).copied();
        let unknown_for = unknown_for.unwrap_or(UNKNOWN_FOR);
        let known = self.found.get_mut(&port);
        if let Some(obstacle) = known.filter(|obstacle| obstacle.looks >= LOOKS) {
            let still_there = match &obstacle.cause {
                Cause::Chain(chain) => look.chains.contains(chain),
                Cause::Program(link) => look.traffic.get(link).is_some_and(|it| it.has_xdp),
                Cause::Queue(link, kind) => find(look.queues, *link, kind).is_some(),
                Cause::Policies => has_ipsec_policies().unwrap_or(false),
                Cause::Unknown => obstacle.looks < unknown_for,
            };
            let passes = match obstacle.gap {
                Some(gap) => look.passed.get(&port).is_some_and(|it| gap.is_passed(it)),
                None if obstacle.is_inward => flow.passes_inward(),
                None => flow.passes_outward(),
            };
            if still_there && !passes {
                obstacle.looks = obstacle.looks.saturating_add(1);
                return;
            }
            if passes {
                self.unknown_for.remove(&port);
            } else if obstacle.cause == Cause::Unknown {
                let longer = (2 * unknown_for).min(UNKNOWN_AT_MOST);
                self.unknown_for.insert(port, longer);
            }
            self.found.remove(&port);
        }
        let new = self.new.get(&port).map(|(cause, _)| cause);
        let stops = flow.arrived >= LEAST && !flow.passes_inward() || flow.is_mute();
        let new = new.filter(|_| stops);
        let new = new.and_then(|cause| Some((cause.clone(), told_of(cause)?)));
        let seen = look.cause(links, flow).or(new);
        let gap = look.passed.get(&port).and_then(Gap::find);
        let gap = gap.filter(|_| seen.is_none());
        let seen = seen.or_else(|| look.cause_of(gap?, links));
        let seen = seen.or_else(|| look.unknown(flow));
        // Until it is told, each look must see it.
        let before = self.found.remove(&port);
        if let Some((cause, text)) = seen {
            let before = before.filter(|obstacle| obstacle.cause == cause);
            let obstacle = Obstacle {
                cause,
                is_inward: gap.map_or(!flow.is_mute(), |gap| gap.is_inward),
                gap,
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
        // What goes out may wait for hosts that do not answer: that is measured.
        let stops = self.is_deaf && flow.arrived > 0;
        let mut chains = self.chains.iter();
        let is_it = |chain: &&ForeignChain| chain.is_at(Place::Forward, "") && !chain.knows_us();
        let chain = chains.find(|chain| stops && is_it(chain))?;
        Some((Cause::Chain(chain.clone()), chain.to_string()))
    }

    /// What stops packets in a gap.
    fn cause_of(&self, gap: Gap, links: [u32; 2]) -> Option<(Cause, String)> {
        let names = links.map(|link| interface_name(link).unwrap_or_default());
        if let Some(chain) = gap.chain(self.chains, &names) {
            return Some((Cause::Chain(chain.clone()), chain.to_string()));
        }
        if gap.is_of_filters() {
            let mut filters = self.queues.iter().filter(|queue| queue.is_filter);
            let filter = filters.find(|queue| queue.link == links[0])?;
            let cause = Cause::Queue(filter.link, filter.kind.clone());
            let text = told_of(&cause)?;
            return Some((cause, text));
        }
        let family = gap.family.name();
        if self.refused > 0 && gap.may_be_policies() {
            let text = format!(
                "policies of IPsec drop what is forwarded ({family}): ip xfrm policy shows them; ip xfrm policy flush \
                 removes all"
            );
            return Some((Cause::Policies, text));
        }
        let text = format!(
            "the kernel drops {family} packets before the gateway sees them, or after: look at nft list ruleset, and \
             iptables-legacy-save"
        );
        gap.is_certain().then_some((Cause::Unknown, text))
    }

    /// A certain stop without a known cause.
    fn unknown(&self, flow: Flow) -> Option<(Cause, String)> {
        let text = "the kernel drops what comes in by it before the gateway sees it: look at nft list ruleset, \
                    and iptables-legacy-save";
        let stops = self.is_deaf && flow.arrived > 0 && !self.is_explained;
        stops.then(|| (Cause::Unknown, text.to_owned()))
    }
}

/// In words, with the remedy; none if the interface is gone, or if the cause is elsewhere.
fn told_of(cause: &Cause) -> Option<String> {
    match cause {
        Cause::Chain(_) | Cause::Policies | Cause::Unknown => None,
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
                is_explained: false,
                queues: more,
                traffic: &BTreeMap::new(),
                more,
                chains: &[],
                refused: 0,
                passed: &BTreeMap::new(),
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
    fn what_is_unknown_and_comes_back_is_believed_gone_later_each_time() {
        let arrives = (
            Flow {
                arrived: 100,
                ..Flow::default()
            },
            true,
        );
        let passes = (
            Flow {
                delivered: 90,
                ..arrives.0
            },
            false,
        );
        let calm = (Flow::default(), false);
        let mut obstacles = Obstacles::default();
        let mut told = |(flow, is_deaf): (Flow, bool)| {
            let look = Look {
                is_deaf,
                is_explained: false,
                queues: &[],
                traffic: &BTreeMap::new(),
                more: &[],
                chains: &[],
                refused: 0,
                passed: &BTreeMap::new(),
            };
            obstacles.judge(PORT, [1, 2], flow, &look);
            let found = obstacles.found.get(&PORT);
            found.is_some_and(|obstacle| obstacle.looks >= LOOKS)
        };
        let lasts = |told: &mut dyn FnMut((Flow, bool)) -> bool| {
            assert!(!told(arrives) && told(arrives));
            (0..).take_while(|_| told(calm)).count()
        };
        let times: Vec<usize> = (0..7).map(|_| lasts(&mut told)).collect();
        assert_eq!(times, [38, 78, 158, 318, 638, 1278, 1278]);
        // Until something passes.
        assert!(!told(arrives) && told(arrives) && !told(passes));
        assert_eq!(lasts(&mut told), 38);
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
