//! The units of a run: their configuration, names and addresses.

use std::path::Path;

use base64::Engine;
use tandemgw_core::config::{self, Config};
use tandemgw_core::event::Route;
use tandemgw_core::flow::{Addr, Family, PeerId, PortId};
use tandemgw_core::ha::PortKeys;

use crate::reload::{Rules, SMALL_TABLE};
use crate::streams;

pub const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// The size of a run.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub units: usize,
    /// Each has a LAN and a WAN with networks of their own: the segments `2 * group` and `2 * group
    /// + 1`.
    pub groups: usize,
    /// The WANs of all groups are behind one port.
    pub shared_wan: bool,
    /// Each unit has the highest priority in another group.
    pub spread: bool,
    pub links: usize,
    pub guarantee: &'static str,
    pub override_: bool,
    pub max_sessions: u32,
    /// The unit whose table has room for [`SMALL_TABLE`] sessions only.
    pub small: Option<usize>,
    /// The unit that does not have the last group, nor addresses on its ports.
    pub lacks: Option<usize>,
    /// Groups or slots come and go.
    pub regrouped: bool,
    /// Packets may come to any unit.
    pub asymmetric: bool,
    /// Each group is cut into so many slots; 0 if it is not. Needs `asymmetric`.
    pub slots: usize,
    /// Kernels forward what the units enter there.
    pub fast: bool,
    /// Each WAN has a sender to many, each LAN hosts that want it. Not with `shared_wan`.
    pub multicast: bool,
    /// Only the first WAN sends to many, and only hosts of the second LAN want it.
    pub crossed: bool,
    /// There is a witness.
    pub witness: bool,
    /// How many peers hold each group beside its primary; 0 if all do.
    pub copies: usize,
}

impl Shape {
    /// A pair with one group.
    pub const PAIR: Shape = Shape {
        units: 2,
        groups: 1,
        shared_wan: false,
        spread: false,
        links: 1,
        guarantee: "off",
        override_: false,
        max_sessions: 256,
        small: None,
        lacks: None,
        regrouped: false,
        asymmetric: false,
        slots: 0,
        fast: false,
        multicast: false,
        crossed: false,
        witness: false,
        copies: 0,
    };

    /// The groups with their slots, which come after all groups.
    pub fn all_groups(&self) -> usize {
        self.groups * (1 + self.slots)
    }

    pub fn ports(&self) -> usize {
        match self.shared_wan {
            true => self.groups + 1,
            false => self.segments(),
        }
    }

    pub fn segments(&self) -> usize {
        self.groups * 2
    }

    /// The port that leads to a segment.
    pub fn port_of(&self, segment: usize) -> usize {
        match (self.shared_wan, segment % 2) {
            (false, _) => segment,
            (true, 0) => segment / 2,
            (true, _) => self.groups,
        }
    }

    /// The segments behind a port.
    pub fn segments_of(&self, port: usize) -> impl Iterator<Item = usize> + use<> {
        let shape = *self;
        (0..shape.segments()).filter(move |segment| shape.port_of(*segment) == port)
    }

    pub fn config(&self, unit: usize, rules: &Rules) -> Config {
        let text = self.text(unit, rules);
        match config::parse(Path::new("unit.toml"), &text) {
            Ok((mut config, _)) => {
                // Less than a file may say.
                config.node.max_sessions = match rules.small_table || self.small == Some(unit) {
                    true => SMALL_TABLE.min(self.max_sessions),
                    false => self.max_sessions,
                };
                config
            }
            Err(problems) => panic!("{problems:?} in {text}"),
        }
    }

    /// The groups that a unit has.
    fn groups_of(&self, unit: usize, rules: &Rules) -> usize {
        let lacks = self.lacks == Some(unit) || rules.without_last_group;
        self.groups - usize::from(lacks)
    }

    /// Whether a unit has the streams of a group.
    pub fn multicast_at(&self, unit: usize, group: usize) -> bool {
        self.has_streams(group) && group < self.groups - usize::from(self.lacks == Some(unit))
    }

    /// The segment that the streams of a group lead to.
    pub fn stream_lan(&self, group: usize) -> usize {
        2 * (group + usize::from(self.crossed))
    }

    /// Whether the WAN of a group sends to many.
    pub fn has_streams(&self, group: usize) -> bool {
        self.multicast && (group == 0 || !self.crossed)
    }

