//! Who gives way when there is no room: quotas by source, and fairness between sources (RFC 6888,
//! REQ-4).
//!
//! A host above its limit of half-open sessions loses its own oldest, so that a flood in its name
//! does not keep it from opening new ones. If the table is full, expendable sessions go first, and
//! then those of the largest holder.

use super::table::Recent;
use super::{Holdings, NoRoom, Session, SessionFlags, SessionId, SourceLimits, Table};
use crate::flow::Addr;

/// Sessions of one holder that are considered for giving way.
const LOOKED_AT: usize = 16;

impl Table {
    /// How much one source may use, unless its port says otherwise.
    pub fn source_limits(&self) -> SourceLimits {
        self.holders.limits()
    }

    /// Changes the limits of a source. Existing sessions stay.
    pub fn set_source_limits(&mut self, limits: SourceLimits) {
        self.holders.set_limits(limits);
    }

    /// Counts the IPv6 hosts of a network by address, because they are on the link of a port.
    /// Others are counted by their /64. Call it before there are sessions.
    pub fn count_by_address(&mut self, network: &ipnet::Ipv6Net) {
        let bits = |addr: std::net::Ipv6Addr| u128::from_be_bytes(addr.octets());
        self.holders
            .add_network(bits(network.network()), bits(network.netmask()));
    }

    /// The same while there may be sessions: as soon as it is called while none is in the network.
    pub fn count_by_address_if_unused(&mut self, network: &ipnet::Ipv6Net) {
        let bits = |addr: std::net::Ipv6Addr| u128::from_be_bytes(addr.octets());
        self.holders
            .add_network_if_unused(bits(network.network()), bits(network.netmask()));
    }

    /// The sessions of a source.
    pub fn holdings(&self, source: &Addr) -> Holdings {
        self.holders.holdings(source)
    }

    /// A source address of each host, and its holdings, hosts with the most sessions first,
    /// accurate to an eighth.
    pub fn holders(&self) -> impl Iterator<Item = (Addr, Holdings)> {
        let all = self.holders.largest_first();
        all.filter_map(|(id, holdings)| Some((self.get(id)?.src, holdings)))
    }

    /// Counts an external port that the source of a session now holds.
    pub(crate) fn note_port(&mut self, id: SessionId) {
        self.holders.add_port(id);
    }

    /// Stops counting an external port that the source of a session no longer holds.
    pub(crate) fn forget_port(&mut self, id: SessionId) {
        self.holders.remove_port(id);
    }

    /// Whether there is room for one more session of `source`, within `limits`, and which session
    /// must end first: one that `may` end. A copy of another unit's session may not, since that
    /// unit counts on it.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn room(
        &self,
        source: &Addr,
        limits: SourceLimits,
        may: impl Fn(&Session) -> bool,
    ) -> Result<Option<SessionId>, NoRoom> {
        let too_many = self.holders.half_open_too_many(source, limits.half_open);
        if let Some(own) = too_many {
            let is_half_open = |it: &Session| it.flags.contains(SessionFlags::HALF_OPEN);
            let goes = |id: &SessionId| self.get(*id).is_some_and(|it| is_half_open(it) && may(it));
            let own = std::iter::once(own).chain(self.holders.of_source(source).take(LOOKED_AT));
            return own
                .into_iter()
                .find(goes)
                .ok_or(NoRoom::HalfOpenLimit)
                .map(Some);
        }
        if self.holders.is_wide_full(source, limits.half_open) {
            let is_near = |it: &Session| is_same_network(&it.src, source) && may(it);
            let neighbor = self.oldest_dispensable(is_near);
            return neighbor.ok_or(NoRoom::HalfOpenLimit).map(Some);
        }
        let limit = limits.sessions;
        if limit > 0 && self.holdings(source).sessions >= limit {
            let own = self.least_used(self.holders.of_source(source), &may);
            let own = own.filter(|id| self.get(*id).is_some_and(|it| !it.is_connection()));
            return own.ok_or(NoRoom::SourceLimit).map(Some);
        }
        if !self.is_full() {
            return Ok(None);
        }
        self.oldest_dispensable(&may)
            .or_else(|| self.least_used(self.holders.of_largest(source), &may))
            .ok_or(NoRoom::Full)
            .map(Some)
    }

    /// The same as [`Table::room`], for a caller that will end that session: the next call
    /// considers others.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn make_room(
        &mut self,
        source: &Addr,
        limits: SourceLimits,
        may: impl Fn(&Session) -> bool,
    ) -> Result<Option<SessionId>, NoRoom> {
        let room = self.room(source, limits, may);
        if self.is_full() || self.holders.is_wide_full(source, limits.half_open) {
            self.pass_recent(room.ok().flatten());
        }
        room
    }

    /// Of the sessions opened recently, the oldest expendable one that `may` end. Checks 64 at
    /// most; those that may not end stay for later.
    pub fn early_drop_candidate(&mut self, may: impl Fn(&Session) -> bool) -> Option<SessionId> {
        let oldest = self.oldest_dispensable(may);
        self.pass_recent(oldest);
        oldest
    }

    /// Makes the next search among the recently opened sessions begin behind `found`, or behind
    /// those that were checked. Sessions that may still give way to another search stay for later.
    fn pass_recent(&mut self, found: Option<SessionId>) {
        for _ in 0..Recent::POPS {
            let Some(id) = self.recent.pop() else { return };
            if Some(id) == found {
                return;
            }
            if self.get(id).is_some_and(Session::is_dispensable) {
                self.recent.push(id);
            }
        }
    }

    /// Sessions of the host that has the most external ports, if that is not `source`: those that
    /// give way first come first.
    pub fn of_largest_port_holder(&self, source: &Addr) -> impl Iterator<Item = SessionId> {
        self.holders.of_largest_port_holder(source)
    }

    /// Sessions of a host: those that give way first come first.
    pub fn of_source(&self, source: &Addr) -> impl Iterator<Item = SessionId> {
        self.holders.of_source(source)
    }

    /// Of the sessions opened recently, the oldest expendable one. Checks 64 at most.
    fn oldest_dispensable(&self, may: impl Fn(&Session) -> bool) -> Option<SessionId> {
        let mut oldest = self.recent.oldest_first().take(Recent::POPS);
        oldest.find(|id| {
            self.get(*id)
                .is_some_and(|it| it.is_dispensable() && may(it))
        })
    }

    /// Among the first few sessions, the one that its host would miss least.
    fn least_used(
        &self,
        sessions: impl Iterator<Item = SessionId>,
        may: impl Fn(&Session) -> bool,
    ) -> Option<SessionId> {
        let of = |id: SessionId| {
            let it = self.get(id).filter(|it| may(it))?;
            Some(((!it.is_dispensable(), it.is_connection(), it.last_seen), id))
        };
        let least = sessions.take(LOOKED_AT).filter_map(of);
        least.min_by_key(|(key, _)| *key).map(|(_, id)| id)
    }
}

