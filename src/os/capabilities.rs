//! Rights that the process gives up once everything is open.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

use super::check;

/// The remaining rights: steering is repaired and undone with the first, packet sockets are
/// reopened with the second when an interface comes back.
const KEPT: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];

/// Gives up all capabilities but those of `KEPT` that the process has, for good: nothing that it
/// might be made to execute gets more either. Call it before there is a second thread, since rights
/// are a thread's.
///
/// # Errors
/// What the kernel refuses; the process then has more rights than it needs.
pub fn drop_all_but_needed() -> io::Result<()> {
    // SAFETY: no pointers are passed; it only takes rights away.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let failed = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed)?;
    // Without this right, as in the service, the set stays what the service manager has made it;
    // since nothing can be gained by executing a file any more, that gives nothing.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        caps::clear(None, CapSet::Bounding).map_err(failed)?;
    }
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|c| permitted.contains(c)).collect();
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}
