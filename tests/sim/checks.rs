//! Properties that must hold: at any moment, when all is quiet, and after a single failure.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use tandemgw_core::event::Offload;
use tandemgw_core::flow::{FlowKey, GroupId};
use tandemgw_core::gateway::{Gateway, Role, SessionView};
use tandemgw_core::packet;
use tandemgw_core::time::Time;

use crate::hosts::Stage;
use crate::setup::{NAMES, peer_id};
use crate::turn::{Turn, sessions};
use crate::world::World;

/// Two primaries that hear each other must be one after this time.
const RIVALS_SETTLE: Duration = Duration::from_millis(500);

/// The same if they hear each other on a data port only.
const RIVALS_MEET: Duration = Duration::from_secs(1);

/// Looks at the cluster between two at who owns what.
const LOOKS_PER_OWNERS: u64 = 40;

/// Sessions by group and the text of their original key, in what they translate to.
pub type Sessions = BTreeMap<(u8, String), String>;

pub fn views(gateway: &Gateway, now: Time) -> Vec<SessionView> {
    gateway.page(0, u32::MAX, now).0.collect()
}

fn find(
    gateway: &Gateway,
    now: Time,
    wanted: impl Fn(&SessionView) -> bool,
) -> Option<SessionView> {
    gateway.page(0, u32::MAX, now).0.find(wanted)
}

impl World {
    /// Two primaries of a group never hear each other, except for a moment.
    pub fn check_rivals(&mut self) {
        self.check_risings();
        self.note_apart();
        for group in 0..self.groups() {
            let primaries = self.primaries(group);
            if primaries.len() > 1 {
                self.last_dual[group] = Some(self.now);
            }
            for one in 0..self.shape.units {
                for other in one + 1..self.shape.units {
                    let both = primaries.contains(&one) && primaries.contains(&other);
                    let run = self.runs(one) && self.runs(other);
                    let linked = self.hear_each_other(one, other);
                    // They are given their time from the moment at which they hear each other so.
                    let key = (
                        one,
                        other,
                        group + usize::from(linked) * self.shape.all_groups(),
                    );
                    let another = (
                        one,
                        other,
                        group + usize::from(!linked) * self.shape.all_groups(),
                    );
                    self.dual.remove(&another);
                    if both && run && (linked || self.meet_on_a_port(one, other)) {
                        let since = *self.dual.entry(key).or_insert(self.now);
                        let long = self.now.since(since);
                        let most = match linked {
                            true => RIVALS_SETTLE,
                            false => RIVALS_MEET,
                        };
                        assert!(
                            long < most,
                            "two primaries of group {group}: {one} and {other}"
                        );
                    } else {
                        self.dual.remove(&key);
                    }
                }
            }
        }
    }

    /// A unit that has not run for a while sends nothing of a session before it knows who is
    /// primary.
    pub fn check_awake(&self, turn: &Turn, bytes: &[u8]) {
        // One that has become primary in this turn knows it: that role is a new one.
        let reigns = self.known_reigns(turn);
        let rose = |view: &SessionView| {
            let group = usize::from(view.group.0);
            reigns[group].0 == Role::Primary && reigns[group] != turn.before[group]
        };
        if !turn.resumed {
            return;
        }
        let Ok(parsed) = packet::parse(bytes, Offload::default()) else {
            return;
        };
        let is_it =
            |view: &SessionView| [view.translated, view.original.reply()].contains(&parsed.key);
        let session = find(&turn.gateway, turn.now, is_it);
        assert!(
            session.as_ref().is_none_or(rose),
            "{} was paused, and sends {}",
            NAMES[turn.unit],
            parsed.key
        );
    }

    /// Only a primary forwards, and for a while who has handed the group over.
    pub fn check_role(&self, turn: &Turn, group: usize) {
        let group = GroupId(group as u8);
        let ha = turn.gateway.cluster().map(|cluster| cluster.ha());
        let drains = ha.is_some_and(|ha| ha.is_draining(turn.now, group));
        assert!(
            drains || turn.gateway.role_of(group) == Role::Primary,
            "{} forwards for group {} as a standby",
            NAMES[turn.unit],
            group.0
        );
    }

