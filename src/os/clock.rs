//! Time and randomness, which the core may not obtain itself.

use std::io;
use std::time::Duration;

use tandemgw_core::time::Time;

/// The time since boot, suspension included.
///
/// `CLOCK_BOOTTIME` and not `CLOCK_MONOTONIC`, at the same price (both are answered by the vDSO): a
/// machine that was suspended must find its sessions aged and its role expired when it wakes, since
/// its peer did not sleep.
pub fn now() -> Time {
    Time::ZERO + read(libc::CLOCK_BOOTTIME)
}

/// The offset from [`now`] to nanoseconds since 1970, by the current clock.
pub fn offset_since_1970() -> u64 {
    let offset = read(libc::CLOCK_REALTIME).saturating_sub(read(libc::CLOCK_BOOTTIME));
    offset.as_nanos() as u64
}

/// A time of [`now`] as one since 1970, by the current clock.
pub fn since_1970(at: Time) -> Duration {
    Duration::from_nanos(offset_since_1970()) + at.since(Time::ZERO)
}

/// The time since boot without suspension, as service managers count it.
pub fn monotonic() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

/// Does nothing for so long. Not for the loop of the gateway.
pub fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut spec = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `spec` is a valid timespec for the kernel to write to, borrowed only for the call.
    let result = unsafe { libc::clock_gettime(clock, &mut spec) };
    debug_assert_eq!(result, 0, "every kernel since 2.6.39 has these clocks");
    // None is negative in a year after 1970.
    Duration::new(spec.tv_sec as u64, spec.tv_nsec as u32)
}

/// Whether the clock of this machine is synchronised, as far as the kernel knows (adjtimex(2)).
pub fn is_synchronised() -> Option<bool> {
    // SAFETY: all bytes of a timex may be zero: it is numbers; no mode means that nothing is set.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is a valid timex for the kernel to write to, borrowed only for the call.
    let result = unsafe { libc::adjtimex(&raw mut state) };
    (result != -1).then_some(state.status & libc::STA_UNSYNC == 0)
}

/// `N` bytes from the kernel's generator, fit for keys.
///
/// # Errors
///
/// None in practice; a sandbox may forbid `getrandom(2)`.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `rest` is writable for `rest.len()` bytes, and borrowed only for the call.
        let read = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(read) {
            Ok(read) => filled += read,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_at_the_usual_rate() {
        let start = now();
        std::thread::sleep(Duration::from_millis(20));
        let passed = now().since(start);
        assert!(passed >= Duration::from_millis(20), "{passed:?}");
        assert!(passed < Duration::from_secs(20), "{passed:?}");
    }

    #[test]
    fn random_bytes_differ() {
        let (a, b) = (random_bytes::<32>().unwrap(), random_bytes::<32>().unwrap());
        assert_ne!(a, b);
        assert_ne!(a, [0; 32]);
        assert!(random_bytes::<0>().unwrap().is_empty());
    }
}
