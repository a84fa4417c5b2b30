//! The shell: all that makes system calls or knows a file descriptor.

pub mod monitor;
pub mod netlink;
pub mod preflight;
pub mod steering;
pub mod sysctl;
