//! Multicast to people and programs.

use std::borrow::Cow;
use std::ops::Bound;

use crate::flow::{Addr, Family, FlowKey, PolicyId, PortId};
use crate::multicast::membership::Wanted;
use crate::time::Time;

use super::multicast::{Exit, IDLE, Session};
use super::{Gateway, SessionView};

/// The members of a group on a port, to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembersView {
    /// The port whose hosts want it.
    pub port: PortId,
    /// Where the streams that they want are sent to.
    pub group: Addr,
    /// Which sources they want.
    pub wanted: Wanted,
}

/// What the hosts of a port want, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MulticastPort {
    /// A port to which a policy leads.
    pub port: PortId,
    /// The numbers are of this one.
    pub family: Family,
    /// Groups that are wanted.
    pub groups: usize,
    /// Sources that are named.
    pub sources: usize,
    /// Whether this unit asks.
    pub is_querier: bool,
}

impl Gateway {
    /// The multicast sessions after `after`, at most so many: their key, and a view for each port
    /// that they leave by, with the name of the policy.
    pub fn multicast_page(
        &self,
        after: Option<(Addr, Addr)>,
        most: usize,
        now: Time,
    ) -> impl Iterator<Item = ((Addr, Addr), Vec<(SessionView, &str)>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sessions = self
            .multicast
            .sessions
            .range((from, Bound::Unbounded))
            .take(most);
        sessions.map(move |(at, session)| {
            let exits = self.multicast_exits(*at, session);
            let views = exits.iter();
            let views = views.map(|exit| self.multicast_view(*at, session, exit, now));
            (*at, views.collect())
        })
    }

    /// Where the next packet of a session would leave.
    fn multicast_exits<'a>(&self, at: (Addr, Addr), session: &'a Session) -> Cow<'a, [Exit]> {
        match self.multicast.is_current(session) {
            true => Cow::Borrowed(&session.exits),
            false => {
                let found = self.exits_of(session.port, at);
                Cow::Owned(found.map_or(Vec::new(), |(exits, _)| exits))
            }
        }
    }

    fn multicast_view(
        &self,
        (group, source): (Addr, Addr),
        session: &Session,
        exit: &Exit,
        now: Time,
    ) -> (SessionView, &str) {
        let original = FlowKey {
            src: source,
            dst: group,
            src_port: 0,
            dst_port: 0,
            protocol: session.protocol,
        };
        let translated = FlowKey {
            src: exit.source.unwrap_or(source),
            ..original
        };
        let of = self.multicast_group(session.port, source.family());
        let policies = &self.rules.config().multicast_policies;
        let policy = policies.get(usize::from(exit.policy));
        let view = SessionView {
            id: u32::MAX,
            original,
            translated,
            in_port: session.port,
            out_port: exit.port,
            policy: PolicyId::NONE,
            group: of,
            synced: false,
            state: "multicast",
            packets: [session.packets, 0],
            bytes: [session.bytes, 0],
            offloaded: false,
            age_s: now.since(session.started).as_secs(),
            expires_s: IDLE.saturating_sub(now.since(session.last_seen)).as_secs(),
        };
        (view, policy.map_or("-", |policy| &policy.name))
    }

    /// What the hosts of each port want, in numbers.
    pub fn multicast_ports(&self) -> impl Iterator<Item = MulticastPort> {
        self.multicast.ports().flat_map(|port| {
            let side = self.multicast.side(port).filter(|side| side.is_to);
            let members = side
                .into_iter()
                .flat_map(|side| Family::ALL.iter().zip(&side.downstream));
            members.map(move |(family, members)| {
                let (groups, sources) = members.count();
                MulticastPort {
                    port,
                    family: *family,
                    groups,
                    sources,
                    is_querier: members.is_querier(),
                }
            })
        })
    }

    /// How many multicast sessions there are.
    pub fn multicast_count(&self) -> usize {
        self.multicast.sessions.len()
    }

    /// What hosts want, by port and group.
    pub fn multicast_members(&self) -> impl Iterator<Item = MembersView> {
        let members = self.multicast.members();
        members.map(|(port, group, wanted)| MembersView {
            port,
            group,
            wanted,
        })
    }
}