    fn text(&self, unit: usize, rules: &Rules) -> String {
        let groups = self.groups_of(unit, rules);
        let mut text = format!("[node]\nname = \"{}\"\nkey = \"key\"\n", NAMES[unit]);
        for port in 0..self.ports() {
            let segments = self.segments_of(port).filter(|it| it / 2 < groups);
            let addresses = segments.map(|segment| {
                let (v4, v6) = (vip(segment, Family::V4), vip(segment, Family::V6));
                format!("\"{v4}/24\", \"{v6}/64\"")
            });
            let addresses: Vec<String> = addresses.collect();
            let addresses = addresses.join(", ");
            text += &format!(
                "[[port]]\nname = \"p{port}\"\ninterface = \"eth{port}\"\nvirtual-addresses = [{addresses}]\n"
            );
        }
        for group in 0..groups {
            text += &self.rules(unit, group, rules);
            if self.multicast_at(unit, group) && !rules.no_streams {
                let wan = self.port_of(2 * group + 1);
                let lan = self.port_of(self.stream_lan(group));
                text += &streams::policies(group, (wan, lan), rules.renamed);
            }
        }
        text += &timeouts(rules);
        let asymmetric = self.asymmetric && !rules.not_asymmetric;
        let monitor: Vec<String> = (0..self.ports())
            .map(|port| format!("\"p{port}\""))
            .collect();
        text += &format!(
            "[ha]\ngroup-id = 7\npriority = {}\noverride = {}\nheartbeat-interval = \"20ms\"\n\
             heartbeat-lost-threshold = 3\nmonitor = [{}]\npickup-guarantee = \"{}\"\n\
             gratuitous-arps = 2\ngratuitous-arp-interval = \"300ms\"\nasymmetric-flows = {asymmetric}\n",
            100 + unit,
            self.override_,
            monitor.join(", "),
            self.guarantee,
        );
        if rules.patient {
            text += "pickup-guarantee-wait = \"200ms\"\n";
        }
        if self.copies > 0 {
            text += &format!("copies = {}\n", self.copies);
        }
        if rules.two_copies {
            text += "pickup-guarantee-copies = 2\n";
        }
        for link in 0..self.links {
            text += &format!(
                "[[ha.link]]\ninterface = \"sync{link}\"\nlisten = \"{}\"\n",
                endpoint(unit, link)
            );
        }
        for peer in self.peers_of(unit, rules) {
            let addresses: Vec<String> = (0..self.links)
                .map(|link| format!("\"{}\"", endpoint(peer, link)))
                .collect();
            let key = base64::engine::general_purpose::STANDARD.encode([peer as u8 + 1; 32]);
            text += &format!(
                "[[ha.peer]]\nname = \"{}\"\naddresses = [{}]\npublic-key = \"{key}\"\n",
                NAMES[peer],
                addresses.join(", ")
            );
        }
        if self.witness {
            text += "[ha.witness]\nendpoints = [\"http://10.0.0.9:2379\"]\nlease = \"2s\"\n";
        }
        text
    }

    /// The peers in the file of a unit.
    pub fn peers_of(&self, unit: usize, rules: &Rules) -> Vec<usize> {
        let units = self.units - usize::from(rules.without_last);
        (0..units).filter(|peer| *peer != unit).collect()
    }

    fn rules(&self, unit: usize, group: usize, rules: &Rules) -> String {
        let (lan, wan) = (2 * group, 2 * group + 1);
        let [inner, outer] = [lan, wan].map(|segment| self.port_of(segment));
        let outside = vip(wan, Family::V4);
        let is_moved = rules.moved_forward || rules.moved_in == Some(group);
        let web = WEB + usize::from(is_moved);
        let web = host_address(lan, web, Family::V4);
        let [out, inwards] = match rules.renamed {
            false => ["out", "in"],
            true => ["exit", "entry"],
        };
        let nat = match rules.pool && rules.pooled {
            // Of several addresses of the port, that of the group.
            false => "nat = true".to_owned(),
            true => format!("nat-pool = \"pool{group}\""),
        };
        // Otherwise each unit must hold all of a group that is cut.
        let forwarded = match self.copies > 0 && self.slots > 0 {
            true => "forwarded = true\n",
            false => "",
        };
        let mut policies = [
            format!(
                "[[policy]]\nname = \"{out}{group}\"\nfrom = [\"p{inner}\"]\nto = [\"p{outer}\"]\naction = \"accept\"\n{nat}\n"
            ),
            format!(
                "[[policy]]\nname = \"{inwards}{group}\"\nfrom = [\"p{outer}\"]\nto = [\"p{inner}\"]\naction = \"accept\"\n{forwarded}"
            ),
        ];
        if rules.renamed {
            policies.reverse();
        }
        let mut text = String::new();
        if rules.no_dns {
            text += &format!(
                "[[policy]]\nname = \"dns{group}\"\nfrom = [\"p{inner}\"]\nservice = [\"udp/53\"]\naction = \"drop\"\n"
            );
        }
        text += &policies.concat();
        if rules.pool {
            let address = |last, family| address(wan, last, family);
            let [v4, v6] = [Family::V4, Family::V6].map(|family| address(100, family));
            let more = address(101, Family::V4);
            text += &format!(
                "[[nat-pool]]\nname = \"pool{group}\"\naddresses = [\"{v4}\", \"{more}\", \"{v6}\"]\n"
            );
        }
        text += &format!(
            "[[forward]]\nname = \"web{group}\"\nport = \"p{outer}\"\nprotocol = \"tcp\"\nexternal = \"{outside}:8080\"\ninternal = \"{web}:80\"\n"
        );
        if self.groups > 1 || self.shared_wan || self.slots > 0 {
            let what = match self.shared_wan {
                false => format!("ports = [\"p{inner}\", \"p{outer}\"]"),
                true => {
                    let [v4, v6] = [Family::V4, Family::V6].map(|family| vip(wan, family));
                    format!("ports = [\"p{inner}\"]\nvirtual-addresses = [\"{v4}\", \"{v6}\"]")
                }
            };
            text += &format!("[[group]]\nname = \"g{group}\"\n{what}\n");
        }
        let slots = rules.cut_into.unwrap_or(self.slots);
        if slots > 0 {
            text += &format!("distribute = {slots}\n");
            if let Some((unit, weight)) = rules.weight {
                let unit = NAMES[unit % self.units];
                text += &format!("weights = [\"{unit}:{weight}\"]\n");
            }
        }
        if self.groups > 1 && self.spread {
            let priority = 100 + (unit + group) % self.units;
            text += &format!("priority = {priority}\n");
        }
        text
    }
}

