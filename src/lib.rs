//! A stateful gateway for Linux whose sessions survive the death of the machine that carries them.

pub mod config;
pub mod event;
pub mod flow;
pub mod identity;
pub mod os;
pub mod time;
