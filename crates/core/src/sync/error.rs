//! The errors in the stream of a peer.

use std::fmt;

use super::message;

/// Why a connection to a peer must be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// Bytes that make no sense.
    Malformed,
    /// A frame that is not allowed there, such as one before Hello.
    Unexpected,
    /// Another version of the protocol.
    Version(u16),
    /// Another `group-id`.
    GroupId(u8),
    /// The peer says that it is another node.
    WrongNode(String),
    /// An acknowledgment of something that was not sent.
    FutureAck,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::Malformed => f.write_str("malformed message"),
            ProtocolError::Unexpected => f.write_str("message out of turn"),
            ProtocolError::Version(version) => {
                let ours = message::VERSION;
                write!(
                    f,
                    "it speaks protocol version {version}, this unit {ours}: update the older one"
                )
            }
            ProtocolError::GroupId(id) => {
                write!(f, "its `group-id` is {id}, not ours: give both the same")
            }
            ProtocolError::WrongNode(name) => {
                let name = name.escape_debug();
                write!(
                    f,
                    "it is node `{name}`: set `name` in [[ha.peer]] to its own"
                )
            }
            ProtocolError::FutureAck => f.write_str("acknowledgment of what was not sent"),
        }
    }
}

impl std::error::Error for ProtocolError {}
