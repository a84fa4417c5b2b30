//! All that makes system calls or knows a file descriptor.

pub mod key_file;
pub mod quic;