    /// With a guarantee: what opens a session goes when as many peers in sync have it as are
    /// wanted, or, if the wait is bounded, when that is over.
    pub fn check_guarantee(&mut self, turn: &mut Turn, bytes: &[u8]) {
        let is_off = self.shape.guarantee == "off";
        if is_off || self.units[turn.unit].switched || self.liar.is_some() {
            return;
        }
        let Ok(parsed) = packet::parse(bytes, Offload::default()) else {
            return;
        };
        let is_it = |view: &SessionView| view.translated == parsed.key;
        let Some(view) = find(&turn.gateway, turn.now, is_it) else {
            return;
        };
        let is_primary = turn.gateway.role_of(view.group) == Role::Primary;
        if !is_primary && self.shape.slots > 0 {
            // What others pass on by mistake is forwarded in the owner's place.
            return;
        }
        // Who has just handed the group over still sends what others pass on.
        let ha = turn.gateway.cluster().map(|cluster| cluster.ha());
        let drains = ha.is_some_and(|ha| ha.is_draining(turn.now, view.group));
        assert!(
            is_primary || self.shape.asymmetric && drains,
            "only the primary of group {} sends what waited, not {}: {}",
            view.group.0,
            NAMES[turn.unit],
            view.original
        );
        let Some(cluster) = turn.gateway.cluster() else {
            return;
        };
        let asked = self.asked.get(&(turn.unit, view.original.to_string()));
        let waited = asked.map(|at| self.now.since(*at));
        let wait = (turn.gateway.config().ha.as_ref()).map(|ha| ha.pickup_guarantee_wait);
        // When a packet came that was passed on is not known here.
        let is_passed_on = self.shape.asymmetric && waited.is_none();
        if self.shape.guarantee == "bounded" && (waited >= wait || is_passed_on) {
            return;
        }
        // Nor which peers were in sync then.
        if self.shape.slots > 0 && is_passed_on {
            return;
        }
        if self.was_dual(usize::from(view.group.0)) {
            return;
        }
        let copies = (turn.gateway.config().ha.as_ref()).map_or(1, |ha| ha.pickup_guarantee_copies);
        let (mut asked, mut holders) = (Vec::new(), 0);
        for peer in (0..self.shape.units).filter(|peer| *peer != turn.unit) {
            let Some(other) = &self.units[peer].gateway else {
                continue;
            };
            let sync = cluster.sync();
            let in_sync = sync.in_sync_for(peer_id(turn.unit, peer), view.group);
            if !in_sync
                || !self.follows(peer, turn.unit, view.group)
                || !self.knows_process(turn, peer)
            {
                continue;
            }
            let has = find(other, self.local_time(peer), |theirs| {
                (theirs.original, theirs.translated) == (view.original, view.translated)
            });
            holders += usize::from(has.is_some());
            asked.push(NAMES[peer]);
        }
        let is_held = holders >= asked.len().min(copies as usize);
        // No peer was in sync when it left, and one is since, in the same turn: it is counted.
        if !is_held && turn.gateway.counters().guarantee_degraded > turn.degraded {
            turn.degraded += 1;
            return;
        }
        assert!(
            is_held,
            "{} has left {}, and {holders} of {asked:?} have it",
            view.original, NAMES[turn.unit]
        );
    }

