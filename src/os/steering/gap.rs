//! Between which two places the packets of a port vanish, as measured.

use std::collections::BTreeMap;
use std::fs;

use super::Steering;
use super::obstacle::{LEAST, STRAY};
use crate::os::barrier::{ForeignChain, Measurement, Passed, Place, Post};
use crate::os::fast_path::{Taken, TakenCount};
use crate::os::netlink::has_ipsec_policies;
use tandemgw_core::flow::{Family, PortId};
use tandemgw_core::in_quotes::InQuotes;

/// Ports that are measured at a time: each costs all packets a little.
const MOST_MEASURED: usize = 4;

/// A measurement that has found nothing ends after so many looks, and the next one begins after so
/// many more.
const LOOKS: u32 = 6;
const PAUSE: u32 = 40;

/// A port that is not in doubt is measured again after so many looks: one family may vanish while
/// the other passes.
const PATROL: u32 = 120;

/// With as many packets of a family between two looks, one look says enough of a port that is not
/// in doubt: each place that counts costs each packet some 20 ns.
const MANY: u64 = 5000;

/// Packets of a family that come to one place, and not to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) family: Family,
    /// It stops what comes in, not what goes out.
    pub(super) is_inward: bool,
    /// Where they vanish.
    place: Place,
}

impl Gap {
    /// The first one, of IPv4 before IPv6, inward before outward.
    pub(super) fn find(passed: &Passed) -> Option<Gap> {
        let mut all = Family::ALL.into_iter().flat_map(|family| {
            let gap = |is_inward, place| Gap {
                family,
                is_inward,
                place,
            };
            let at = family as usize;
            let came = passed.came[at].saturating_sub(passed.own[at]);
            let inward = match (passed.arrived[at], came, passed.let_pass[at]) {
                _ if passed.handed[at] > STRAY => None,
                (_, _, LEAST..) => Some(gap(true, Place::Forward)),
                (_, LEAST.., 0..=STRAY) => Some(gap(true, Place::Prerouting)),
                (LEAST.., _, _) if passed.came[at] == 0 => Some(gap(true, Place::Ingress)),
                (0, 0, 0) if passed.wire[at] >= LEAST => Some(gap(true, Place::Wire)),
                _ => None,
            };
            let outward = match (passed.written[at], passed.released[at]) {
                _ if passed.sent[at] > STRAY => {
                    let vanishes = passed.leaving[at] >= LEAST && passed.left[at] <= STRAY;
                    vanishes.then(|| gap(false, Place::Egress))
                }
                (_, LEAST..) => Some(gap(false, Place::Forward)),
                (LEAST.., 0..=STRAY) => Some(gap(false, Place::Prerouting)),
                _ => None,
            };
            [inward, outward]
        });
        all.find_map(|gap| gap)
    }

    /// Whether packets pass it now.
    pub(super) fn is_passed(self, passed: &Passed) -> bool {
        let through = match (self.is_inward, self.place) {
            (true, _) => passed.handed,
            (false, Place::Egress) => passed.left,
            (false, _) => passed.sent,
        };
        through[self.family as usize] > STRAY
    }

