//! For tests only: a network namespace that lives as long as one thread.

use std::process::Command;

/// Runs `test` in a thread with an empty network namespace of its own, which vanishes with it.
///
/// Without the right to make one (`CAP_SYS_ADMIN`) the test is skipped, and says so on stderr.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: plain system call without pointers; it affects this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("SKIPPED: needs CAP_SYS_ADMIN; run it as root or in `unshare -rn`");
            return;
        }
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
