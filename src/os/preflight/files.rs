//! The node's key and the control socket.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Check, MachineProblem};
use crate::os::key_file;
use tandemgw_core::config::Config;

/// Bytes of a Unix socket's path, without the zero at its end (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// The key of this node, and whether a peer is configured with the same key; none if there is no
/// key.
pub(super) fn key(config: &Config) -> Option<Check> {
    let path = config.node.key.as_ref()?;
    let key = match key_file::load(path) {
        Ok(key) => key.public(),
        Err(error) => {
            let remedy =
                "make a key with `tandemgw keygen --out FILE`, or correct `key` in `[node]`";
            let problem = MachineProblem::fatal(error.to_string(), remedy);
            return Some(Check::new("key", "", [problem]));
        }
    };
    let peers = config.ha.iter().flat_map(|ha| &ha.peers);
    let mistaken = peers.filter(|peer| key.0 == peer.public_key);
    let problems = mistaken.map(|peer| {
        MachineProblem::fatal(
            format!(
                "the `public-key` of peer {} is that of this node",
                peer.name
            ),
            format!(
                "put there what `tandemgw pubkey` prints on {}; each node needs a key of its own",
                peer.name
            ),
        )
    });
    let found = format!(
        "{}, only its owner can read it, public key {key}",
        path.display()
    );
    Some(Check::new("key", found, problems))
}

/// The socket for the commands.
pub(super) fn control_socket(config: &Config, is_running: bool) -> Check {
    let path = config.node.control_socket.as_path();
    let shown = path.display();
    let folder = path
        .ancestors()
        .skip(1)
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"));
    let problem = if path.as_os_str().len() > MAX_SOCKET_PATH {
        Some(MachineProblem::fatal(
            format!(
                "the path of the control socket is longer than {MAX_SOCKET_PATH} bytes: {shown}"
            ),
            "choose a shorter `control-socket` in `[node]`",
        ))
    } else if !is_running && UnixStream::connect(path).is_ok() {
        Some(MachineProblem::fatal(
            format!("another program answers at the control socket {shown}"),
            "stop it, or choose another `control-socket` in `[node]`",
        ))
    } else if !is_writable(folder) {
        Some(MachineProblem::fatal(
            format!("no socket can be created in {}", folder.display()),
            "let the gateway's user write there, or choose another `control-socket` in `[node]`",
        ))
    } else {
        None
    };
    let found = if is_running {
        format!("the gateway answers at {shown}")
    } else {
        format!("{shown} can be created")
    };
    Check::new("control-socket", found, problem)
}

/// Whether this process may create files in a folder.
fn is_writable(folder: &Path) -> bool {
    let Ok(path) = CString::new(folder.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: `path` ends with a zero and lives until the call is over.
    folder.is_dir() && unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_writable_and_a_file_is_none() {
        assert!(is_writable(&std::env::temp_dir()));
        assert!(!is_writable(Path::new("/proc/self/status")));
        assert!(!is_writable(Path::new("/no/such/folder")));
    }
}
