//! The shell: all that makes system calls or knows a file descriptor.

pub mod capabilities;
pub mod clock;
pub mod control_socket;
mod ethtool;
pub mod event_loop;
pub mod http;
pub mod key_file;
pub mod logging;
pub mod memory;
pub mod monitor;
pub mod netlink;
pub mod packet_socket;
pub mod peers;
pub mod preflight;
pub mod priority;
pub mod process;
pub mod quic;
pub mod service_manager;
pub mod signal;
pub mod startup;
pub mod steering;
pub mod sysctl;
pub mod timer;
pub mod tun;
pub mod watch;

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

/// Makes of the result of a system call, -1 for an error, a `Result`.
fn check(result: libc::c_int) -> std::io::Result<()> {
    match result {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}
