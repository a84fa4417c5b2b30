//! A stateful gateway for Linux whose sessions survive the death of the machine that carries them.

pub mod config;
pub mod control;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod gateway;
pub mod nat;
pub mod os;
pub mod packet;
pub mod policy;
pub mod route;
pub mod session;
pub mod sync;
pub mod time;
