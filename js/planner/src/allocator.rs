//! The allocator: that of the standard library would be 2 kB larger, gzipped.

use lol_alloc::{AssumeSingleThreaded, FreeListAllocator};

// SAFETY: a module without shared memory has one thread.
#[global_allocator]
static ALLOCATOR: AssumeSingleThreaded<FreeListAllocator> =
    unsafe { AssumeSingleThreaded::new(FreeListAllocator::new()) };
