//! Replication of sessions to the other units.
pub mod codec;
pub mod digest;
pub mod log;
pub mod message;