    /// The chain that stops them, if there is one; `names` are those of the interface and the TUN
    /// device.
    pub(super) fn chain<'a>(
        self,
        chains: &'a [ForeignChain],
        names: &[String; 2],
    ) -> Option<&'a ForeignChain> {
        let places = match self.place {
            Place::Ingress => &[Place::Ingress, Place::Prerouting][..],
            Place::Forward => &[Place::Forward, Place::Postrouting],
            Place::Egress => &[Place::Egress],
            _ => &[Place::Prerouting],
        };
        let by_port = self.is_inward || self.place == Place::Egress;
        let device = &names[usize::from(!by_port)];
        // Those that know the gateway last: they should know what they do.
        let at = |place: &Place, knows_us| {
            let is_it =
                |chain: &&ForeignChain| chain.is_at(*place, device) && chain.knows_us() == knows_us;
            chains.iter().find(is_it)
        };
        let mut each = [false, true].into_iter();
        each.find_map(|knows_us| places.iter().find_map(|place| at(place, knows_us)))
    }

    /// Whether filters of tc stop them.
    pub(super) fn is_of_filters(self) -> bool {
        self.place == Place::Wire
    }

    /// Whether policies of IPsec may stop them.
    pub(super) fn may_be_policies(self) -> bool {
        self.place == Place::Prerouting && has_ipsec_policies().unwrap_or(false)
    }

    /// Whether something stops them that is not the kernel itself, as it does with sources that
    /// can't be.
    pub(super) fn is_certain(self) -> bool {
        let tables = match self.family {
            Family::V4 => "/proc/net/ip_tables_names",
            Family::V6 => "/proc/net/ip6_tables_names",
        };
        let has_legacy = || fs::read_to_string(tables).is_ok_and(|names| !names.trim().is_empty());
        match self.place {
            Place::Forward | Place::Egress => true,
            place => place == Place::Prerouting && has_legacy(),
        }
    }
}

/// Packets that policies of IPsec have refused in this network namespace; 0 if the kernel does not
/// count them.
pub(super) fn refused_by_policies() -> u64 {
    const COUNTERS: [&str; 4] = [
        "XfrmInPolBlock",
        "XfrmInNoPols",
        "XfrmOutPolBlock",
        "XfrmOutNoStates",
    ];
    let text = fs::read_to_string("/proc/thread-self/net/xfrm_stat").unwrap_or_default();
    let counts = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(char::is_whitespace)?;
        let is_one = COUNTERS.contains(&name);
        count.trim().parse::<u64>().ok().filter(|_| is_one)
    });
    counts.sum()
}

/// The measurements under way.
#[derive(Default)]
pub(super) struct Measurements {
    running: BTreeMap<PortId, Running>,
    /// Ports that are not measured for so many looks.
    pausing: BTreeMap<PortId, u32>,
    /// Ports to measure since the packet filter was changed.
    changed: Vec<PortId>,
    /// Ports that were in doubt at the last look.
    doubted: Vec<PortId>,
    /// The last port that was measured without a doubt.
    patrolled: Option<PortId>,
}

struct Running {
    measurement: Measurement,
    /// What the programs of the fast path have taken.
    taken: TakenAt,
    last: Passed,
    looks: u32,
    /// So many packets have passed that more looks would tell nothing else.
    is_clear: bool,
    /// The packet filter was changed since the last look: what passed before says nothing.
    is_mixed: bool,
    /// For so many looks it is not measured again, if nothing is found.
    pause: u32,
}

/// Two interfaces, that of a port and its TUN device, and what the programs there had taken when a
/// measurement began, by family.
#[derive(Clone, Copy)]
struct TakenAt {
    links: [u32; 2],
    before: [[TakenCount; 2]; 2],
}

impl TakenAt {
    fn begin(links: [u32; 2], taken: Option<Taken>) -> TakenAt {
        let [port, tun] = links;
        let before = taken.map(|taken| [taken.of(port), taken.left(tun)]);
        TakenAt {
            links,
            before: before.unwrap_or_default(),
        }
    }

    /// Corrects what was counted by what the program at the port has taken from all chains, and by
    /// what that at the TUN device has sent past them.
    fn correct(self, passed: &mut Passed, taken: Taken) {
        let [port, tun] = self.links;
        let now = [taken.of(port), taken.left(tun)];
        let since =
            |at: usize, family: usize| now[at][family].packets_since(self.before[at][family]);
        for family in [0, 1] {
            passed.wire[family] = passed.wire[family].saturating_sub(since(0, family));
            let left = since(1, family);
            for place in [&mut passed.written, &mut passed.released, &mut passed.sent] {
                place[family] += left;
            }
        }
    }
}

