//! Frames by which units recognise each other on the data ports: to and from the election.

use crate::event::{DropReason, Output};
use crate::flow::PortId;
use crate::ha::{self, FrameError, PortKeys};
use crate::time::Time;

use super::Gateway;
use super::limiter::Limiter;

/// Frames a second that a port accepts: several times what seven peers send at the shortest
/// interval.
const FRAMES_PER_SECOND: u32 = 5000;

const ETHERNET_LEN: usize = 14;
const BROADCAST: [u8; 6] = [0xff; 6];

/// How many more frames each port accepts now.
pub(super) struct PortFrames(Vec<Limiter>);

impl PortFrames {
    pub(super) fn new(ports: usize) -> PortFrames {
        PortFrames(
            (0..ports)
                .map(|_| Limiter::new(FRAMES_PER_SECOND))
                .collect(),
        )
    }
}

/// The sender and payload of a frame of the units' own type.
pub(super) fn parse(frame: &[u8]) -> Option<([u8; 6], &[u8])> {
    let (header, rest) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let &[_, _, _, _, _, _, a, b, c, d, e, f, t0, t1] = header;
    let is_ours = u16::from_be_bytes([t0, t1]) == ha::ETHERTYPE;
    is_ours.then_some(([a, b, c, d, e, f], rest))
}

impl Gateway {
    /// The keys that this unit shares with each peer, in the order of the config, for the
    /// heartbeats on the data ports. Without them there are none.
    pub fn set_port_keys(&mut self, keys: Vec<Option<PortKeys>>) {
        self.with_cluster(|cluster| cluster.ha.set_port_keys(keys));
    }

    pub(super) fn handle_port_frame(
        &mut self,
        now: Time,
        port: PortId,
        (source, bytes): ([u8; 6], &[u8]),
    ) {
        // A standalone gateway may hear a cluster on the same link.
        if self.cluster().is_some() && !self.hosts.port_frames.0[port.index()].allow(now) {
            return self.count_drop(DropReason::HeartbeatLimit);
        }
        let handled = self.in_cluster(now, |cluster, _| {
            cluster.ha.handle_port_frame(now, port, source, bytes)
        });
        match handled {
            // A broadcast to another unit of the cluster, or of another cluster.
            None | Some(Ok(()) | Err(FrameError::NotForUs)) => {}
            Some(Err(error)) => {
                log::debug!(
                    "heartbeat on a data port ignored port={} why={error:?}",
                    port.0
                );
                self.count_drop(DropReason::BadHeartbeat);
            }
        }
    }

    pub(super) fn send_on_port(&mut self, port: PortId, to: Option<[u8; 6]>, bytes: &[u8]) {
        let link = *self.links.link(port);
        if !link.up {
            return;
        }
        let header = [to.unwrap_or(BROADCAST), link.mac].concat();
        let bytes = [&header, &ha::ETHERTYPE.to_be_bytes()[..], bytes].concat();
        self.push_urgent(Output::Frame { port, bytes });
    }
}
