//! The allocator's part of the promise that memory does not grow: one arena for all threads.
//!
//! glibc gives threads arenas of their own, up to eight for each core, and what threads that come and go leave in them is
//! not given back. Measured over 200,000 small bundles that was 50-150 bytes for each; with one arena it is nothing, at
//! the same speed.
//!
//! Blocks of [`LARGE`] and more, which are frames and lists of the longest manifests, are the system's and go back to it when
//! they are freed. Left to itself glibc takes the first of them that is freed for a sign that there will be more, keeps
//! blocks of up to twice that size, and they lie between others.

#![allow(unsafe_code)] // mallopt

/// Above the leaves of files, which come and go by the thousand.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 4 << 20;

/// To be called before the first thread is started. Does nothing where the C library is not glibc.
pub(crate) fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets numbers inside the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}
