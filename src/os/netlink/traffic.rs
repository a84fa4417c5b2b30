//! Counters of interfaces, and of the queues and filters of tc(8) on them.

use std::collections::BTreeMap;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcStats2};

use super::{Netlink, NetlinkError};

/// Packets that an interface has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets that came in by it.
    pub received: u64,
    /// Packets that went out by it.
    pub sent: u64,
    /// Packets that it had to send and has dropped.
    pub unsent: u64,
    /// Whether an XDP program sees what comes in, before anybody else does.
    pub has_xdp: bool,
}

/// A queue of an interface, or where tc filters look at its packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The interface.
    pub link: u32,
    /// The kind, such as `fq_codel` or `clsact`.
    pub kind: String,
    /// It is a place of filters, `ingress` or `clsact`, and not the queue that packets leave by.
    pub is_filter: bool,
    /// Packets that it has let pass.
    pub passed: u64,
    /// Packets that it has dropped.
    pub dropped: u64,
}

impl Netlink {
    /// The traffic of all interfaces, by number.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn traffic(&mut self) -> Result<BTreeMap<u32, Traffic>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let all = self.dump("links", &request, |message| match message {
            RouteNetlinkMessage::NewLink(link) => Some((link.header.index, traffic_of(&link))),
            _ => None,
        })?;
        Ok(all.into_iter().collect())
    }

    /// The queues that packets leave interfaces by, and where filters look at them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn queues(&mut self) -> Result<Vec<Queue>, NetlinkError> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        self.dump("queues", &request, |message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(queue) => queue_of(&queue),
            _ => None,
        })
    }
}

fn traffic_of(link: &LinkMessage) -> Traffic {
    let mut traffic = Traffic::default();
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Stats64(stats) => {
                traffic.received = stats.rx_packets;
                traffic.sent = stats.tx_packets;
                traffic.unsent = stats.tx_dropped;
            }
            LinkAttribute::Xdp(xdp) => {
                let is_none = |it: &LinkXdp| matches!(it, LinkXdp::Attached(XdpAttached::None));
                traffic.has_xdp = !xdp.iter().any(is_none);
            }
            _ => {}
        }
    }
    traffic
}

/// None for a queue within another one, whose packets that one counts too.
fn queue_of(message: &TcMessage) -> Option<Queue> {
    let is_filter = message.header.parent == TcHandle::INGRESS;
    if !is_filter && message.header.parent != TcHandle::ROOT {
        return None;
    }
    let mut queue = Queue {
        link: u32::try_from(message.header.index).ok()?,
        kind: String::new(),
        is_filter,
        passed: 0,
        dropped: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => queue.kind.clone_from(kind),
            TcAttribute::Stats2(stats) => {
                for stat in stats {
                    match stat {
                        TcStats2::Basic(basic) => queue.passed = basic.packets.into(),
                        TcStats2::Queue(of_queue) => queue.dropped = of_queue.drops.into(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(queue)
}
