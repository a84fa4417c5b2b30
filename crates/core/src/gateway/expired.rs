//! Packets whose hop limit expires here. The kernel would answer them with an address of this unit,
//! which changes with a takeover; so they come as frames, and the gateway answers with the virtual
//! address of the port.

use crate::event::{DropReason, Offload};
use crate::flow::PortId;
use crate::packet::build::IcmpProblem;
use crate::packet::{self, PacketKind};
use crate::time::Time;

use super::limiter::Budget;
use super::{Gateway, Packet};

impl Gateway {
    /// Handles an IP packet with no hop left that the interface of `port` received. A packet to an
    /// address of the gateway itself has arrived (RFC 1122, section 3.2.1.7).
    pub(super) fn handle_expired(&mut self, now: Time, port: PortId, bytes: &[u8]) {
        if !self.budgets.allow(Budget::Expired, now) {
            self.count_drop(DropReason::HopLimit);
        } else if let Err(reason) = self.answer_expired(now, port, bytes) {
            self.count_drop(reason);
        }
    }

    fn answer_expired(&mut self, now: Time, port: PortId, bytes: &[u8]) -> Result<(), DropReason> {
        let mut bytes = bytes.to_vec();
        let mut offload = Offload::default();
        let parsed = packet::parse(&bytes, offload)?;
        let dst = parsed.key.dst;
        // Packets to this machine, or to many, are the kernel's.
        if !packet::forwardable(dst) || self.is_kernel_address(dst) {
            return Ok(());
        }
        // A sender on this machine may have left the checksum unfinished, and nothing says so.
        offload.checksum_verified = matches!(parsed.kind, PacketKind::Tcp(_) | PacketKind::Udp);
        let mut packet = Packet {
            now,
            port,
            bytes: &mut bytes,
            offload,
            parsed,
            identification: None,
            group: None,
        };
        let is_in_session = self.sessions.lookup(&parsed.key).is_some();
        let is_error = parsed.kind == PacketKind::IcmpError;
        let is_whole = parsed.fragment.is_none() && !is_error;
        if is_whole && !is_in_session && self.is_for_gateway(&packet) {
            match self.handle_local(&mut packet) {
                crate::event::Verdict::Drop(reason) => return Err(reason),
                _ => return Ok(()),
            }
        }
        if packet::martian(&parsed.key) || !packet::forwardable(parsed.key.src) {
            return Err(DropReason::Martian);
        }
        // The answer would go to the owner of that address.
        self.check_source(&packet)?;
        self.answer_error(&packet, IcmpProblem::TimeExceeded);
        Err(DropReason::HopLimit)
    }
}
