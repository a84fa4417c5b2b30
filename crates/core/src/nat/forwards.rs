//! The forwards: destination translation by external address and port.

use super::range::Range;
use crate::config::{Config, Forward};
use crate::flow::{Addr, FlowKey, PortId, Protocol};
use crate::session::{AddressBook, TranslatedAddr};

/// The destination of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The internal address.
    pub addr: Addr,
    /// The internal address in the form that sessions hold.
    pub translated: TranslatedAddr,
    /// The internal port.
    pub port: u16,
    /// The forward: an index into [`Config::forwards`].
    pub forward: u16,
}

/// All forwards, sorted for binary search: by external and by internal address.
pub(super) struct Forwards {
    /// By external address, protocol, first port and port of entry. Ranges are equal or disjoint,
    /// so those that differ only in the port of entry stand together.
    inward: Vec<Inward>,
    /// By internal address and protocol.
    outward: Vec<ExternalEnd>,
}

struct Inward {
    addr: Addr,
    translated: TranslatedAddr,
    protocol: Protocol,
    range: Range,
    port: PortId,
    /// With the internal port of the first one of the range.
    destination: Destination,
}

/// The beginning of the range of a forward to an internal endpoint.
pub(super) struct ExternalEnd {
    /// The server; its ports follow those of the external range in order.
    internal: (Addr, Protocol),
    internal_ports: Range,
    /// The external address.
    pub(super) addr: Addr,
    /// The same in the form that sessions hold.
    pub(super) translated: TranslatedAddr,
    /// The external port of the first internal one.
    first: u16,
    /// The port of entry.
    pub(super) port: PortId,
}

impl ExternalEnd {
    /// The external port for an internal one, if the forward covers it.
    pub(super) fn external_port(&self, internal: u16) -> Option<u16> {
        let offset = internal.checked_sub(self.internal_ports.first)?;
        let is_inside = self.internal_ports.contains(internal);
        is_inside.then(|| self.first.checked_add(offset))?
    }
}

impl Forwards {
    pub(super) fn new(config: &Config, book: &mut AddressBook) -> Forwards {
        let mut forwards = Forwards {
            inward: Vec::new(),
            outward: Vec::new(),
        };
        for (index, forward) in config.forwards.iter().enumerate() {
            // Fails only beyond 65 534 forwards or addresses.
            if let Ok(index) = u16::try_from(index) {
                let _ = forwards.add(index, forward, book);
            }
        }
        let inward = |it: &Inward| (it.addr, it.protocol, it.range.first, it.port);
        forwards.inward.sort_by_key(inward);
        forwards.outward.sort_by_key(|it| it.internal);
        forwards
    }

    /// Sets the numbers of the addresses in a book, each in the place of its former number.
    pub(super) fn renumber(&mut self, numbers: &[TranslatedAddr]) {
        let renumber = |addr: &mut TranslatedAddr| *addr = numbers[usize::from(addr.0)];
        for inward in &mut self.inward {
            renumber(&mut inward.translated);
            renumber(&mut inward.destination.translated);
        }
        for end in &mut self.outward {
            renumber(&mut end.translated);
        }
    }

    fn add(&mut self, index: u16, forward: &Forward, book: &mut AddressBook) -> Option<()> {
        let (addr, first) = forward.external;
        let (internal, internal_first) = forward.internal;
        let translated = book.intern(addr)?;
        self.inward.push(Inward {
            addr,
            translated,
            protocol: forward.protocol,
            range: Range::new(first, forward.last_external_port),
            port: forward.port,
            destination: Destination {
                addr: internal,
                translated: book.intern(internal)?,
                port: internal_first,
                forward: index,
            },
        });
        let more = forward.last_external_port.saturating_sub(first);
        self.outward.push(ExternalEnd {
            internal: (internal, forward.protocol),
            internal_ports: Range::new(internal_first, internal_first.saturating_add(more)),
            addr,
            translated,
            first,
            port: forward.port,
        });
        Some(())
    }

    /// The forward for a packet that came in by `in_port`. Those of that port come first; others
    /// apply as well, so that an external address works from everywhere.
    pub(super) fn find(&self, in_port: Option<PortId>, key: &FlowKey) -> Option<Destination> {
        let wanted = (key.dst, key.protocol, key.dst_port);
        let end = self
            .inward
            .partition_point(|it| (it.addr, it.protocol, it.range.first) <= wanted);
        let last = self.inward.get(end.checked_sub(1)?)?;
        let is_meant = (last.addr, last.protocol) == (key.dst, key.protocol);
        if !is_meant || !last.range.contains(key.dst_port) {
            return None;
        }
        let before = self.inward.get(..end)?.iter().rev();
        let same = before.take_while(|it| {
            (it.addr, it.protocol, it.range) == (last.addr, last.protocol, last.range)
        });
        let mut any = None;
        for candidate in same {
            any = Some(candidate);
            if Some(candidate.port) == in_port {
                break;
            }
        }
        let Inward {
            range, destination, ..
        } = any?;
        Some(Destination {
            port: destination.port.checked_add(key.dst_port - range.first)?,
            ..*destination
        })
    }

    /// The forwards to the address and with the protocol that `key` comes from.
    pub(super) fn ends_of(&self, key: &FlowKey) -> &[ExternalEnd] {
        let wanted = (key.src, key.protocol);
        let start = self.outward.partition_point(|it| it.internal < wanted);
        let end = self.outward.partition_point(|it| it.internal <= wanted);
        self.outward.get(start..end).unwrap_or(&[])
    }

    /// The external ends that are taken by forwards.
    pub(super) fn externals(&self) -> impl Iterator<Item = (TranslatedAddr, Protocol, Range)> {
        self.inward
            .iter()
            .map(|it| (it.translated, it.protocol, it.range))
    }
}
