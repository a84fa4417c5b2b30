//! The real binary in network namespaces: hosts, switches and servers around one gateway.
//!
//! Each test makes a [`lab::Lab`] of its own, so they run in parallel and can't disturb each other
//! or the machine. A namespace lives as long as the process that holds it, and that one ends when
//! the test does, even if it is killed: nothing is left behind. Ordinary users can run the tests
//! where the system allows unprivileged user namespaces.
//!
//! `scripts/test` installs the programs that the tests use.

mod asymmetric;
mod browser;
mod capture;
mod cluster;
mod conversation;
mod frame;
mod lab;
mod pair;
mod services;
mod unit;

mod attack;
mod book;
mod client;
mod compound;
mod config;
mod copies;
mod data_ports;
mod detour;
mod doctor;
mod events;
mod examples;
mod explain;
mod fast_entrance;
mod fast_exit;
mod fast_path;
mod forged;
mod forward;
mod groups;
mod guarantee;
mod handover;
mod health;
mod hidden_hosts;
mod high_volume;
mod history;
mod hostile;
mod interference;
mod ipfix;
mod kernel_errors;
mod lifecycle;
mod limits;
mod link_monitor;
mod links;
mod local_in;
mod meddling;
mod metrics;
mod mtu;
mod multicast;
mod multicast_programs;
mod multicast_reload;
mod must_pass;
mod nat;
mod neighbor;
mod obstacles;
mod offload;
mod one_config;
mod operate;
mod own_address;
mod pcapng;
mod peers;
mod policy;
mod readme;
mod reload;
mod replication;
mod reverse_path;
mod robust;
mod service;
mod sessions;
mod side_by_side;
mod slots;
mod soak;
mod split;
mod strangers;
mod sync_links;
mod takeover;
mod top;
mod upgrade;
mod uplinks;
mod web;
mod web_login;
mod witness;
