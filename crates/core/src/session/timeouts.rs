//! How long a session lives without a packet.

use super::tcp::{self, TcpState};
use super::{Session, SessionFlags, Tracker};
use crate::config;
use crate::flow::Protocol;
use crate::time::Tick;

/// `[timeouts]` of the config, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// By [`TcpState`].
    tcp: [u32; TcpState::COUNT],
    udp: u32,
    udp_unreplied: u32,
    icmp: u32,
    other: u32,
}

impl From<&config::Timeouts> for Timeouts {
    fn from(config: &config::Timeouts) -> Timeouts {
        let mut tcp = [Tick::count(config.tcp_transitory); TcpState::COUNT];
        tcp[TcpState::SynSent as usize] = Tick::count(config.tcp_syn);
        tcp[TcpState::Established as usize] = Tick::count(config.tcp_established);
        tcp[TcpState::TimeWait as usize] = Tick::count(config.tcp_time_wait);
        tcp[TcpState::Closed as usize] = Tick::count(config.tcp_reset);
        Timeouts {
            tcp,
            udp: Tick::count(config.udp),
            udp_unreplied: Tick::count(config.udp_unreplied),
            icmp: Tick::count(config.icmp),
            other: Tick::count(config.other),
        }
    }
}

impl Timeouts {
    /// How long `session` now lives after its last packet, in ticks.
    #[inline]
    pub fn timeout(&self, session: &Session) -> u32 {
        match (&session.tracker, session.protocol) {
            (Tracker::Tcp(tcp), _) => self.tcp(tcp),
            (_, Protocol::UDP) if session.flags.contains(SessionFlags::REPLIED) => self.udp,
            (_, Protocol::UDP) => self.udp_unreplied,
            (_, Protocol::ICMP) => self.icmp,
            // TCP without a tracker has no state that would earn it more.
            (_, Protocol::TCP) => self.tcp[TcpState::SynReceived as usize],
            _ => self.other,
        }
    }

    /// When `session` expires if no more packets come; it counts as seen at `renewed` at least.
    #[inline]
    pub fn deadline(&self, session: &Session, renewed: Tick) -> Tick {
        let timeout = self.timeout(session);
        let margin = match session.flags.contains(SessionFlags::SPREAD) {
            // Packets that other units forward are not seen here, see `report_after`.
            true => timeout / 2,
            false => 0,
        };
        session.last_seen.max(renewed).after(timeout + margin)
    }

    /// After how many ticks a unit that forwards packets of another one's session reports that the
    /// session is in use. The owner gives it half of its timeout more, so that it outlives its last
    /// packet by the whole timeout, even if one report in a row is lost.
    pub fn report_after(&self, session: &Session) -> u32 {
        self.timeout(session) / 4
    }

    fn tcp(&self, tcp: &tcp::Tracker) -> u32 {
        // A single stray segment must not buy two hours in the table.
        let state = match tcp.state() {
            TcpState::Established if tcp.is_one_sided() => TcpState::SynReceived,
            TcpState::Established if tcp.is_doubted() => TcpState::LastAck,
            state => state,
        };
        self.tcp[state as usize]
    }
}
