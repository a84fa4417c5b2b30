//! Limits the maximum segment size of TCP, where path MTU discovery can't be relied on.

use crate::config::MssClamp;
use crate::flow::{FlowKey, PolicyId, PortId};
use crate::packet::{self, PacketKind};

use super::{Gateway, Packet};

impl Gateway {
    /// Lowers the maximum segment size that a SYN offers to the value of its policy, or else of the
    /// ports that it passes.
    #[inline]
    pub(super) fn clamp_mss(
        &self,
        packet: &mut Packet<'_>,
        to: &FlowKey,
        policy: PolicyId,
        egress: PortId,
    ) {
        if matches!(packet.parsed.kind, PacketKind::Tcp(segment) if segment.flags.syn())
            && let Some(most) = self.highest_mss(packet, to, policy, egress)
        {
            packet::clamp_mss(packet.bytes, &packet.parsed, packet.offload, most);
        }
    }

    #[cold]
    fn highest_mss(
        &self,
        packet: &Packet<'_>,
        to: &FlowKey,
        policy: PolicyId,
        egress: PortId,
    ) -> Option<u16> {
        let ports = [packet.port, egress];
        let most = |clamp| match clamp {
            MssClamp::Auto => self.fitting_mss(packet, to, ports),
            MssClamp::To(size) => size,
        };
        let of_port = |port: &PortId| self.rules.port(*port).mss_clamp;
        match self.policy(policy).and_then(|policy| policy.mss_clamp) {
            Some(clamp) => Some(most(clamp)),
            None => ports.iter().filter_map(of_port).map(most).min(),
        }
    }

    /// The largest segment that fits the links and routes of both directions without fragments (RFC
    /// 879, RFC 6691: the options are the sender's to subtract).
    fn fitting_mss(&self, packet: &Packet<'_>, to: &FlowKey, ports: [PortId; 2]) -> u16 {
        const TCP_HEADER: u32 = 20;
        let headers = packet.parsed.family.header_len() + TCP_HEADER;
        let links = ports.map(|port| Some(self.links.link(port).mtu));
        let routes = [&packet.parsed.key.src, &to.dst].map(|addr| self.routes.lookup(addr)?.mtu);
        let mtu = links.into_iter().chain(routes).flatten().min();
        let size = mtu.unwrap_or(u32::MAX).saturating_sub(headers);
        u16::try_from(size).unwrap_or(u16::MAX)
    }
}
