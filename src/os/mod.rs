//! The shell: all code that makes system calls or uses file descriptors.

pub mod barrier;
pub mod capabilities;
pub mod client_slots;
pub mod clock;
pub mod collector;
pub mod config_files;
pub mod config_terms;
pub mod control_socket;
pub mod etcd;
mod ethtool;
pub mod event_loop;
pub mod fast_path;
pub mod file_lock;
pub mod history;
pub mod hook;
pub mod http;
pub mod key_file;
pub mod logging;
pub mod memory;
pub mod memory_holder;
pub mod monitor;
pub mod multicast;
pub mod multicast_socket;
mod neighbor_requests;
pub mod netlink;
mod nftables;
pub mod packet_socket;
pub mod peers;
pub mod preflight;
pub mod priority;
pub mod private_file;
pub mod probes;
pub mod process;
pub mod quic;
pub mod replace_file;
pub mod service_manager;
pub mod signal;
mod skipped;
mod socket_file;
pub mod startup;
pub mod state_file;
pub mod steering;
pub mod sysctl;
pub mod timer;
pub mod tun;
mod upkeep;
pub mod watch;
pub mod web;
mod worker;

#[cfg(test)]
pub(crate) mod test_namespace;

/// Lets the event loop wait for a type that has a descriptor.
macro_rules! source_by_descriptor {
    ($type:ty) => {
        impl mio::event::Source for $type {
            fn register(
                &mut self,
                registry: &mio::Registry,
                token: mio::Token,
                interest: mio::Interest,
            ) -> std::io::Result<()> {
                mio::unix::SourceFd(&self.as_raw_fd()).register(registry, token, interest)
            }

            fn reregister(
                &mut self,
                registry: &mio::Registry,
                token: mio::Token,
                interest: mio::Interest,
            ) -> std::io::Result<()> {
                mio::unix::SourceFd(&self.as_raw_fd()).reregister(registry, token, interest)
            }

            fn deregister(&mut self, registry: &mio::Registry) -> std::io::Result<()> {
                mio::unix::SourceFd(&self.as_raw_fd()).deregister(registry)
            }
        }
    };
}
use source_by_descriptor;

/// Turns the result of a system call (-1 for an error) into a `Result`.
fn check(result: libc::c_int) -> std::io::Result<()> {
    match result {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The next bit of `set` after `last`, around the end.
fn next_bit(set: u32, last: u32) -> Option<u32> {
    let later = set & u32::MAX.checked_shl(last + 1).unwrap_or(0);
    let from = if later == 0 { set } else { later };
    (from != 0).then(|| from.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_has_its_turn() {
        assert_eq!(next_bit(0, 3), None);
        assert_eq!(next_bit(0b1011, 0), Some(1));
        assert_eq!(next_bit(0b1011, 1), Some(3));
        assert_eq!(next_bit(0b1011, 3), Some(0));
        assert_eq!(next_bit(1, 0), Some(0));
        assert_eq!(next_bit(1 << 31, 31), Some(31));
    }
}