impl Passed {
    /// Whether many packets have passed all places, and none of a family and direction that came
    /// vanishes.
    fn is_clear(&self) -> bool {
        let passes = |family: usize| {
            let came = self.arrived[family].max(self.wire[family]);
            let came = came.saturating_sub(self.own[family]);
            let (handed, sent) = (self.handed[family], self.sent[family]);
            (came == 0 || handed > STRAY) && (self.written[family] == 0 || sent > STRAY)
        };
        let many = [self.handed, self.sent];
        let has_many = many.iter().flatten().any(|count| *count >= MANY);
        has_many && Gap::find(self).is_none() && passes(0) && passes(1)
    }
}

impl Measurements {
    /// What has passed since the last look, by port.
    pub(super) fn read(&mut self, taken: Option<Taken>) -> BTreeMap<PortId, Passed> {
        let mut passed = BTreeMap::new();
        self.running.retain(|port, running| {
            let Ok(mut now) = running.measurement.read() else {
                return false;
            };
            if let Some(taken) = taken {
                running.taken.correct(&mut now, taken);
            }
            let since = now.since(running.last);
            let is_mixed = std::mem::take(&mut running.is_mixed);
            running.is_clear = since.is_clear() && !is_mixed;
            passed.insert(*port, since);
            running.last = now;
            running.looks += 1;
            true
        });
        passed
    }

    /// Ends those that are of no further use: what has an obstacle stays in sight.
    pub(super) fn end_some(&mut self, has_obstacle: impl Fn(PortId) -> bool) {
        for pause in self.pausing.values_mut() {
            *pause -= 1;
        }
        self.pausing.retain(|_, pause| *pause > 0);
        let pausing = &mut self.pausing;
        self.running.retain(|port, running| {
            let is_patrol = running.pause == PATROL;
            let is_over = running.looks >= LOOKS || is_patrol && running.is_clear;
            let stays = !is_over || has_obstacle(*port);
            if !stays {
                pausing.insert(*port, running.pause);
            }
            stays
        });
    }

    /// Measures a port, unless that was just done or others are measured already.
    fn begin(
        &mut self,
        port: PortId,
        pause: u32,
        begin: impl FnOnce() -> Option<(Measurement, TakenAt)>,
    ) {
        let is_known = self.running.contains_key(&port) || self.pausing.contains_key(&port);
        if is_known || self.running.len() >= MOST_MEASURED {
            return;
        }
        self.changed.retain(|other| *other != port);
        match begin() {
            Some((measurement, taken)) => {
                let running = Running {
                    measurement,
                    taken,
                    is_clear: false,
                    is_mixed: false,
                    last: Passed::default(),
                    looks: 0,
                    pause,
                };
                self.running.insert(port, running);
            }
            None => drop(self.pausing.insert(port, PAUSE)),
        }
    }
}

impl Steering {
    /// Somebody has changed the packet filter: what that does is measured at each port.
    pub fn note_ruleset_changed(&mut self) {
        let ports = self.plan.ports.iter().map(|port| port.id);
        self.measurements.changed = ports.collect();
        self.measurements.pausing.clear();
        for running in self.measurements.running.values_mut() {
            running.looks = 0;
            running.is_mixed = true;
        }
    }

