//! Identifications of datagrams that are reassembled from fragments: hosts behind one address may
//! have chosen the same one, and the receiver would mix their fragments (RFC 6864, section 5.3).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::flow::{Addr, Family, FlowKey, Protocol};
use crate::packet;
use crate::time::Time;

use super::{Gateway, Packet};

/// How long a receiver waits for the rest of a datagram: Linux 30 s, others up to 60 s (RFC 8200,
/// section 4.5).
const REASSEMBLY_TIME: Duration = Duration::from_secs(60);

/// Datagrams that are remembered. Beyond that the oldest are forgotten.
const MOST: usize = 8192;

/// Identifications tried for a datagram.
const TRIES: u32 = 16;

/// The key by which a receiver reassembles a datagram.
type Label = (Addr, Addr, Protocol, u32);

/// The datagrams in flight, with their senders.
#[derive(Default)]
pub(super) struct Identifications {
    senders: BTreeMap<Label, Addr>,
    /// In the order of their age.
    order: VecDeque<(Time, Label)>,
}

impl Identifications {
    /// An identification for a datagram of `sender`, which leaves as `to`: the `wanted` one, or
    /// another if somebody else has that on the way to the same receiver. A host keeps its own
    /// datagrams apart.
    fn choose(
        &mut self,
        now: Time,
        sender: Addr,
        to: &FlowKey,
        wanted: u32,
        mut other: impl FnMut() -> u32,
    ) -> u32 {
        self.forget(now);
        // The protocol of a fragment of IPv6 may be an extension header.
        let protocol = match to.src.family() {
            Family::V4 => to.protocol,
            Family::V6 => Protocol(0),
        };
        let mut id = wanted;
        for _ in 0..TRIES {
            let label = (to.src, to.dst, protocol, id);
            match self.senders.get(&label) {
                Some(known) if *known == sender && id == wanted => return id,
                Some(_) => id = other(),
                None => {
                    self.senders.insert(label, sender);
                    self.order.push_back((now + REASSEMBLY_TIME, label));
                    return id;
                }
            }
        }
        wanted
    }

    fn forget(&mut self, now: Time) {
        let is_due = |(until, _): &(Time, Label), left: usize| *until <= now || left >= MOST;
        while let Some(oldest) = self.order.front()
            && is_due(oldest, self.order.len())
        {
            self.senders.remove(&oldest.1);
            self.order.pop_front();
        }
    }
}

impl Gateway {
    /// Gives a packet that is a fragment, or becomes several, an identification that is unique
    /// among those with its new addresses.
    #[cold]
    pub(super) fn identify(&mut self, packet: &mut Packet<'_>, to: &FlowKey) {
        let sender = packet.parsed.key.src;
        let Some(wanted) = packet::identification(packet.bytes, &packet.parsed) else {
            return;
        };
        let id = match packet.identification {
            Some(id) => id,
            None if to.src == sender => return,
            None => {
                let random = &mut self.random;
                let other = || match to.src.family() {
                    Family::V4 => random.next() as u32 & 0xffff,
                    Family::V6 => random.next() as u32,
                };
                self.identifications
                    .choose(packet.now, sender, to, wanted, other)
            }
        };
        if id != wanted {
            packet::set_identification(packet.bytes, &packet.parsed, id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sender_has_its_own_as_long_as_a_receiver_waits() {
        let mut all = Identifications::default();
        let start = Time::from_nanos(0);
        let [a, b, outside, receiver] = [1, 2, 3, 4].map(|n| Addr::v4([10, 0, 0, n]));
        let to = FlowKey {
            src: outside,
            dst: receiver,
            src_port: 0,
            dst_port: 0,
            protocol: Protocol::UDP,
        };
        let elsewhere = FlowKey { dst: a, ..to };
        let mut choose = |now, sender, to: &FlowKey| all.choose(now, sender, to, 7, || 8);
        assert_eq!(choose(start, a, &to), 7);
        assert_eq!(choose(start, a, &to), 7);
        assert_eq!(choose(start, b, &elsewhere), 7);
        assert_eq!(choose(start, b, &to), 8);
        let tcp = FlowKey {
            protocol: Protocol::TCP,
            ..to
        };
        assert_eq!(choose(start, b, &tcp), 7);
        assert_eq!(choose(start + REASSEMBLY_TIME, b, &to), 7);
        for id in 0..20_000 {
            all.choose(start + REASSEMBLY_TIME, a, &to, id, || 0);
        }
        assert!(all.senders.len() <= MOST && all.order.len() == all.senders.len());
    }
}
