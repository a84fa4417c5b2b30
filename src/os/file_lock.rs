//! A lock between processes that write the same file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::check;

/// Locks `folder` against others that lock it too (flock(2)) until the result is dropped or the
/// process ends, for whatever reason.
///
/// # Errors
/// `WouldBlock` if another process has the lock; otherwise the kernel's error.
pub fn lock_folder(folder: &Path) -> io::Result<File> {
    let file = File::open(folder)?;
    // SAFETY: flock takes no pointers, and the descriptor is open.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_it() {
        let folder = std::env::temp_dir().join(format!("tandemgw-lock-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let first = lock_folder(&folder).unwrap();
        let second = lock_folder(&folder).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        lock_folder(&folder).unwrap();
        std::fs::remove_dir(&folder).unwrap();
    }
}
