//! The core as a whole, through its public interface only, under virtual time.

mod lab;
mod packets;
mod sessions;
