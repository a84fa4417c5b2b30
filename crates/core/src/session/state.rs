//! The progress of sessions, in the words of their protocols, and counts by it.

use super::{Session, SessionFlags, Tracker, tcp::TcpState};
use crate::flow::Protocol;

/// The progress of a session: the state of a TCP connection; for others, whether it was replied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionState(u8);

/// States of all protocols together.
const COUNT: usize = TcpState::COUNT + 2 * OTHERS.len();
/// The protocols except TCP, which comes first.
const OTHERS: [&str; 3] = ["udp", "icmp", "other"];

impl SessionState {
    /// The state as listings show it: that of TCP, or whether an answer has come.
    #[inline]
    pub fn of(session: &Session) -> SessionState {
        let tcp = match &session.tracker {
            Tracker::Tcp(tcp) => Some(tcp.state().progress()),
            _ => None,
        };
        let replied = session.flags.contains(SessionFlags::REPLIED);
        SessionState::new(session.protocol, tcp, replied)
    }

    /// The state of a session of `protocol`, with [`TcpState::progress`] if it is tracked as TCP.
    #[inline]
    pub(crate) fn new(protocol: Protocol, tcp: Option<u8>, replied: bool) -> SessionState {
        let other = match (tcp, protocol) {
            (Some(progress), _) => return SessionState(progress),
            (_, Protocol::UDP) => 0,
            (_, Protocol::ICMP) => 2,
            _ => 4,
        };
        SessionState(TcpState::COUNT as u8 + other + u8::from(replied))
    }

    /// All states, by protocol.
    pub fn all() -> impl Iterator<Item = SessionState> {
        (0..COUNT as u8).map(SessionState)
    }

    /// The protocol: `tcp`, `udp`, `icmp` or `other`.
    pub fn protocol(self) -> &'static str {
        match usize::from(self.0).checked_sub(TcpState::COUNT) {
            None => "tcp",
            Some(other) => OTHERS[other / 2],
        }
    }

    /// The name that the operator sees, such as `established` or `unreplied`.
    pub fn name(self) -> &'static str {
        match usize::from(self.0).checked_sub(TcpState::COUNT) {
            None => TcpState::ALL[usize::from(self.0)].name(),
            Some(other) => ["unreplied", "replied"][other % 2],
        }
    }
}

/// The number of sessions in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCounts([u32; COUNT]);

impl StateCounts {
    /// How many are in `state`.
    pub fn get(&self, state: SessionState) -> u32 {
        self.0[usize::from(state.0)]
    }

    #[inline]
    pub(super) fn add(&mut self, state: SessionState) {
        self.0[usize::from(state.0)] += 1;
    }

    #[inline]
    pub(super) fn subtract(&mut self, state: SessionState) {
        self.0[usize::from(state.0)] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_a_name_of_its_own_within_its_protocol() {
        let names: std::collections::BTreeSet<_> = SessionState::all()
            .map(|state| (state.protocol(), state.name()))
            .collect();
        assert_eq!(names.len(), COUNT);
        assert!(names.contains(&("tcp", "established")) && names.contains(&("other", "replied")));
    }
}
