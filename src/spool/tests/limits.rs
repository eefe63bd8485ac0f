//! Room, modes and long paths.
