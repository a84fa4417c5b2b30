//! Dumps, which start the mirror and restart it.

use std::collections::BTreeSet;
use std::io;

use ipnet::IpNet;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;

use super::{Monitor, Notice};
use crate::os::netlink::{TABLE_MAIN, encode, route_dump};
use tandemgw_core::event::RouteChange;
use tandemgw_core::flow::Family;

/// How often in a row a dump is restarted because the routes changed meanwhile. After that its gaps
/// are accepted: the notifications fill them.
const DUMP_ATTEMPTS: u32 = 3;

impl Monitor {
    /// Whether a dump is needed to know everything.
    pub fn is_dumping(&self) -> bool {
        self.dump.stage.is_some()
    }

    /// Dumps the state again from `stage` on: at once, or when the current dump has ended.
    pub(super) fn dump_from(&mut self, stage: Stage) -> io::Result<()> {
        if self.dump.stage.is_some() {
            self.dump.again = Some(self.dump.again.map_or(stage, |again| again.min(stage)));
            return Ok(());
        }
        self.request(stage)
    }

    fn request(&mut self, stage: Stage) -> io::Result<()> {
        let routes = |family| RouteNetlinkMessage::GetRoute(route_dump(family, TABLE_MAIN));
        let request = match stage {
            Stage::Links => RouteNetlinkMessage::GetLink(LinkMessage::default()),
            Stage::Addresses => RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            Stage::RoutesV4 => routes(Family::V4),
            Stage::RoutesV6 => routes(Family::V6),
        };
        self.dump.stage = Some(stage);
        self.dump.begun = false;
        self.dump.sequence = self.dump.sequence.wrapping_add(1);
        let bytes = encode(request, NLM_F_DUMP, self.dump.sequence);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Forgets the state that the dump will report again. Only at its first message: whatever
    /// arrives before is older than the dump.
    pub(super) fn begin_stage(&mut self, out: &mut Vec<Notice>) {
        self.dump.begun = true;
        self.dump.last = None;
        match self.dump.stage {
            Some(Stage::Links) => self.dump.seen.clear(),
            Some(Stage::Addresses) => out.push(Notice::AddressesReset),
            Some(Stage::RoutesV4) => {
                self.outdated.push(std::mem::take(&mut self.siblings));
                out.push(Notice::Route(RouteChange::BeginDump));
            }
            Some(Stage::RoutesV6) => {
                // All of IPv4 come first.
                let first = IpNet::V6(ipnet::Ipv6Net::default());
                let outdated = self.siblings.split_off(&(first, 0));
                self.outdated.push(outdated);
            }
            None => {}
        }
    }

    /// Continues when the dump of one stage has ended.
    pub(super) fn next_stage(&mut self, out: &mut Vec<Notice>) -> io::Result<()> {
        let routes_told = self.dump.stage == Some(Stage::RoutesV6);
        let next = match self.dump.stage.take() {
            Some(Stage::Links) => {
                let seen = std::mem::take(&mut self.dump.seen);
                let unseen = self.links.keys().filter(|index| !seen.contains(index));
                for index in unseen.copied().collect::<Vec<u32>>() {
                    if let Some(link) = self.links.remove(&index) {
                        self.gone(link, None, out);
                    }
                }
                Some(Stage::Addresses)
            }
            Some(Stage::Addresses) => Some(Stage::RoutesV4),
            Some(Stage::RoutesV4) => Some(Stage::RoutesV6),
            Some(Stage::RoutesV6) | None => None,
        };
        if let Some(next) = next {
            return self.request(next);
        }
        let interrupted = std::mem::take(&mut self.dump.interrupted);
        self.dump.attempts = if interrupted {
            self.dump.attempts + 1
        } else {
            0
        };
        let mut again = self.dump.again.take();
        if interrupted && self.dump.attempts < DUMP_ATTEMPTS {
            again = Some(Stage::Links);
        } else if routes_told {
            out.push(Notice::Route(RouteChange::EndDump));
        }
        match again {
            Some(stage) => self.request(stage),
            None => Ok(()),
        }
    }
}

/// The stages of a dump, in order: routes can be told apart only when the links are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Links,
    Addresses,
    RoutesV4,
    RoutesV6,
}

/// The dump in progress.
#[derive(Default)]
pub(super) struct Dump {
    pub(super) stage: Option<Stage>,
    /// Its first message has arrived.
    pub(super) begun: bool,
    pub(super) sequence: u32,
    pub(super) interrupted: bool,
    pub(super) attempts: u32,
    /// The stage to restart from afterwards.
    pub(super) again: Option<Stage>,
    /// Links that are there.
    pub(super) seen: BTreeSet<u32>,
    /// The route before.
    pub(super) last: Option<(IpNet, u32)>,
}
