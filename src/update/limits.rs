//! Confines the process of a trial: memory, time, files, priority. Called by the child itself before it looks at the model.
//!
//! An island of unsafe code: two calls of the C library without memory of ours but their arguments.

use std::io;

/// What a trial may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Address space, bytes.
    pub memory_bytes: u64,
    /// Processor time, seconds.
    pub cpu_seconds: u64,
}

/// How far the trial stands back: about a tenth of a core that is busy otherwise. SCHED_IDLE would get next to nothing of a
/// board whose cores are all in use, and never come to an end.
#[cfg(target_os = "linux")]
const NICER_BY: libc::c_int = 10;

/// Applies the limits to this process, for good: also no core file, no file written, few descriptors, and little of the time
/// that others want.
///
/// # Errors
/// The system refuses a limit.
#[cfg(target_os = "linux")]
pub fn confine(limits: Limits) -> io::Result<()> {
    limit(libc::RLIMIT_AS, limits.memory_bytes, limits.memory_bytes)?;
    // The soft limit ends the process by a signal of its own, the hard one as anybody's kill would.
    limit(libc::RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 5)?;
    limit(libc::RLIMIT_CORE, 0, 0)?;
    limit(libc::RLIMIT_FSIZE, 0, 0)?;
    limit(libc::RLIMIT_NOFILE, 64, 64)?;
    stand_back();
    Ok(())
}

/// Without Linux there is only the parent's timeout.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn confine(_: Limits) -> io::Result<()> {
    Ok(())
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
type Resource = libc::__rlimit_resource_t;
#[cfg(all(target_os = "linux", not(target_env = "gnu")))]
type Resource = libc::c_int;

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "libc has no safe call for it")]
fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let value = |value: u64| libc::rlim_t::try_from(value).unwrap_or(libc::RLIM_INFINITY);
    let limit = libc::rlimit { rlim_cur: value(soft), rlim_max: value(hard) };
    // SAFETY: `limit` is a whole struct that outlives the call; the call keeps no pointer.
    match unsafe { libc::setrlimit(resource, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "libc has no safe call for it")]
fn stand_back() {
    // SAFETY: takes and gives a number. Anybody may lower their own priority, so there is no failure to look at.
    unsafe { libc::nice(NICER_BY) };
}
