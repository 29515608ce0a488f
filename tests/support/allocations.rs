//! An allocator that watches, for tests which show that something asks for no memory.
//!
//! `#[global_allocator] static ALLOCATOR: Watched = Watched(note);`, then [`during`].

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator; the function is called with the size of each request.
pub(crate) struct Watched(pub(crate) fn(usize));

#[expect(unsafe_code, reason = "an allocator is an unsafe trait; every call goes to the system's")]
// SAFETY: every method passes its arguments to `System`, which keeps the trait's contract.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        (self.0)(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        (self.0)(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What a thread has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Requests {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

thread_local! {
    static OWN: Cell<Requests> = const { Cell::new(Requests { count: 0, bytes: 0 }) };
}

/// Counts a request of this thread.
pub(crate) fn note(size: usize) {
    // A thread that is about to end has no counter any more; nobody asks for it then.
    let _ = OWN.try_with(|own| {
        let Requests { count, bytes } = own.get();
        own.set(Requests { count: count + 1, bytes: bytes + size as u64 });
    });
}

/// What this thread asks for while it does `work`. Panics when the allocator counts nothing.
pub(crate) fn during<T>(work: impl FnOnce() -> T) -> (T, Requests) {
    let before = OWN.get();
    drop(std::hint::black_box(Box::new(before)));
    let before = Requests { count: before.count + 1, bytes: before.bytes + 16 };
    assert_eq!(OWN.get(), before, "the allocator counts");
    let result = work();
    let own = OWN.get();
    (result, Requests { count: own.count - before.count, bytes: own.bytes - before.bytes })
}