/// Whether two IPv6 addresses are of one /64.
fn is_same_network(a: &Addr, b: &Addr) -> bool {
    a.octets()[..8] == b.octets()[..8]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config;
    use crate::flow::{FlowKey, Protocol};
    use crate::session::{AddressBook, SessionState, Timeouts};
    use crate::time::Tick;

    fn table(capacity: u32, sessions: u32, half_open: u32) -> Table {
        let second = Duration::from_secs(1);
        let timeouts = Timeouts::from(&config::Timeouts {
            tcp_established: second,
            tcp_transitory: second,
            tcp_syn: second,
            tcp_time_wait: second,
            tcp_reset: second,
            udp: second,
            udp_unreplied: second,
            icmp: second,
            other: second,
        });
        let mut table = Table::new(capacity, &[3; 16], timeouts, half_open);
        table.set_source_limits(SourceLimits {
            sessions,
            half_open,
        });
        table.count_by_address(&"fd77::/64".parse().unwrap());
        table
    }

    fn v4(host: u8) -> Addr {
        Addr::v4([10, 0, 0, host])
    }

    fn v6(network: u8, host: u16) -> Addr {
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfd, network]);
        octets[14..].copy_from_slice(&host.to_be_bytes());
        Addr::v6(octets)
    }

    /// Opens a session as the gateway does; returns who gave way.
    fn open(table: &mut Table, src: Addr, port: u16) -> Result<Option<SessionId>, NoRoom> {
        let limits = table.source_limits();
        let gave = table.make_room(&src, limits, |_| true)?;
        let book = AddressBook::new();
        if let Some(id) = gave {
            table.remove(id, &book).unwrap();
        }
        let dst = if src.is_v4() { v4(200) } else { v6(0x99, 1) };
        let key = FlowKey {
            src,
            dst,
            src_port: port,
            dst_port: 53,
            protocol: Protocol::UDP,
        };
        let mut session = Session::new(&key, Tick(u32::from(port)));
        session.flags.set(SessionFlags::HALF_OPEN);
        table.insert(session, &book).unwrap();
        table.check_invariants(&book);
        Ok(gave)
    }

    fn answer_all(table: &mut Table) {
        let ids: Vec<_> = table.iter().map(|(id, _)| id).collect();
        for id in ids {
            let before = SessionState::of(table.get(id).unwrap());
            table.get_mut(id).unwrap().flags.set(SessionFlags::REPLIED);
            table.settle(id);
            table.moved(id, before);
        }
    }

    #[test]
    fn above_the_half_open_limit_the_own_oldest_goes() {
        let mut table = table(64, 0, 3);
        for port in 0..3 {
            assert_eq!(open(&mut table, v4(1), port), Ok(None));
        }
        assert_eq!(open(&mut table, v4(2), 0), Ok(None));
        assert_eq!(open(&mut table, v4(1), 3), Ok(Some(SessionId(0))));
        answer_all(&mut table);
        assert_eq!(open(&mut table, v4(1), 4), Ok(None));
        assert_eq!(table.holdings(&v4(1)).half_open, 1);
        assert_eq!(table.holdings(&v4(1)).sessions, 4);
        let holders: Vec<_> = table
            .holders()
            .map(|(addr, it)| (addr, it.sessions))
            .collect();
        assert_eq!(holders, [(v4(1), 4), (v4(2), 1)]);
    }

    #[test]
    fn hosts_of_a_new_network_are_counted_by_address_once_it_is_unused() {
        let mut table = table(64, 0, 0);
        let networks = ["fd78::/64", "fd79::/64"].map(|it| it.parse().unwrap());
        let add = |table: &mut Table| {
            let all = networks.iter();
            all.for_each(|network| table.count_by_address_if_unused(network));
        };
        let mut ids = Vec::new();
        for host in 1..=2 {
            open(&mut table, v6(0x78, host), host).unwrap();
        }
        add(&mut table);
        for (network, sessions) in [(0x78, 3), (0x79, 1)] {
            open(&mut table, v6(network, 3), 3).unwrap();
            open(&mut table, v6(network, 4), 4).unwrap();
            let held = table.holdings(&v6(network, 3)).sessions;
            assert_eq!(held, sessions + u32::from(sessions > 1), "{network:x}");
        }
        ids.extend(table.iter().map(|(id, _)| id));
        for id in ids {
            table.remove(id, &AddressBook::new()).unwrap();
        }
        add(&mut table);
        for host in 1..=2 {
            open(&mut table, v6(0x78, host), host).unwrap();
        }
        assert_eq!(table.holdings(&v6(0x78, 1)).sessions, 1);
    }

    #[test]
    fn a_full_table_of_answered_sessions_takes_from_the_largest_holder() {
        let mut table = table(64, 0, 0);
        for port in 0..60 {
            assert_eq!(open(&mut table, v4(1), port), Ok(None));
        }
        for port in 0..4 {
            assert_eq!(open(&mut table, v4(2), port), Ok(None));
        }
        answer_all(&mut table);
        // The largest holder itself gets no more.
        assert_eq!(open(&mut table, v4(1), 99), Err(NoRoom::Full));
        for port in 0..20 {
            let gave = open(&mut table, v4(3), port);
            assert_eq!(gave, Ok(Some(SessionId(u32::from(port)))));
            answer_all(&mut table);
        }
        assert_eq!(table.holdings(&v4(1)).sessions, 40);
        // Not until all are equal: those who have much more give way.
        let mut refused = 0;
        for port in 20..60 {
            refused += u32::from(open(&mut table, v4(3), port).is_err());
            answer_all(&mut table);
        }
        assert!(refused > 20);
        assert_eq!(table.holdings(&v4(2)).sessions, 4);
    }

    #[test]
    fn a_source_above_its_limit_of_sessions_gives_what_is_idle() {
        let mut table = table(64, 4, 0);
        for port in 0..4 {
            assert_eq!(open(&mut table, v4(1), port), Ok(None));
        }
        answer_all(&mut table);
        assert_eq!(open(&mut table, v4(1), 9), Ok(Some(SessionId(0))));
        assert_eq!(open(&mut table, v4(2), 9), Ok(None));
    }

    #[test]
    fn hosts_on_the_link_are_counted_by_address_and_their_network_under_a_higher_ceiling() {
        let mut table = table(1024, 0, 10);
        for port in 0..100 {
            open(&mut table, v6(0x77, 1), port).unwrap();
        }
        assert_eq!(table.holdings(&v6(0x77, 1)).half_open, 10);
        // Another host of the network is not hindered, and loses nothing.
        for port in 0..10 {
            assert_eq!(open(&mut table, v6(0x77, 2), port), Ok(None));
        }
        // Elsewhere, all addresses of a /64 may be one host's.
        for host in 0..100 {
            open(&mut table, v6(0x88, host), 1).unwrap();
        }
        assert_eq!(table.holdings(&v6(0x88, 5)).half_open, 10);
        // Many addresses of a link together have four times as much as one.
        let refused = (100..500).filter(|host| open(&mut table, v6(0x77, *host), 1).is_err());
        // While the considered sessions all belong to others.
        assert!(refused.count() < 20);
        let link = |src: Addr| src.octets()[1] == 0x77;
        let half_open = table.iter().filter(|(_, it)| link(it.src)).count();
        assert_eq!(half_open, 40);
    }
}
