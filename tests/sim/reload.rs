//! Configurations that change while everything else does: each unit has a file of its own, which is
//! edited and reloaded, and switches that are set without it.

use std::collections::BTreeSet;
use std::time::Duration;

use tandemgw_core::config::{Config, ConfigText};
use tandemgw_core::gateway::Role;
use tandemgw_core::random::SplitMix64;

use crate::checks::views;
use crate::faults::Faults;
use crate::setup::{NAMES, Shape, port_keys};
use crate::world::World;

/// The size of a table that is smaller than those of the peers.
pub const SMALL_TABLE: u32 = 24;

/// The differences between the files of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// There is a pool of addresses.
    pub pool: bool,
    /// Sources are translated to these, if there are any.
    pub pooled: bool,
    /// The policies have other names, and another order; there is one more for streams.
    pub renamed: bool,
    /// A policy forbids DNS.
    pub no_dns: bool,
    /// No policy lets streams pass.
    pub no_streams: bool,
    /// The forward leads to another host.
    pub moved_forward: bool,
    /// Only that of this group does.
    pub moved_in: Option<usize>,
    /// Idle sessions end earlier.
    pub short: bool,
    /// The guarantee may wait for long.
    pub patient: bool,
    /// The guarantee is of two copies.
    pub two_copies: bool,
    /// Sessions end within seconds.
    pub brief: bool,
    /// The table has room for [`SMALL_TABLE`] sessions; read at a start.
    pub small_table: bool,
    /// The last unit is not among the peers.
    pub without_last: bool,
    /// There is no last group, nor addresses for it.
    pub without_last_group: bool,
    /// A unit, and its weight where groups are cut into slots.
    pub weight: Option<(usize, u8)>,
    /// Into how many slots each group is cut, if not as the shape says; 0 if it is not.
    pub cut_into: Option<usize>,
    /// Packets may come to any unit only where groups are cut into slots.
    pub not_asymmetric: bool,
}

impl Rules {
    fn any(random: &mut SplitMix64) -> Rules {
        Rules {
            no_dns: random.chance(300),
            no_streams: random.chance(300),
            moved_forward: random.chance(200),
            pool: random.chance(500),
            ..Rules::default()
        }
        .rewritten(random)
    }

    /// Others that accept all sessions that these accept.
    fn rewritten(self, random: &mut SplitMix64) -> Rules {
        Rules {
            pool: self.pool || random.chance(500),
            pooled: random.chance(500),
            renamed: random.chance(500),
            short: random.chance(500),
            weight: (random.chance(500)).then(|| (random.below(8), random.of(&[0, 2, 3]))),
            ..self
        }
    }
}

/// Switches, and what they are set to.
const SWITCHES: &[(&str, &[&str])] = &[
    ("session-pickup", &["false", "true"]),
    ("session-pickup-connectionless", &["false", "true"]),
    ("session-pickup-delay", &["0s", "500ms", "2s"]),
    ("pickup-guarantee", &["off", "bounded", "strict"]),
    ("priority", &["1", "101", "200"]),
    ("override", &["false", "true"]),
];

impl World {
    /// Edits the file of a unit, and maybe has it read.
    pub fn change_some_config(&mut self, unit: usize) {
        let (reloads, switches) = (self.faults.reloads, self.faults.switches);
        if self.random.chance(reloads) {
            self.units[unit].rules = Rules::any(&mut self.random);
            self.reload(unit);
        }
        if self.runs(unit) && self.random.chance(switches) {
            let (key, values) = SWITCHES[self.random.below(SWITCHES.len())];
            let value = values[self.random.below(values.len())];
            self.note(|| format!("{} sets {key} to {value}", NAMES[unit]));
            let now = self.rouse(unit);
            if let Some(gateway) = &mut self.units[unit].gateway {
                let result = gateway.set_switch(now, key, value);
                // The groups may have priorities of their own.
                assert!(result.is_ok() || key == "priority", "{key}: {result:?}");
            }
            self.units[unit].switched = true;
            self.wake(unit);
        }
    }

    /// A unit reads its file; returns whether it did.
    pub fn reload(&mut self, unit: usize) -> bool {
        let (now, rules) = (self.rouse(unit), self.units[unit].rules);
        let config = self.shape.config(unit, &rules);
        let Some(gateway) = self.units[unit].gateway.as_mut() else {
            return false;
        };
        let result = gateway.reload(now, &config);
        gateway.check_invariants();
        if let Ok(reloaded) = &result {
            assert_eq!(reloaded.waiting, [], "all of it can be applied");
            // Groups keep their places.
            assert_eq!(tables(gateway.config()), tables(&config));
        }
        gateway.set_port_keys(port_keys(unit, self.shape.peers_of(unit, &rules)));
        let done = result.map(|_| ());
        self.close_to_strangers(unit);
        self.note(|| format!("{} reads {rules:?}: {done:?}", NAMES[unit]));
        self.wake(unit);
        done.is_ok()
    }

    /// All units get the same file, and read it one after the other, some time apart.
    fn roll_out(&mut self, rules: Rules) {
        for unit in 0..self.shape.units {
            self.units[unit].rules = rules;
            let mut tries = 0;
            while self.is_alive(unit) && !self.reload(unit) {
                assert!(tries < 20, "a reload does not end");
                tries += 1;
                self.run(Duration::from_millis(50));
            }
            let wait = self.random.up_to(Duration::from_millis(200));
            self.run(wait);
        }
    }

