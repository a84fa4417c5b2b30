//! The states of a TCP connection, as the gateway sees it.

/// The progress of a connection, which only moves forward in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// A SYN was seen.
    SynSent = 0,
    /// A SYN was seen from both.
    SynReceived = 1,
    /// Both SYNs are acknowledged.
    Established = 2,
    /// A FIN was seen from one: half closed, data may still flow the other way.
    FinWait = 3,
    /// A FIN was seen from both.
    LastAck = 4,
    /// Both FINs are acknowledged.
    TimeWait = 5,
    /// A valid reset was seen.
    Closed = 6,
}

impl TcpState {
    /// The number of states.
    pub const COUNT: usize = 7;

    /// All states in their order.
    pub const ALL: [TcpState; TcpState::COUNT] = [
        TcpState::SynSent,
        TcpState::SynReceived,
        TcpState::Established,
        TcpState::FinWait,
        TcpState::LastAck,
        TcpState::TimeWait,
        TcpState::Closed,
    ];

    /// A number that never gets smaller during the life of a connection.
    pub fn progress(self) -> u8 {
        self as u8
    }

    /// The name that the operator sees.
    pub fn name(self) -> &'static str {
        match self {
            TcpState::SynSent => "syn-sent",
            TcpState::SynReceived => "syn-received",
            TcpState::Established => "established",
            TcpState::FinWait => "fin-wait",
            TcpState::LastAck => "last-ack",
            TcpState::TimeWait => "time-wait",
            TcpState::Closed => "closed",
        }
    }
}
