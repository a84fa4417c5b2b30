//! The words of a filter, `key=value` each, which listings and captures have in common.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Config, did_you_mean};
use crate::flow::Protocol;

/// Words that a filter can have: each is compared with each session, or packet.
pub const MAX_FILTER: usize = 32;

/// The words, unless they are too many.
pub(crate) fn limited(words: &[String]) -> Result<&[String], String> {
    match words.len() {
        0..=MAX_FILTER => Ok(words),
        count => Err(format!(
            "a filter has at most {MAX_FILTER} words, not {count}"
        )),
    }
}

/// The key and the value of a word.
pub(crate) fn split(word: &str) -> Result<(&str, &str), String> {
    word.split_once('=')
        .ok_or_else(|| format!("filter `{word}` is not of the form key=value, as in proto=tcp"))
}

/// A protocol by name or number.
pub(crate) fn protocol(value: &str) -> Result<Protocol, String> {
    let names = ["tcp", "udp", "icmp", "a number from 0 to 255"];
    let protocol = value.parse();
    protocol.map_err(|_| unknown("protocol", value, names.into_iter()))
}

/// A network, or a host as one.
pub(crate) fn network(value: &str) -> Result<IpNet, String> {
    let host = || value.parse::<IpAddr>().map(IpNet::from);
    let net = value.parse().or_else(|_| host());
    net.map_err(|_| format!("`{value}` is no address or network, such as 10.0.0.0/8"))
}

/// The number of a port.
pub(crate) fn port(value: &str) -> Result<u16, String> {
    let number = value.parse();
    number.map_err(|_| format!("`{value}` is no port (0 to 65535)"))
}

/// The name of a port, if there is one of that name.
pub(crate) fn known_port<'a>(value: &str, config: &'a Config) -> Result<&'a str, String> {
    let names = config.ports.iter().map(|port| port.name.as_str());
    known("port", value, names)
}

/// A name, if it is one of `names`.
pub(crate) fn known<'a>(
    kind: &str,
    value: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Result<&'a str, String> {
    let found = names.clone().find(|name| *name == value);
    found.ok_or_else(|| unknown(kind, value, names))
}

/// "unknown port `lna`; did you mean `lan`?", or all of the names, if none is close.
pub(crate) fn unknown<'a>(kind: &str, value: &str, names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 10;
    let names: Vec<&str> = names.collect();
    let hint = did_you_mean(value, names.iter().copied());
    let hint = hint.unwrap_or_else(|| match names.len() {
        0 => format!("there is no {kind} at all"),
        1..=SHOWN => format!("known: {}", names.join(", ")),
        more => format!(
            "known: {} and {} more",
            names[..SHOWN].join(", "),
            more - SHOWN
        ),
    });
    format!("unknown {kind} `{value}`; {hint}")
}
