//! For tests only: a network namespace that lives as long as one thread.

use std::process::Command;
use std::sync::Mutex;

/// A test that starts a process lends it all descriptors for a moment, also those of other tests,
/// which would then find what they closed still open.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `test` in a thread with an empty network namespace of its own, which vanishes with it.
///
/// # Panics
/// Without the right to make one (`CAP_SYS_ADMIN`).
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let thread = std::thread::spawn(move || {
        // SAFETY: plain system call without pointers; it affects this thread only.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let remedy = "no network namespace for the test: run it as root, or in `unshare -rn`";
        assert_eq!(unshared, 0, "{remedy}");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` with these blank-separated arguments in the namespace of this thread.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}