    /// The files are those of one cluster again.
    pub fn unify_configs(&mut self) {
        let first = self.units[0].rules;
        let rules = Rules {
            no_dns: false,
            no_streams: false,
            moved_forward: false,
            ..first
        };
        self.roll_out(rules);
    }

    /// Guarantees from before the switch to strict end after a while.
    pub fn forget_switches(&mut self) {
        self.units.iter_mut().for_each(|unit| unit.switched = false);
    }

    /// Reloads everywhere that no session may notice.
    pub fn reload_harmlessly(&mut self) {
        for _ in 0..2 {
            let rules = self.units[0].rules.rewritten(&mut self.random);
            self.roll_out(rules);
        }
    }
}

/// The tables of a config, whatever their order.
fn tables(config: &Config) -> BTreeSet<String> {
    let mut text = ConfigText::default();
    std::iter::from_fn(|| text.next(config, true)).collect()
}

fn calm_pair() -> World {
    let shape = Shape {
        units: 2,
        groups: 1,
        links: 1,
        guarantee: "off",
        override_: false,
        max_sessions: 256,
        ..Shape::PAIR
    };
    let mut world = World::new(1, shape, Faults::NONE);
    world.run(Duration::from_secs(2));
    world
}

/// A standby lets no session expire: those that nobody else knows must not stay for ever.
#[test]
fn sessions_that_are_not_replicated_end_where_they_are_left() {
    let mut world = calm_pair();
    let primary = world.primaries(0)[0];
    let now = world.local_time(primary);
    let gateway = world.units[primary].gateway.as_mut().unwrap();
    gateway.set_switch(now, "session-pickup", "false").unwrap();
    (0..10).for_each(|_| world.open_flow());
    world.run(Duration::from_secs(1));
    let sessions = |world: &World, unit: usize| {
        let gateway = world.units[unit].gateway.as_ref().unwrap();
        views(gateway, world.local_time(unit)).len()
    };
    assert!(sessions(&world, primary) > 0);
    assert_eq!(sessions(&world, 1 - primary), 0);
    world.silent = true;
    world.hand_over(primary, 0).unwrap();
    world.run(Duration::from_secs(4));
    assert_eq!(world.primaries(0), [1 - primary]);
    assert_eq!(sessions(&world, primary), sessions(&world, 1 - primary));
}

/// How many sessions to that port a unit has.
fn sessions_to(world: &World, unit: usize, port: u16) -> usize {
    let gateway = world.units[unit].gateway.as_ref().unwrap();
    let views = views(gateway, world.local_time(unit)).into_iter();
    views.filter(|view| view.original.dst_port == port).count()
}

/// A unit ends what its own rules forbid when it takes over, also what came after it had read them.
#[test]
fn sessions_of_a_peer_with_other_rules_are_compared_on_takeover() {
    let mut world = calm_pair();
    let primary = world.primaries(0)[0];
    let (there, here) = (primary, 1 - primary);
    world.units[here].rules.no_dns = true;
    assert!(world.reload(here));
    world.run(Duration::from_secs(2));
    for round in 0..2 {
        (0..40).for_each(|_| world.open_flow());
        world.run(Duration::from_secs(2));
        assert!(
            sessions_to(&world, here, 53) > 0,
            "round {round}: the peer accepts them"
        );
        // The second time, the unit without the rule has been standby meanwhile.
        // It is not ready as long as its rules are others.
        assert!(world.hand_over(there, 0).is_err());
        world.force_over(there, 0).unwrap();
        world.run(Duration::from_millis(100));
        assert_eq!(world.primaries(0), [here]);
        let held = sessions_to(&world, here, 53);
        assert!(held > 0, "round {round}: another unit may be primary too");
        world.run(Duration::from_secs(4));
        let gateway = world.units[here].gateway.as_ref().unwrap();
        assert_eq!(
            gateway.role_of(tandemgw_core::flow::GroupId(0)),
            Role::Primary
        );
        assert_eq!(sessions_to(&world, here, 53), 0, "round {round}");
        world.client_ports += 100;
        world.force_over(here, 0).unwrap();
        world.run(Duration::from_secs(4));
    }
}

/// Sessions that a standby offers after both units were primary came under its rules: the primary
/// goes by its own.
#[test]
fn merged_sessions_are_compared_with_the_rules_of_the_primary() {
    let mut world = calm_pair();
    let there = world.primaries(0)[0];
    let here = 1 - there;
    world.units[here].rules.no_dns = true;
    assert!(world.reload(here));
    world.run(Duration::from_secs(2));
    world.cut_off_fully(there, here, true);
    world.run(Duration::from_secs(1));
    assert_eq!(world.primaries(0), [0, 1], "two primaries");
    world.open_many(there, 10_000..10_040);
    world.run(Duration::from_millis(200));
    assert_eq!(sessions_to(&world, there, 53), 40);
    world.cut_off_fully(there, here, false);
    world.run(Duration::from_secs(9));
    // Who became primary last has the higher term; nobody has answered, so nothing else counts.
    assert_eq!(world.primaries(0), [here]);
    let sync = world.units[here].gateway.as_ref().unwrap();
    let merged = sync.cluster().unwrap().sync().counters().taken;
    assert!(merged >= 40, "{merged} were offered");
    assert_eq!(sessions_to(&world, here, 53), 0);
    assert_eq!(sessions_to(&world, there, 53), 0);
}
