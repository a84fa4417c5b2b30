//! The forwards: destination translation by external address and port.

use crate::config::Config;
use crate::flow::{Addr, FlowKey, PortId, Protocol};
use crate::session::{AddressBook, TranslatedAddr};

/// Where a forward leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The internal address.
    pub addr: Addr,
    /// The internal address as sessions hold it.
    pub translated: TranslatedAddr,
    /// The internal port.
    pub port: u16,
    /// The forward: an index into [`Config::forwards`].
    pub forward: u16,
}

/// All forwards, sorted for binary search.
pub(super) struct Forwards(Vec<(Match, Destination)>);

/// What a forward matches. The port comes last: those that differ in nothing else stand together.
type Match = (Addr, u16, Protocol, PortId);

impl Forwards {
    pub(super) fn new(config: &Config, book: &mut AddressBook) -> Forwards {
        let entry = |(index, forward): (usize, &crate::config::Forward)| {
            let destination = Destination {
                addr: forward.internal.0,
                // Both fail only beyond 65 534 forwards.
                translated: book.intern(forward.internal.0)?,
                port: forward.internal.1,
                forward: u16::try_from(index).ok()?,
            };
            let (addr, port) = forward.external;
            Some(((addr, port, forward.protocol, forward.port), destination))
        };
        let mut list: Vec<_> = config
            .forwards
            .iter()
            .enumerate()
            .filter_map(entry)
            .collect();
        list.sort_by_key(|(key, _)| *key);
        Forwards(list)
    }

    /// The forward for a packet that came in by `in_port`. Those of that port go before others,
    /// which apply as well, so that an external address works from everywhere.
    pub(super) fn find(&self, in_port: Option<PortId>, key: &FlowKey) -> Option<&Destination> {
        let wanted = (key.dst, key.dst_port, key.protocol);
        let start = self
            .0
            .partition_point(|((addr, port, protocol, _), _)| (*addr, *port, *protocol) < wanted);
        let candidates = self.0.get(start..)?;
        let mut same = candidates
            .iter()
            .take_while(|((addr, port, protocol, _), _)| (*addr, *port, *protocol) == wanted);
        let any = same.clone().next();
        let exact = same.find(|((_, _, _, port), _)| Some(*port) == in_port);
        exact.or(any).map(|(_, destination)| destination)
    }

    /// The external ends that are taken by forwards.
    pub(super) fn externals(&self) -> impl Iterator<Item = (Addr, Protocol, u16)> {
        self.0
            .iter()
            .map(|((addr, port, protocol, _), _)| (*addr, *protocol, *port))
    }
}
