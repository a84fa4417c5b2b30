//! The status of each peer and group, compared with the sessions that the peer really holds.

use std::collections::HashSet;
use std::time::Duration;

use tandemgw_core::flow::{FlowKey, GroupId};
use tandemgw_core::gateway::{Gateway, PeerGroupState, Role};
use tandemgw_core::time::Time;

use crate::checks::views;
use crate::compound::{calm, ms, open_flows, shape};
use crate::setup::{NAMES, peer_id};
use crate::turn::Turn;
use crate::world::{Death, World};

/// Nothing has failed or come back for so long: what can be known is known.
const CALM: Duration = Duration::from_millis(1000);
/// The same, and no host has sent for so long: all is compared.
const QUIET: Duration = Duration::from_millis(3000);

/// Sessions of a group: the flow and what it is translated to.
type Held = HashSet<(FlowKey, FlowKey, &'static str)>;

fn held(gateway: &Gateway, now: Time, group: GroupId, only_replicated: bool) -> Held {
    let views = views(gateway, now).into_iter();
    let own = views.filter(|view| {
        let is_replicated = gateway.last_change(view.id).is_some();
        view.group == group && (is_replicated || !only_replicated)
    });
    own.map(|view| (view.original, view.translated, view.state))
        .collect()
}

/// How many of `ours` are not in `theirs`, in whatever state.
fn missing(ours: &Held, theirs: &Held) -> u32 {
    let theirs: HashSet<_> = theirs.iter().map(|(from, to, _)| (from, to)).collect();
    let lacks = |(from, to, _): &&(FlowKey, FlowKey, &'static str)| !theirs.contains(&(from, to));
    ours.iter().filter(lacks).count() as u32
}

impl World {
    /// Takes note of whether anything has failed or come back.
    pub fn note_condition(&mut self) {
        let mut condition = Vec::new();
        for unit in &self.units {
            condition.extend([unit.alive, unit.runs_from > self.now]);
            condition.push(unit.reads_from > self.now);
            condition.extend(&unit.carrier);
            for port in &unit.ports {
                condition.extend([port.up, port.deaf, port.mute, port.part > 0]);
            }
        }
        condition.extend(self.cuts.iter().flatten().flatten());
        condition.extend(self.cut_off.iter().flatten());
        condition.extend(self.conns.iter().map(|conn| conn.up));
        condition.push(self.silent);
        if condition != self.condition {
            self.condition = condition;
            self.calm_since = self.now;
        }
    }

    fn is_calm(&self, span: Duration) -> bool {
        self.now.since(self.calm_since) >= span
    }

    /// Compares what the unit says of each peer in each group with what the peer holds.
    pub fn check_figures(&mut self, turn: &Turn) {
        self.note_condition();
        if !self.is_calm(CALM)
            || self.liar.is_some()
            || self.shape.lacks.is_some()
            || self.shape.regrouped
        {
            return;
        }
        for group in (0..self.shape.all_groups()).map(|group| GroupId(group as u8)) {
            if self.was_dual(usize::from(group.0)) {
                continue;
            }
            let is_primary = turn.gateway.role_of(group) == Role::Primary;
            for peer in (0..self.shape.units).filter(|peer| *peer != turn.unit) {
                let id = peer_id(turn.unit, peer);
                if !turn.gateway.peers().any(|known| known == id) {
                    continue;
                }
                let state = turn.gateway.peer_group_state(turn.now, id, group);
                self.figures += 1;
                match is_primary {
                    true => self.check_figures_of(turn, peer, group, state),
                    false => self.check_figures_of_standby(turn, peer, group, state),
                }
            }
        }
        self.check_sums(turn);
    }

    /// Checks the report of a primary about a peer.
    fn check_figures_of(&self, turn: &Turn, peer: usize, group: GroupId, state: PeerGroupState) {
        let what = format!(
            "{} says of {} in group {}: {state:?}",
            NAMES[turn.unit], NAMES[peer], group.0
        );
        if self.is_left_out(state, &what) {
            return;
        }
        let ours = held(&turn.gateway, turn.now, group, false);
        let all = ours.len() as u32;
        let lost = state.would_be_lost.expect("a primary knows what it holds");
        assert!(lost <= all, "more than the {all} that there are: {what}");
        let Some(other) = &self.units[peer].gateway else {
            assert_eq!(lost, all, "a peer that is dead holds nothing: {what}");
            assert_ne!(state.in_sync, Some(true), "{what}");
            assert_eq!(state.digest_equal, None, "{what}");
            return;
        };
        if !self.runs(peer) || !self.follows(peer, turn.unit, group) {
            return;
        }
        let theirs = held(other, self.local_time(peer), group, false);
        let truth = missing(&ours, &theirs);
        assert!(lost >= truth, "it lacks {truth} of {all}: {what}");
        let gap = turn
            .gateway
            .lag(peer_id(turn.unit, peer), turn.now)
            .sequence_gap;
        if state.in_sync == Some(true) && gap == 0 && self.is_calm(QUIET) {
            assert_eq!(lost, truth, "of {all}, and all is acknowledged: {what}");
        }
        if !self.hear_each_other(turn.unit, peer) {
            assert_eq!(state.in_sync, None, "no link leads there: {what}");
            assert_eq!(state.applied, None, "no link leads there: {what}");
        }
        if state.digest_equal == Some(true) && self.silent && self.is_calm(QUIET) && gap == 0 {
            let ours = held(&turn.gateway, turn.now, group, true);
            let theirs = held(other, self.local_time(peer), group, true);
            assert_eq!(ours, theirs, "they differ: {what}");
        }
    }

    /// Checks the report of a standby about a peer.
    fn check_figures_of_standby(
        &self,
        turn: &Turn,
        peer: usize,
        group: GroupId,
        state: PeerGroupState,
    ) {
        let what = format!(
            "{} says of {} in group {}: {state:?}",
            NAMES[turn.unit], NAMES[peer], group.0
        );
        assert_eq!(state.would_be_lost, None, "no primary: {what}");
        if self.is_left_out(state, &what) {
            return;
        }
        let Some(other) = &self.units[peer].gateway else {
            assert_eq!((state.in_sync, state.digest_equal), (None, None), "{what}");
            return;
        };
        if !self.is_primary(peer, usize::from(group.0)) {
            assert_eq!(state.digest_equal, None, "two standbys: {what}");
            assert_eq!(state.applied, None, "two standbys: {what}");
            let primaries = self.primaries(usize::from(group.0));
            if let [primary] = primaries[..]
                && state.in_sync == Some(true)
                && self.silent
                && self.is_calm(QUIET)
                && self.hear_each_other(primary, turn.unit)
                // That it has just been relieved is on its way.
                && self.is_holder(peer, usize::from(group.0))
                && let Some(gateway) = &self.units[primary].gateway
            {
                let all = held(gateway, self.local_time(primary), group, true);
                let theirs = held(other, self.local_time(peer), group, false);
                assert_eq!(
                    missing(&all, &theirs),
                    0,
                    "not what the primary has: {what}"
                );
            }
        } else if state.digest_equal == Some(true) && self.silent && self.is_calm(QUIET) {
            let ours = held(&turn.gateway, turn.now, group, true);
            let theirs = held(other, self.local_time(peer), group, true);
            let lag = other.lag(peer_id(peer, turn.unit), self.local_time(peer));
            if lag.sequence_gap == 0 {
                assert_eq!(ours, theirs, "they differ: {what}");
            }
        }
    }

    /// The figures of a peer as a whole follow from those of its groups.
    fn check_sums(&self, turn: &Turn) {
        for peer in (0..self.shape.units).filter(|peer| *peer != turn.unit) {
            let id = peer_id(turn.unit, peer);
            let whole = turn.gateway.peer_state(turn.now, id);
            let groups = (0..self.shape.all_groups()).map(|group| GroupId(group as u8));
            let groups: Vec<PeerGroupState> = groups
                .map(|group| turn.gateway.peer_group_state(turn.now, id, group))
                .collect();
            let what = format!("{} says of {}: {whole:?}", NAMES[turn.unit], NAMES[peer]);
            let holds = |group: usize| {
                let (ha, id) = (turn.gateway.cluster().unwrap().ha(), GroupId(group as u8));
                ha.group(turn.now, id).is_some_and(|view| view.holder)
            };
            let mut shared = groups.iter().enumerate().filter(|(group, state)| {
                state.holder != Some(false) && (self.shape.copies == 0 || holds(*group))
            });
            let in_sync = shared.all(|(_, group)| group.in_sync == Some(true));
            assert_eq!(
                whole.in_sync,
                in_sync && whole.connected,
                "{what}, and {groups:?}"
            );
            let differs = groups.iter().any(|group| group.digest_equal == Some(false));
            assert_eq!(whole.digest_equal == Some(false), differs, "{what}");
            let lost = groups.iter().filter_map(|group| group.would_be_lost);
            let lag = turn.gateway.lag(id, turn.now);
            assert_eq!(lag.would_be_lost, lost.sum::<u32>(), "{what}");
            if !self.is_alive(peer) {
                assert!(!whole.connected && !whole.in_sync, "{what}");
                assert_eq!(whole.digest_equal, None, "{what}");
            }
        }
    }
}

/// The link between the primary and one of two standbys is cut. Sessions opened then are at the
/// other one only, and both know what the status may say: it is out of sync, and two standbys were
/// never compared.
#[test]
fn a_standby_that_lags_is_told_from_one_that_does_not() {
    let (mut world, primary) = calm(5, shape(3));
    let [lagging, other] = [(primary + 1) % 3, (primary + 2) % 3];
    let of = |world: &World, unit: usize, peer: usize| {
        let gateway = world.units[unit].gateway.as_ref().unwrap();
        let (id, now) = (peer_id(unit, peer), world.local_time(unit));
        (
            gateway.peer_state(now, id),
            gateway.peer_group_state(now, id, GroupId(0)),
        )
    };
    world.run(ms(1500));
    assert!(of(&world, other, lagging).0.in_sync);
    world.cut_off[primary][lagging] = true;
    world.cut_off[lagging][primary] = true;
    world.run(ms(1000));
    let held = world.held_by(primary).len();
    open_flows(&mut world, 12);
    world.silent = true;
    world.run(ms(4000));
    let opened = (world.held_by(primary).len() - held) as u32;
    assert!(opened > 3, "{opened} sessions opened");
    let (whole, group) = of(&world, other, lagging);
    assert!(whole.connected && !whole.in_sync, "{whole:?}");
    assert_eq!((whole.digest_equal, group.in_sync), (None, Some(false)));
    let (whole, group) = of(&world, primary, lagging);
    assert!(!whole.connected, "no link leads there");
    // Its answers on the data ports prove that it still has the rest.
    assert!(group.would_be_lost >= Some(opened), "{group:?}");
    let all = world.held_by(primary).len() as u32;
    assert!(group.would_be_lost < Some(all), "{group:?}");
    let (whole, group) = of(&world, primary, other);
    assert!(whole.in_sync && group.would_be_lost == Some(0), "{group:?}");
    // Nothing is left of a process that has ended.
    world.die(lagging, Death::PowerLoss);
    world.run(ms(500));
    let (_, group) = of(&world, primary, lagging);
    assert!(group.would_be_lost >= Some(all), "{group:?}");
    assert!(world.figures > 0);
}
