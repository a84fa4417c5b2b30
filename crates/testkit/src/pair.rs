//! Two units that follow each other in memory: gw-a, which is primary, and gw-b.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use tandemgw_core::config::{self, Config};
use tandemgw_core::event::{LinkState, Offload, Output, RouteChange, Verdict};
use tandemgw_core::flow::{LinkId, PeerId, PortId};
use tandemgw_core::gateway::{Gateway, Seed};
use tandemgw_core::time::Time;

use crate::lab::{CONFIG, DMZ, LAN, PORTS, WAN, link, route, to_port};
use crate::packets::Pkt;

/// The other unit, and the only link to it.
pub const PEER: PeerId = PeerId(0);
pub const LINK: LinkId = LinkId(0);

/// See the module.
pub struct Pair {
    /// gw-a and gw-b.
    pub units: [Gateway; 2],
    /// The bytes that each has been sent by the stream, and has not taken.
    pub streams: [Vec<u8>; 2],
    /// Whether heartbeats and streams pass.
    connected: bool,
    pub now: Time,
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// gw-a is primary, and gw-b follows it.
    pub fn new() -> Pair {
        static CONFIGS: OnceLock<[Config; 2]> = OnceLock::new();
        Pair::of(CONFIGS.get_or_init(|| configs("", CONFIG)))
    }

    /// With additions to the usual config, before `[ha]`.
    pub fn with(more: &str) -> Pair {
        Pair::of(&configs(more, CONFIG))
    }

    /// With this config in place of the usual one, for both.
    pub fn of_config(config: &str) -> Pair {
        Pair::of(&configs("", config))
    }

    fn of([a, b]: &[Config; 2]) -> Pair {
        let now = Time::from_nanos(1 << 40);
        let units = [a, b].map(|config| {
            let mut gateway = Gateway::new(config.clone(), Seed([7; 32]), now);
            for port in PORTS {
                gateway.handle_link(
                    now,
                    port,
                    LinkState {
                        up: true,
                        ..link(port)
                    },
                );
            }
            for (destination, port) in ROUTES {
                let change = RouteChange::Add(route(destination, to_port(*port)));
                gateway.handle_route(change);
            }
            gateway.start(now);
            gateway
        });
        let mut pair = Pair {
            units,
            streams: [Vec::new(), Vec::new()],
            connected: false,
            now,
        };
        pair.connect(true);
        pair.pass(Duration::from_millis(450));
        pair
    }

    /// Passes a packet to a unit.
    pub fn send(&mut self, unit: usize, port: PortId, packet: &Pkt) -> Verdict {
        let mut bytes = packet.bytes();
        self.units[unit].handle_packet(self.now, port, &mut bytes, Offload::default())
    }

    /// gw-a is gone, and gw-b takes over.
    pub fn take_over(&mut self) {
        self.connect(false);
        self.pass(Duration::from_secs(3));
    }

    /// Connects the units, or cuts them off.
    pub fn connect(&mut self, up: bool) {
        if self.connected == up {
            return;
        }
        self.connected = up;
        for unit in 0..2 {
            self.streams[unit].clear();
            self.units[unit].handle_heartbeat_link(self.now, PEER, LINK, up);
            self.units[unit].handle_sync_link(self.now, PEER, LINK, up);
        }
        self.carry_out();
    }

    /// Moves heartbeats, streams and frames between the units, until nothing more comes or it is
    /// enough.
    pub fn exchange(&mut self) {
        let mut rounds = 0..8;
        while rounds.next().is_some() && self.exchange_once() {}
    }

    /// The same once each way. Returns whether more may come.
    pub fn exchange_once(&mut self) -> bool {
        self.carry_out();
        if !self.connected {
            return false;
        }
        let mut moved = false;
        for unit in 0..2 {
            let mut bytes = Vec::new();
            self.units[unit].poll_sync(self.now, PEER, &mut bytes);
            moved |= !bytes.is_empty();
            self.streams[1 - unit].append(&mut bytes);
            self.receive(1 - unit);
        }
        moved
    }