    /// Each peer in sync that follows the same primary holds what all of them have acknowledged.
    pub fn check_copies(&self, turn: &Turn) {
        let Some(cluster) = turn.gateway.cluster() else {
            return;
        };
        let known = |gateway: &Gateway, now: Time| -> Sessions {
            let entry = |view: SessionView| {
                let key = (view.group.0, view.original.to_string());
                (key, view.translated.to_string())
            };
            views(gateway, now).into_iter().map(entry).collect()
        };
        let synced: Vec<SessionView> = views(&turn.gateway, turn.now)
            .into_iter()
            .filter(|view| view.synced && turn.gateway.role_of(view.group) == Role::Primary)
            .collect();
        for peer in (0..self.shape.units).filter(|peer| *peer != turn.unit) {
            let Some(other) = &self.units[peer].gateway else {
                continue;
            };
            let theirs = known(other, self.local_time(peer));
            for view in &synced {
                let group = usize::from(view.group.0);
                let in_sync = cluster
                    .sync()
                    .in_sync_for(peer_id(turn.unit, peer), view.group);
                if !in_sync
                    || !self.follows(peer, turn.unit, view.group)
                    || !self.knows_process(turn, peer)
                    || self.was_dual(group)
                {
                    continue;
                }
                let key = (view.group.0, view.original.to_string());
                let is_held = theirs.get(&key) == Some(&view.translated.to_string());
                let part = turn.gateway.group_name(view.group);
                assert!(
                    is_held
                        || holds_in_lower_part(
                            (other, self.local_time(peer)),
                            &view.original,
                            part
                        ),
                    "{} has acknowledged {} to {}, and does not hold it",
                    NAMES[peer],
                    view.original,
                    NAMES[turn.unit]
                );
            }
        }
    }

    /// A unit that has applied all changes up to one, by its own account, holds the sessions that
    /// its primary had changed until then. It acknowledges no more than that.
    pub fn check_applied(&self, turn: &Turn) {
        let Some(sync) = turn.gateway.cluster().map(|cluster| cluster.sync()) else {
            return;
        };
        let counters = sync.counters();
        let refused = counters.refused_full + counters.conflicts_won + counters.refused_not_primary;
        let mut held = None;
        for primary in (0..self.shape.units).filter(|unit| *unit != turn.unit) {
            let Some(gateway) = &self.units[primary].gateway else {
                continue;
            };
            let Some(theirs) = gateway.cluster().map(|cluster| cluster.sync()) else {
                continue;
            };
            let applied = sync.applied(peer_id(turn.unit, primary));
            for view in views(gateway, self.local_time(primary)) {
                let follower = peer_id(primary, turn.unit);
                let counts = gateway.role_of(view.group) == Role::Primary
                    && theirs.in_sync_for(follower, view.group)
                    && gateway
                        .last_change(view.id)
                        .is_some_and(|seq| seq <= applied)
                    && self.takes_the_word(turn, primary, view.group)
                    && !self.was_dual(usize::from(view.group.0));
                if refused > 0 || !counts {
                    continue;
                }
                let held: &HashSet<_> = held.get_or_insert_with(|| {
                    let own = views(&turn.gateway, turn.now).into_iter();
                    own.map(|view| (view.original, view.translated)).collect()
                });
                let part = gateway.group_name(view.group);
                assert!(
                    held.contains(&(view.original, view.translated))
                        || holds_in_lower_part((&turn.gateway, turn.now), &view.original, part),
                    "{} has applied all up to {applied} of {}, and lacks {}",
                    NAMES[turn.unit],
                    NAMES[primary],
                    view.original
                );
            }
        }
    }

    fn takes_the_word(&self, turn: &Turn, primary: usize, group: GroupId) -> bool {
        let ha = turn.gateway.cluster().map(|cluster| cluster.ha());
        let view = ha.and_then(|ha| ha.group(turn.now, group));
        view.is_some_and(|view| view.primary == Some(NAMES[primary]))
    }

    /// Whether a peer takes the word of `primary`. One that hears of another primary goes by that.
    pub fn follows(&self, peer: usize, primary: usize, group: GroupId) -> bool {
        let gateway = self.units[peer].gateway.as_ref();
        let view = gateway
            .and_then(|gateway| gateway.cluster())
            .and_then(|c| c.ha().group(self.local_time(peer), group));
        view.is_some_and(|view| view.primary == Some(NAMES[primary]))
    }

    /// Whether what the unit knows of a peer is about the process that runs there now: one that has
    /// just started hears of the primary on a data port before the primary hears that it has
    /// restarted.
    fn knows_process(&self, turn: &Turn, peer: usize) -> bool {
        let gateway = self.units[peer].gateway.as_ref();
        let runs_for = gateway.map(|gateway| gateway.uptime(self.local_time(peer)));
        let ha = turn.gateway.cluster().map(|cluster| cluster.ha());
        let view = ha.and_then(|ha| ha.peer(turn.now, peer_id(turn.unit, peer)));
        view.is_some_and(|view| view.uptime <= runs_for)
    }

