//! The shell: all that makes system calls or knows a file descriptor.

pub mod clock;
pub mod packet_socket;
pub mod signal;
pub mod tun;

#[cfg(test)]
pub(crate) mod test_namespace;

/// Makes of the result of a system call, -1 for an error, a `Result`.
fn check(result: libc::c_int) -> std::io::Result<()> {
    match result {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}
pub mod monitor;
pub mod netlink;
pub mod preflight;
pub mod steering;
pub mod sysctl;