    /// A unit reads the usual config with other additions, and its stream begins again.
    pub fn reload(&mut self, unit: usize, more: &str) {
        let config = configs(more, CONFIG)[unit].clone();
        self.units[unit]
            .reload(self.now, &config)
            .expect("it can be applied");
        self.streams.iter_mut().for_each(Vec::clear);
        for up in [false, self.connected] {
            for unit in &mut self.units {
                unit.handle_sync_link(self.now, PEER, LINK, up);
            }
        }
    }

    /// Lets a unit take what its stream has.
    pub fn receive(&mut self, unit: usize) {
        for _ in 0..16 {
            let stream = &self.streams[unit];
            match self.units[unit].handle_sync_data(self.now, PEER, LINK, stream) {
                Ok(received) => {
                    let nothing = received.taken == 0 && !received.more;
                    self.streams[unit].drain(..received.taken);
                    if nothing {
                        return;
                    }
                }
                Err(_) => {
                    // The shell closes the stream; a fresh one is opened.
                    self.streams.iter_mut().for_each(Vec::clear);
                    for unit in &mut self.units {
                        unit.handle_sync_link(self.now, PEER, LINK, false);
                        unit.handle_sync_link(self.now, PEER, LINK, true);
                    }
                    return;
                }
            }
        }
    }

    /// Carries out the units' effects: heartbeats and packets that are passed on arrive, the rest
    /// does not matter here.
    pub fn carry_out(&mut self) {
        for unit in 0..2 {
            while let Some(output) = self.units[unit].poll_output() {
                let other = &mut self.units[1 - unit];
                match output {
                    Output::Heartbeat { bytes, .. } if self.connected => {
                        other.handle_heartbeat(self.now, PEER, LINK, &bytes);
                    }
                    Output::PassOn { bytes, .. } if self.connected => {
                        other.handle_passed_on(self.now, PEER, &bytes);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, pause: Duration) {
        self.pass_quickly(pause, usize::MAX);
    }

    /// Lets time pass, of which the last part is skipped if it has more than so many timers.
    pub fn pass_quickly(&mut self, pause: Duration, timers: usize) {
        let end = self.now + pause;
        for _ in 0..timers {
            let due = self
                .units
                .iter()
                .filter_map(|unit| unit.poll_timeout(self.now));
            let Some(due) = due.min().filter(|due| *due <= end) else {
                break;
            };
            self.now = due.max(self.now);
            for unit in &mut self.units {
                unit.handle_wake(self.now);
                unit.handle_timeout(self.now);
            }
            self.exchange();
        }
        self.now = self.now.max(end);
    }

    /// The machine stops for a while: timers are late.
    pub fn pause(&mut self, pause: Duration) {
        self.now = self.now + pause;
        for unit in &mut self.units {
            unit.handle_wake(self.now);
        }
    }
}

const ROUTES: &[(&str, PortId)] = &[
    ("10.77.1.0/24", LAN),
    ("10.77.2.0/24", WAN),
    ("10.77.3.0/24", DMZ),
    ("198.51.100.0/24", WAN),
    ("fd77:1::/64", LAN),
    ("fd77:2::/64", WAN),
    ("fd77:3::/64", DMZ),
    ("2001:db8:7::/48", WAN),
];

fn configs(more: &str, config: &str) -> [Config; 2] {
    [("gw-a", "gw-b", 1, 200), ("gw-b", "gw-a", 2, 100)].map(|(name, other, number, priority)| {
            let named = format!("name = \"{name}\"\nkey = \"{name}.key\"");
            let base = config.replacen("name = \"gw\"", &named, 1);
            let base = base.replacen("max-sessions = 1024", "max-sessions = 8192", 1);
            let ha = format!(
                "[ha]\ngroup-id = 7\npriority = {priority}\nheartbeat-interval = \"200ms\"\nheartbeat-lost-threshold = 3\n\
                 [[ha.link]]\ninterface = \"sync0\"\nlisten = \"10.77.9.{number}:7030\"\n\
                 [[ha.peer]]\nname = \"{other}\"\naddresses = [\"10.77.9.{}:7030\"]\n\
                 public-key = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\n",
                3 - number
            );
            match config::parse(Path::new("pair.toml"), &format!("{base}{more}{ha}")) {
                Ok((config, _)) => config,
                Err(found) => panic!("{found:?}"),
            }
        })
}