    /// A peer that hears of two primaries takes the word of one, and acknowledges what the other
    /// sends nevertheless, until the next comparison.
    pub fn was_dual(&self, group: usize) -> bool {
        let dual = self.last_dual[group];
        dual.is_some_and(|dual| self.now.since(dual) < Duration::from_secs(3))
    }

    /// One primary a group, and nothing changes any more.
    pub fn check_one_primary(&self) {
        for group in 0..self.groups() {
            let primaries = self.primaries(group);
            assert_eq!(
                primaries.len(),
                1,
                "primaries of group {group}: {primaries:?}"
            );
        }
    }

    /// All units agree, after all was quiet for a while.
    pub fn check_agreement(&self) {
        self.check_one_primary();
        for (unit, name) in NAMES.iter().enumerate().take(self.members()) {
            let gateway = self.units[unit].gateway.as_ref().expect("all units run");
            gateway.check_invariants();
            assert!(
                sessions(gateway) <= self.shape.max_sessions,
                "a table beyond its limit"
            );
            let cluster = gateway.cluster().expect("a cluster");
            for group in 0..self.groups() {
                let id = GroupId(group as u8);
                if !self.is_holder(unit, group) {
                    self.check_holds_nothing(unit, id);
                    continue;
                }
                if !self.is_primary(unit, group) {
                    assert!(
                        cluster.sync().is_ready(id),
                        "{name} is not ready for group {group}"
                    );
                    let view = cluster.ha().group(self.local_time(unit), id).unwrap();
                    assert!(
                        view.ready,
                        "the election of {name} does not know that it is ready"
                    );
                    continue;
                }
                for peer in (0..self.members()).filter(|peer| *peer != unit) {
                    let (of, to) = (name, NAMES[peer]);
                    let is_holder = self.is_holder(peer, group);
                    let peer = peer_id(unit, peer);
                    let lag = gateway.lag(peer, self.local_time(unit));
                    assert_eq!(lag.sequence_gap, 0, "{to} lags");
                    if !is_holder {
                        continue;
                    }
                    assert!(
                        cluster.sync().in_sync(peer),
                        "{to} is not in sync with {of}"
                    );
                    assert!(
                        cluster.sync().digest_equal(peer, id),
                        "digests of {of} and {to} differ"
                    );
                }
            }
        }
        self.check_holders();
        for group in 0..self.shape.all_groups() {
            let units = (0..self.members()).filter(|unit| self.is_holder(*unit, group));
            let tables: Vec<_> = units.map(|unit| (unit, self.table(unit, group))).collect();
            let all = &tables[0].1;
            for (unit, table) in &tables {
                let differs = |(key, value): &(&String, &String)| table.get(*key) != Some(value);
                let missing = all.iter().find(differs);
                assert_eq!(missing, None, "{} has something else", NAMES[*unit]);
                assert_eq!(table.len(), all.len(), "{} has more", NAMES[*unit]);
            }
        }
        self.check_tuples();
    }

    /// The sessions of a group that a unit has.
    pub fn table(&self, unit: usize, group: usize) -> BTreeMap<String, String> {
        let gateway = self.units[unit].gateway.as_ref().expect("all units run");
        let views = views(gateway, self.local_time(unit));
        let entry = |view: &SessionView| {
            let value = format!("{} {} {:?}", view.translated, view.state, view.out_port);
            (view.original.to_string(), value)
        };
        let own = views
            .iter()
            .filter(|view| usize::from(view.group.0) == group);
        own.map(entry).collect()
    }

