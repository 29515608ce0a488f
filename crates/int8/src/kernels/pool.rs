//! Threads that help with a layer. A layer is cut into chunks, more than there are threads; whoever is free takes the
//! next one, so that a helper that gets little of its core takes few. The caller takes chunks from the front, helpers
//! from the back: from layer to layer a thread meets what it has written itself, in its own cache.
//!
//! Helpers spin for a moment after the last chunk, because the next layer is near, and park then. A helper that the
//! system takes off its core in the middle of a chunk holds the layer up: after that the caller works alone for a
//! while, longer each time it happens again.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Turns of an idle helper before it parks: some tens of microseconds.
const SPINS: usize = 4_000;
/// Turns of a caller that waits for the last chunks before it counts as held up: several times a chunk.
const PATIENCE: usize = 20_000;
/// Layers that a caller does alone after it was held up: at first, and at most.
const ALONE: [usize; 2] = [64, 8_192];

/// Helpers for engines: one layer of one engine at a time. An engine that finds the pool taken works alone.
///
/// ```
/// use std::sync::Arc;
/// # use ocelli_int8::*;
/// # let mut builder = GraphBuilder::new();
/// # let q = Quantisation::new(ElementType::U8, 0.5, 0)?;
/// # let x = builder.input(Shape::new(1, 2, 2, 1)?, q, InputForm::F32Nchw)?;
/// # builder.output(x, OutputForm::F32Nchw)?;
/// # let mut engine = Engine::new(&builder.build()?)?;
/// // Two threads: the one that runs the engine and a helper.
/// let pool = Arc::new(Pool::new(2, |_helper| {})?);
/// engine.share(&pool);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
    /// Whether an engine is at work.
    taken: AtomicBool,
    /// Layers that callers still do alone, and did after the last hold-up.
    alone: AtomicUsize,
    penalty: AtomicUsize,
}

