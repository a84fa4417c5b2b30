//! The core as a whole, through its public interface only, under virtual time.

mod fragments;
mod icmp_errors;
mod lab;
mod neighbors;
mod packets;
mod random;
mod refusals;
mod routes;
mod sessions;