    /// At any moment, no two primaries of different groups have sessions with the same packets: a
    /// translated address and port belongs to one unit.
    pub fn check_owners(&mut self) {
        if self.shape.all_groups() < 2 || !self.looks.is_multiple_of(LOOKS_PER_OWNERS) {
            self.looks += 1;
            return;
        }
        self.looks += 1;
        let mut owners: BTreeMap<String, (usize, u8)> = BTreeMap::new();
        let mut clashes: BTreeMap<String, Time> = BTreeMap::new();
        for (unit, view) in self.owned() {
            if self.was_dual(usize::from(view.group.0)) {
                continue;
            }
            let owner = (unit, view.group.0);
            for key in [view.original, view.translated.reply()] {
                let key = key.to_string();
                let Some(other) = owners.insert(key.clone(), owner) else {
                    continue;
                };
                // An answer that overtakes its session may open another one in its own slot, until
                // the two meet.
                let since = *self.clashes.get(&key).unwrap_or(&self.now);
                let may = self.shape.slots > 0 && self.now.since(since) < RIVALS_SETTLE;
                assert!(
                    may,
                    "{key} is of unit and group {owner:?}, and of {other:?}"
                );
                clashes.insert(key, since);
            }
        }
        self.clashes = clashes;
    }

    /// No two sessions have the same packets, over all primaries.
    fn check_tuples(&self) {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for (_, view) in self.owned() {
            for key in [view.original, view.translated.reply()] {
                let fresh = seen.insert(key.to_string());
                assert!(fresh, "two sessions have {key}");
            }
        }
    }

    /// All sessions of groups whose primary holds them.
    fn owned(&self) -> Vec<(usize, SessionView)> {
        let mut all = Vec::new();
        for unit in 0..self.shape.units {
            let Some(gateway) = &self.units[unit].gateway else {
                continue;
            };
            let views = views(gateway, self.local_time(unit)).into_iter();
            let owned = views.filter(|view| gateway.role_of(view.group) == Role::Primary);
            all.extend(owned.map(|view| (unit, view)));
        }
        all
    }

    /// Acknowledged sessions that would live on for a while: no single failure may lose them.
    pub fn acknowledged(&self) -> Vec<(FlowKey, FlowKey)> {
        let lives = |(unit, view): &(usize, SessionView)| {
            assert!(
                view.synced,
                "{} of {} is not acknowledged, long after",
                view.original, NAMES[*unit]
            );
            view.expires_s > 30
        };
        let owned = self.owned().into_iter();
        owned
            .filter(lives)
            .map(|(_, view)| (view.original, view.translated))
            .collect()
    }

    /// The primaries have all of these sessions, unchanged.
    pub fn check_kept(&self, sessions: &[(FlowKey, FlowKey)]) {
        let kept: BTreeSet<String> = self
            .owned()
            .iter()
            .map(|(_, view)| format!("{} as {}", view.original, view.translated))
            .collect();
        for (original, translated) in sessions {
            let text = format!("{original} as {translated}");
            assert!(kept.contains(&text), "lost: {text}");
        }
    }

    /// All flows that were open go on, under the same name.
    pub fn check_flows(&self, before: &[(usize, u32)], moves: &BTreeMap<usize, u32>) {
        for (id, exchanges) in before {
            let flow = &self.flows[*id];
            assert_ne!(flow.stage, Stage::Broken, "flow {id} was reset: {flow:?}");
            assert!(
                flow.exchanges > *exchanges,
                "flow {id} does not go on: {flow:?}"
            );
            assert_eq!(
                flow.moves, moves[id],
                "flow {id} is seen as another: {flow:?}"
            );
        }
        assert_eq!(self.crossed, 0, "answers reached other flows");
    }
}

/// Whether a unit has a session for the same packets in a lower part of the group that is cut into
/// slots: two units have opened one each, and only that of the lower part stays.
fn holds_in_lower_part((unit, now): (&Gateway, Time), original: &FlowKey, part: &str) -> bool {
    // The whole group comes before its slots.
    let place = |name: &str| match name.split_once('/') {
        Some((whole, slot)) => (whole.to_owned(), slot.parse::<u8>().ok()),
        None => (name.to_owned(), None),
    };
    let (whole, slot) = place(part);
    let mut held = views(unit, now).into_iter();
    held.any(|view| {
        let held = place(unit.group_name(view.group));
        view.original == *original && held.0 == whole && held.1 < slot
    })
}
