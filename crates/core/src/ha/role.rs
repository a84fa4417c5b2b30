//! A unit's role in a group.

/// This unit's role in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Answers for the group's addresses and forwards its packets.
    Primary,
    /// Holds the group's sessions, and is silent.
    Standby,
}

impl Role {
    /// As shown to people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Standby => "standby",
        }
    }
}
