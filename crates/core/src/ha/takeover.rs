//! Why a unit became primary.

/// Why this unit became primary of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Takeover {
    /// No other unit was, since this unit began to follow the group.
    Start,
    /// The primary was no longer heard, and did not answer on the data ports.
    Silent,
    /// The same, and the kernel of its machine has ended the connection of its process.
    Ended,
    /// The primary said goodbye.
    Goodbye,
    /// The primary handed the group over.
    Handover,
}

impl Takeover {
    /// All of them, in the order of their numbers.
    pub const ALL: [Takeover; 5] = [
        Takeover::Start,
        Takeover::Silent,
        Takeover::Ended,
        Takeover::Goodbye,
        Takeover::Handover,
    ];

    /// The name that the operator sees.
    pub fn name(self) -> &'static str {
        match self {
            Takeover::Start => "start",
            Takeover::Silent => "silent",
            Takeover::Ended => "process-ended",
            Takeover::Goodbye => "goodbye",
            Takeover::Handover => "handover",
        }
    }
}

/// How often this unit became primary of a group, by [`Takeover`].
pub type Takeovers = [u64; Takeover::ALL.len()];