/// The host on each LAN that the forward leads to.
pub const WEB: usize = 0;
/// Hosts on each segment.
pub const HOSTS: usize = 3;

/// The timeouts of the config.
fn timeouts(rules: &Rules) -> String {
    let mut text = String::new();
    if rules.brief {
        text += "[timeouts]\n";
        for key in [
            "tcp-transitory",
            "tcp-time-wait",
            "udp",
            "udp-unreplied",
            "icmp",
        ] {
            text += &format!("{key} = \"3s\"\n");
        }
        text += "tcp-reset = \"1s\"\n";
    } else if rules.short {
        text += "[timeouts]\nudp = \"200s\"\ntcp-established = \"3000s\"\n";
    }
    text
}

fn endpoint(unit: usize, link: usize) -> String {
    format!("10.99.{link}.{}:7030", unit + 1)
}

pub fn vip(port: usize, family: Family) -> Addr {
    address(port, 1, family)
}

pub fn host_address(segment: usize, host: usize, family: Family) -> Addr {
    address(segment, 10 + host, family)
}

fn address(port: usize, last: usize, family: Family) -> Addr {
    let (port, last) = (port as u8 + 1, last as u8);
    match family {
        Family::V4 => Addr::v4([10, 77, port, last]),
        Family::V6 => Addr::v6([0xfd, 0x77, 0, port, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
    }
}

/// The segment that an address belongs to, and its last byte.
pub fn place_of(addr: &Addr) -> (usize, usize) {
    let octets = addr.octets();
    match addr.family() {
        Family::V4 => {
            let [_, _, port, last] = addr.last4();
            (usize::from(port).wrapping_sub(1), usize::from(last))
        }
        Family::V6 => (
            usize::from(octets[3]).wrapping_sub(1),
            usize::from(octets[15]),
        ),
    }
}

/// The route to the network of a segment, behind a port.
pub fn route(segment: usize, port: usize, family: Family) -> Route {
    let length = if family == Family::V4 { 24 } else { 64 };
    let net = address(segment, 0, family);
    testkit::lab::route(
        &format!("{net}/{length}"),
        testkit::lab::to_port(PortId(port as u16)),
    )
}

/// The keys that a unit shares with each of its `peers`.
pub fn port_keys(unit: usize, peers: Vec<usize>) -> Vec<Option<PortKeys>> {
    let key = |from: usize, to: usize| [(from * 16 + to + 1) as u8; 16];
    let keys = peers.into_iter().map(|peer| PortKeys {
        send: key(unit, peer),
        receive: key(peer, unit),
    });
    keys.map(Some).collect()
}

/// Who unit `unit` is to unit `of`.
pub fn peer_id(of: usize, unit: usize) -> PeerId {
    PeerId(if unit < of { unit } else { unit - 1 } as u8)
}

/// Who `peer` of unit `of` is.
pub fn unit_of(of: usize, peer: PeerId) -> usize {
    let index = peer.index();
    if index < of { index } else { index + 1 }
}

pub fn unit_mac(unit: usize, port: usize) -> [u8; 6] {
    [2, 0, 0, 1, unit as u8, port as u8]
}

pub fn host_mac(segment: usize, host: usize) -> [u8; 6] {
    [2, 0, 0, 2, segment as u8, host as u8]
}
