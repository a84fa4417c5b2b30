//! Sockets that are files: who may write the file may connect.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Listens at `path`, for this user and its group, after removing the leftover of a dead process.
/// Connections don't wait.
///
/// # Errors
/// `AddrInUse` if somebody answers there, `AlreadyExists` if there is a file that is not a socket;
/// otherwise the kernel's error.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    make_room(path)?;
    // The mode is set by the mask, so that there is no moment at which others could connect.
    // SAFETY: umask only swaps a number of this process, and no other thread creates files here.
    let mask = unsafe { libc::umask(0o117) };
    let listener = UnixListener::bind(path);
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    let listener = listener?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Removes the leftover of a dead process at `path`.
fn make_room(path: &Path) -> io::Result<()> {
    // It never waits, not even for a process that is stopped and has too many clients.
    match mio::net::UnixStream::connect(path) {
        Ok(_) => Err(()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(()),
        Err(_) => Ok(()),
    }
    .map_err(|()| io::Error::new(ErrorKind::AddrInUse, "a running process answers there"))?;
    match std::fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "there is a file that is not a socket; remove it, or choose another path",
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
