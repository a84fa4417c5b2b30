//! Which changes affect what the gateway has added to the kernel.

use super::parameters::ParameterSet;
use super::{KernelLink, KernelRoute, Monitor, Notice, PortId, RouteNetlinkMessage, Rule};
use crate::os::netlink::{TABLE_LOCAL, TABLE_MAIN};
use crate::os::steering::{
    Disturbance, KERNEL_TABLES, METRIC, METRIC_BLACKHOLE, PROTOCOL, is_ours, number_in,
};
use netlink_packet_route::route::{RouteProtocol, RouteType};
use tandemgw_core::gateway::{HOP_LIMIT_OF_ERRORS, PORT_OF_ERRORS};

impl Monitor {
    /// Tells the steering what a message means for it.
    pub(super) fn note_ours(&self, message: &RouteNetlinkMessage, out: &mut Vec<Notice>) {
        let disturbance = match message {
            RouteNetlinkMessage::DelRoute(message) => {
                KernelRoute::from_message(message).and_then(|route| self.of_lost_route(&route))
            }
            RouteNetlinkMessage::NewRoute(message) => {
                let route = KernelRoute::from_message(message);
                let foreign = route.filter(|route| self.is_foreign(route));
                out.extend(foreign.map(Notice::ForeignRoute));
                None
            }
            RouteNetlinkMessage::DelRule(message) => {
                Rule::from_message(message).and_then(|rule| self.of_lost_rule(&rule))
            }
            RouteNetlinkMessage::NewRule(message) => {
                let rule = Rule::from_message(message);
                out.extend(
                    rule.filter(|rule| self.is_before_ours(rule))
                        .map(Notice::RuleBefore),
                );
                None
            }
            _ => None,
        };
        out.extend(disturbance.map(Notice::Disturbed));
    }

    /// Whether a parameter that was set is one of ours.
    pub(super) fn note_parameter(&self, set: Option<ParameterSet>, out: &mut Vec<Notice>) {
        let Some(ParameterSet { link, rp_filter }) = set else {
            return;
        };
        let disturbance = match link {
            Some(index) => {
                let link = self.links.get(&index);
                link.and_then(|link| self.port_of(link))
                    .map(Disturbance::Port)
            }
            None => Some(Disturbance::All),
        };
        out.extend(disturbance.map(Notice::Disturbed));
        if link.is_none() {
            out.extend(rp_filter.map(|value| Notice::ReversePathFilter { value }));
        }
    }

    /// Whether a TUN device that has changed is still correct.
    pub(super) fn note_tun(&mut self, link: &KernelLink, out: &mut Vec<Notice>) {
        if let Some(port) = self.tuns.get(&link.name) {
            self.tun_links.insert(link.index, *port);
        }
        if let Some(port) = self.tun_links.get(&link.index) {
            out.push(Notice::Disturbed(Disturbance::Port(*port)));
        }
    }

    /// The port whose interface or TUN device a link is.
    pub(super) fn port_of(&self, link: &KernelLink) -> Option<PortId> {
        let tun = self.tun_links.get(&link.index);
        tun.copied().or_else(|| self.port_of_interface(link))
    }

    /// The name of a link, or its number if it is unknown.
    pub(super) fn name_of(&self, index: u32) -> String {
        let link = self.links.get(&index);
        link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
    }

    fn port_of_table(&self, table: u32) -> Option<PortId> {
        let number = table.checked_sub(self.first_table)?;
        let is_port = (number as usize) < self.ports.len();
        is_port.then_some(PortId(number as u16))
    }

    /// Whether a route in one of our tables is not one that we add. The protocol number alone does
    /// not tell: a table may have been saved and restored, with other devices.
    fn is_foreign(&self, route: &KernelRoute) -> bool {
        if let Some(port) = self.port_of_table(route.table) {
            let to_tun = match route.hops[..] {
                [hop] => self.tun_links.get(&hop.link) == Some(&port),
                _ => false,
            };
            let is_whole = route.destination.prefix_len() == 0;
            let is_blackhole =
                route.kind == RouteType::BlackHole && route.metric == METRIC_BLACKHOLE;
            // Somebody may have changed ours: with an MTU it would swallow what is larger.
            let is_plain = route.mtu.is_none()
                && !route.is_special
                && route.hop_limit == Some(HOP_LIMIT_OF_ERRORS.into());
            let is_default =
                route.kind == RouteType::Unicast && route.metric == METRIC && to_tun && is_plain;
            return route.protocol != PROTOCOL || !is_whole || !(is_blackhole || is_default);
        }
        self.port_of_spread_table(route.table).is_some() && route.protocol != PROTOCOL
    }

    /// The port that packets leave by which are looked up in that table, if it is one for several
    /// next hops.
    fn port_of_spread_table(&self, table: u32) -> Option<PortId> {
        self.port_of_table(number_in(table)?)
    }

    fn of_lost_route(&self, route: &KernelRoute) -> Option<Disturbance> {
        let of_table = self.port_of_table(route.table);
        if let Some(port) = of_table.or_else(|| self.port_of_spread_table(route.table)) {
            return Some(Disturbance::Port(port));
        }
        if route.table != TABLE_MAIN {
            return None;
        }
        // To the network of an address, which may be that of a port.
        if RouteProtocol::from(route.protocol) == RouteProtocol::Kernel {
            let link = self.links.get(&route.hops.first()?.link)?;
            return self.port_of_interface(link).map(Disturbance::Expected);
        }
        if route.protocol != PROTOCOL {
            return None;
        }
        let link = route.hops.first()?.link;
        match self.tun_links.get(&link) {
            Some(port) => Some(Disturbance::Addresses(*port)),
            None => Some(Disturbance::Port(self.port_of(self.links.get(&link)?)?)),
        }
    }

    fn of_lost_rule(&self, rule: &Rule) -> Option<Disturbance> {
        let of_tun = rule.interface.as_ref().filter(|_| is_ours(rule));
        let of_tun = of_tun.and_then(|name| self.tuns.get(name)).copied();
        let of_table = is_ours(rule).then(|| self.port_of_table(rule.table));
        let for_errors = (is_ours(rule) && rule.is_choosy()).then_some(PORT_OF_ERRORS);
        let of_rule = self.port_of_table(rule.priority).or(of_tun).or(for_errors);
        if let Some(port) = of_rule.or(of_table.flatten()) {
            return Some(Disturbance::Port(port));
        }
        KERNEL_TABLES
            .contains(&rule.table)
            .then_some(Disturbance::KernelRules)
    }

    /// Whether somebody else's rule comes first, which may route packets past the gateway.
    fn is_before_ours(&self, rule: &Rule) -> bool {
        let of_port = |name: &String| self.ports.contains_key(name) || self.tuns.contains_key(name);
        // One of the number of ours comes before those of further ports.
        rule.priority < self.first_table + self.ports.len() as u32
            && rule.table != TABLE_LOCAL
            && !is_ours(rule)
            && rule.interface.as_ref().is_none_or(of_port)
    }
}
