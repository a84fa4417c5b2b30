//! The errors of steering.

use std::fmt;

use crate::os::netlink::NetlinkError;
use crate::os::sysctl::SysctlError;

/// Why the packets can't be steered.
#[derive(Debug)]
pub enum SetupError {
    /// A table or rule priority is used by something else; the sentence says which and by what.
    Taken(String),
    /// The interface of a port doesn't exist.
    NoInterface(String),
    /// The TUN device of a port doesn't exist.
    NoTun(String),
    /// The kernel refused a route or a rule.
    Netlink(NetlinkError),
    /// The kernel refused a parameter.
    Sysctl(SysctlError),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetupError::Taken(what) => write!(
                f,
                "{what}; set `routing-table` in `[node]` to the first of as many free numbers as there are ports"
            ),
            SetupError::NoInterface(name) => write!(f, "there is no interface {name}"),
            SetupError::NoTun(name) => write!(f, "the TUN device {name} is gone"),
            SetupError::Netlink(error) => error.fmt(f),
            SetupError::Sysctl(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SetupError {}

impl From<NetlinkError> for SetupError {
    fn from(error: NetlinkError) -> Self {
        SetupError::Netlink(error)
    }
}

impl From<SysctlError> for SetupError {
    fn from(error: SysctlError) -> Self {
        SetupError::Sysctl(error)
    }
}
