//! What of the processor a model may use: threads, and the cores that they stay on.

/// Threads that compute, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// Threads of one inference, at least 1; for delegates that use several.
    pub threads: usize,
    /// Numbers of cores as the system counts them, from 0, for all these threads together. Empty: the system chooses.
    pub cores: Vec<usize>,
}

impl Default for Processor {
    fn default() -> Self {
        Self { threads: 1, cores: Vec::new() }
    }
}

impl Processor {
    /// Keeps the calling thread, and those that it starts from now on, on the cores. Where the system refuses, as for cores
    /// that are not there, that is logged, and the thread runs anywhere.
    pub fn keep(&self) {
        if self.cores.is_empty() {
            return;
        }
        if let Err(error) = keep_to(&self.cores) {
            let cores = &self.cores;
            log::warn!("model.cores={cores:?}: {error}; running on any core (see /proc/cpuinfo)");
        }
    }
}

#[cfg(target_os = "linux")]
fn keep_to(cores: &[usize]) -> std::io::Result<()> {
    use nix::sched::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core)?;
    }
    Ok(sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}

#[cfg(not(target_os = "linux"))]
fn keep_to(_: &[usize]) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use nix::sched::{CpuSet, sched_getaffinity};

    use super::*;

    /// Of the calling thread.
    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("there is a set");
        let is_in = |core: &usize| set.is_set(*core).expect("below the count");
        (0..CpuSet::count()).filter(is_in).collect()
    }

    #[test]
    fn a_thread_stays_where_it_is_told() {
        let last = *allowed().last().unwrap();
        let kept = std::thread::spawn(move || {
            Processor { threads: 1, cores: vec![last] }.keep();
            (allowed(), std::thread::spawn(allowed).join().unwrap())
        });
        assert_eq!(kept.join().unwrap(), (vec![last], vec![last]));
    }

    #[test]
    fn a_core_that_is_not_there_changes_nothing() {
        let anywhere = allowed();
        for core in [CpuSet::count() - 1, CpuSet::count()] {
            Processor { threads: 1, cores: vec![core] }.keep();
            assert_eq!(allowed(), anywhere);
        }
    }
}
