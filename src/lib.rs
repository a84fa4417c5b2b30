//! A stateful gateway for Linux whose sessions survive the death of the machine that carries them.

pub mod config;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod nat;
pub mod policy;
pub mod route;
pub mod session;
pub mod time;