    /// Begins to measure ports that are in doubt, some of those that are due, and if there are
    /// none, one of those with traffic.
    pub(super) fn measure_some(&mut self, in_doubt: impl Iterator<Item = PortId>, busy: &[PortId]) {
        let mut ports: Vec<PortId> = in_doubt.collect();
        let doubted = std::mem::replace(&mut self.measurements.doubted, ports.clone());
        let fresh = ports.iter().filter(|port| !doubted.contains(port));
        for port in fresh {
            self.measurements.pausing.remove(port);
        }
        ports.extend(&self.measurements.changed);
        let mut pause = PAUSE;
        if ports.is_empty() && self.measurements.running.is_empty() {
            let last = self.measurements.patrolled;
            let is_due = |port: &&PortId| !self.measurements.pausing.contains_key(port);
            let due: Vec<&PortId> = busy.iter().filter(is_due).collect();
            let next = due
                .iter()
                .find(|port| last.is_none_or(|last| last < ***port));
            let next = next.or(due.first()).map(|port| **port);
            self.measurements.patrolled = next.or(last);
            ports.extend(next);
            pause = PATROL;
        }
        for port in ports {
            let (barrier, posts) = (&self.barrier, self.barrier.posts());
            let post: Option<&Post> = posts.get(port.index()).filter(|post| post.index.is_some());
            let taken = self.taken;
            self.measurements.begin(port, pause, || {
                let post = post?;
                let taken = TakenAt::begin([post.index?, post.tun], taken);
                let begun = barrier.measure(post);
                let interface = &post.interface;
                log::debug!(
                    "port measured interface={interface} in_doubt={}",
                    pause == PAUSE
                );
                let log = |error: &_| log::debug!("port not measured error={}", InQuotes(error));
                Some((begun.inspect_err(log).ok()?, taken))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything passes.
    const ALL: Passed = Passed {
        wire: [100, 50],
        arrived: [100, 50],
        came: [100, 50],
        let_pass: [90, 50],
        handed: [90, 50],
        own: [10, 0],
        written: [80, 0],
        released: [80, 0],
        sent: [80, 0],
        leaving: [81, 1],
        left: [81, 1],
    };

    #[test]
    fn many_packets_that_all_pass_say_enough() {
        let many = Passed {
            handed: [MANY, 50],
            sent: [MANY, 0],
            ..ALL
        };
        assert!(many.is_clear());
        assert!(!ALL.is_clear(), "few packets");
        // Too few for a gap, but none of them comes on.
        let none_of_one_family = Passed {
            wire: [100, 4],
            arrived: [100, 4],
            came: [100, 4],
            let_pass: [90, 0],
            handed: [MANY, 0],
            ..many
        };
        assert_eq!(Gap::find(&none_of_one_family), None);
        assert!(!none_of_one_family.is_clear());
        let none_sent = Passed {
            written: [80, 4],
            ..many
        };
        assert_eq!(Gap::find(&none_sent), None);
        assert!(!none_sent.is_clear());
        let gap = Passed {
            released: [80, 20],
            ..many
        };
        assert!(Gap::find(&gap).is_some() && !gap.is_clear());
    }

    #[test]
    fn the_gap_is_where_packets_of_a_family_come_no_further() {
        assert_eq!(Gap::find(&ALL), None);
        // Hosts that do not answer: what is sent waits for them in vain, beyond the last place.
        let no_forward = Passed {
            handed: [90, 0],
            ..ALL
        };
        let no_way = Passed {
            let_pass: [0, 50],
            handed: [0, 50],
            ..ALL
        };
        let nothing = Passed {
            came: [0, 50],
            own: [0, 0],
            ..no_way
        };
        let none_arrived = Passed {
            arrived: [0, 50],
            ..nothing
        };
        let none_sent = Passed {
            sent: [0, 0],
            leaving: [1, 1],
            left: [1, 1],
            ..ALL
        };
        let none_left = Passed {
            left: [0, 0],
            ..ALL
        };
        // A kernel that can't count there.
        let uncounted = Passed {
            leaving: [0, 0],
            left: [0, 0],
            ..ALL
        };
        assert_eq!(Gap::find(&uncounted), None);
        for (passed, is_inward, place, family) in [
            (no_forward, true, Place::Forward, Family::V6),
            (no_way, true, Place::Prerouting, Family::V4),
            (nothing, true, Place::Ingress, Family::V4),
            (none_arrived, true, Place::Wire, Family::V4),
            (none_sent, false, Place::Forward, Family::V4),
            (none_left, false, Place::Egress, Family::V4),
        ] {
            let gap = Gap {
                family,
                is_inward,
                place,
            };
            assert_eq!(Gap::find(&passed), Some(gap));
            assert!(gap.is_passed(&ALL) && !gap.is_passed(&passed), "{gap:?}");
        }
        // What is for the machine itself is not for the gateway.
        let own = Passed {
            wire: [100, 0],
            arrived: [100, 0],
            came: [100, 0],
            own: [100, 0],
            ..Passed::default()
        };
        assert_eq!(Gap::find(&own), None);
    }
}