struct Shared {
    /// Number of the job (upper half), and the range of chunks that nobody has taken: end and start, 16 bits each.
    /// Whoever takes a chunk off the range owns it, and with it a share in the job until `done` counts it.
    state: Line<AtomicU64>,
    done: Line<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

/// On cache lines of its own.
#[repr(align(128))]
#[derive(Debug)]
struct Line<T>(T);

/// Most chunks of a job.
const MOST: usize = 0xffff;

/// The chunks of a state that nobody has taken.
fn left(state: u64) -> Range<u64> {
    state & 0xffff..state >> 16 & 0xffff
}

/// What is done with a thread's number and a chunk's.
type Job = *const dyn Fn(usize, usize);

// SAFETY: `job` is written only between jobs, when nobody owns a chunk, and read only by owners of a chunk; `state`
// orders the two. What it points at is shared as `Pool::each` demands.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `threads - 1` helpers, at most 63; the thread that runs an engine is the first. Each helper calls
    /// `started` with its number, from 1 on, before it does anything else: to choose its core or its priority.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn new(
        threads: usize,
        started: impl Fn(usize) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let threads = threads.clamp(1, 64);
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            done: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            parked: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let started = Arc::new(started);
        let mut pool = Self {
            shared,
            helpers: Vec::new(),
            threads: Vec::new(),
            taken: AtomicBool::new(false),
            alone: AtomicUsize::new(0),
            penalty: AtomicUsize::new(ALONE[0]),
        };
        for helper in 1..threads {
            let (shared, started) = (Arc::clone(&pool.shared), Arc::clone(&started));
            let thread =
                thread::Builder::new().name(format!("int8-{helper}")).spawn(move || {
                    started(helper);
                    shared.help(helper);
                })?;
            pool.threads.push(thread.thread().clone());
            pool.helpers.push(thread);
        }
        Ok(pool)
    }

    /// Threads, with the one that runs an engine.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Does all `chunks`, each once (the caller alone if there are more than 65 535), with the scratch memory of the thread that takes it, and returns when all are
    /// done. There is one scratch for each thread, or the helpers are left out.
    ///
    /// # Safety
    /// Calls of `work` for different chunks may run at the same time: they must not write what another one reads or
    /// writes, whatever `work` borrows.
    ///
    /// # Panics
    /// When `work` does.
    pub(crate) unsafe fn each<S: Send>(
        &self,
        chunks: usize,
        scratch: &mut [S],
        work: impl Fn(&mut S, usize),
    ) {
        let alone = !(2..=MOST).contains(&chunks)
            || scratch.len() < self.threads()
            || self.rests()
            || self.taken.swap(true, Ordering::Acquire);
        if alone {
            (0..chunks).for_each(|chunk| work(&mut scratch[0], chunk));
            return;
        }
        let scratch = scratch.as_mut_ptr();
        // SAFETY: a thread's number is below `threads()`, and each thread does one chunk at a time.
        let job = |thread: usize, chunk: usize| work(unsafe { &mut *scratch.add(thread) }, chunk);
        let job: &dyn Fn(usize, usize) = &job;
        self.shared.done.0.store(0, Ordering::Relaxed);
        // SAFETY: nobody owns a chunk of the job before. The lifetime ends when this function does, and by then all
        // chunks are done: nobody reads the pointer without owning one.
        unsafe {
            *self.shared.job.get() =
                Some(std::mem::transmute::<*const (dyn Fn(usize, usize) + '_), Job>(job));
        }
        let before = self.shared.state.0.load(Ordering::Relaxed) >> 32;
        let state = (before.wrapping_add(1) << 32) | (chunks as u64) << 16;
        self.shared.state.0.store(state, Ordering::SeqCst);
        for (parked, thread) in self.shared.parked.iter().zip(&self.threads) {
            if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                thread.unpark();
            }
        }
        while self.shared.take(0) {}
        self.wait(chunks);
        self.taken.store(false, Ordering::Release);
        let mut panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = panic.take() {
            resume_unwind(panic);
        }
    }

    /// Whether this layer is one that the caller does alone after a hold-up.
    fn rests(&self) -> bool {
        let alone = self.alone.load(Ordering::Relaxed);
        if alone > 0 {
            self.alone.store(alone - 1, Ordering::Relaxed);
        }
        alone > 0
    }

    /// Waits for chunks that helpers have taken.
    fn wait(&self, chunks: usize) {
        let mut turns = 0;
        while self.shared.done.0.load(Ordering::Acquire) < chunks {
            turns += 1;
            if turns < PATIENCE {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        self.account(turns >= PATIENCE);
    }

    /// Remembers whether a layer was held up by a helper.
    fn account(&self, held_up: bool) {
        let penalty = self.penalty.load(Ordering::Relaxed);
        if held_up {
            self.alone.store(penalty, Ordering::Relaxed);
            self.penalty.store((2 * penalty).min(ALONE[1]), Ordering::Relaxed);
        } else if penalty > ALONE[0] {
            self.penalty.store(penalty - 1, Ordering::Relaxed);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (helper, thread) in self.helpers.drain(..).zip(&self.threads) {
            thread.unpark();
            // A panic of a helper has been passed on to the caller.
            drop(helper.join());
        }
    }
}

impl Shared {
    /// Takes a chunk and does it; false when there is none.
    fn take(&self, thread: usize) -> bool {
        let mut state = self.state.0.load(Ordering::Acquire);
        loop {
            let left = left(state);
            if left.is_empty() {
                return false;
            }
            let (chunk, taken) = match thread {
                0 => (left.start, state + 1),
                _ => (left.end - 1, state - (1 << 16)),
            };
            // The number of the job is part of the comparison: a chunk of another job is never taken by mistake.
            match self.state.0.compare_exchange_weak(
                state,
                taken,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    self.work(thread, chunk as usize);
                    return true;
                }
                Err(now) => state = now,
            }
        }
    }

    fn work(&self, thread: usize, chunk: usize) {
        // SAFETY: this thread owns a chunk, so the job stands and what it points at lives.
        let job = unsafe { (*self.job.get()).map(|job| &*job) };
        let job = job.expect("a job is written before its chunks can be taken");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(thread, chunk))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        self.done.0.fetch_add(1, Ordering::Release);
    }

    fn help(&self, helper: usize) {
        let parked = &self.parked[helper - 1];
        let mut idle = 0;
        while !self.stop.load(Ordering::SeqCst) {
            if self.take(helper) {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < SPINS {
                std::hint::spin_loop();
                continue;
            }
            idle = 0;
            parked.store(true, Ordering::SeqCst);
            // A job that came meanwhile was published before its caller looked at `parked`, or is seen here.
            let waits = left(self.state.0.load(Ordering::SeqCst)).is_empty();
            if waits && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_done_once() {
        let pool = Pool::new(4, |_| {}).unwrap();
        let done: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        for round in 1..=500 {
            let mut taken = vec![0; 4];
            // SAFETY: chunks share nothing but atomics.
            unsafe {
                pool.each(100, &mut taken, |taken, chunk| {
                    *taken += 1;
                    done[chunk].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert_eq!(taken.iter().sum::<usize>(), 100);
            assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == round));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2, |_| {}).unwrap();
        let fails = |_: &mut (), chunk: usize| assert!(chunk != 7, "chunk 7");
        // SAFETY: chunks share nothing.
        let failed =
            catch_unwind(AssertUnwindSafe(|| unsafe { pool.each(9, &mut [(); 2], fails) }));
        assert!(failed.is_err());
        let sum = AtomicUsize::new(0);
        let add = |_: &mut (), chunk: usize| {
            sum.fetch_add(chunk, Ordering::Relaxed);
        };
        // SAFETY: as above.
        unsafe { pool.each(9, &mut [(); 2], add) };
        assert_eq!(sum.load(Ordering::Relaxed), 36);
    }

    #[test]
    fn hold_ups_let_the_caller_work_alone_for_longer_each_time() {
        let pool = Pool::new(2, |_| {}).unwrap();
        let alone = |pool: &Pool| (0..).take_while(|_| pool.rests()).count();
        pool.account(false);
        assert_eq!(alone(&pool), 0);
        for expected in [64, 128, 256, 512] {
            pool.account(true);
            assert_eq!(alone(&pool), expected);
        }
        (0..20).for_each(|_| pool.account(true));
        assert_eq!(alone(&pool), ALONE[1]);
        // Layers that go well make up for it.
        (0..ALONE[1]).for_each(|_| pool.account(false));
        pool.account(true);
        assert_eq!(alone(&pool), ALONE[0]);
    }
}
