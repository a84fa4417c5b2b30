//! Filter words, `key=value` each, for listings and captures.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Config, did_you_mean};
use crate::flow::Protocol;

/// Maximum number of words: each is compared with each session or packet.
pub(crate) const MAX_FILTER: usize = 32;

/// A mistake in a word that an administrator typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WordError {
    /// More than [`MAX_FILTER`] words; how many.
    TooMany(usize),
    /// The word has no `=`.
    NoEqualsSign(String),
    /// A name that does not exist.
    Unknown {
        /// The expected kind of name, such as `port`.
        what: &'static str,
        /// As it was typed.
        value: String,
        /// The nearest existing name, or some of them.
        hint: String,
    },
    /// Neither an address nor a network.
    NotNetwork(String),
    /// Not the number of a port.
    NotPort(String),
    /// Neither `yes` nor `no`.
    NotYesOrNo(String),
    /// The value after `id`, which is not the number of a slot.
    NotSessionId(String),
    /// A capture cannot see packets that are dropped for this reason.
    UnseenReason,
    /// In this word of a filter.
    In(String, Box<WordError>),
}

impl fmt::Display for WordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WordError::TooMany(count) => {
                write!(f, "a filter has at most {MAX_FILTER} words, not {count}")
            }
            WordError::NoEqualsSign(word) => write!(
                f,
                "filter `{word}` is not of the form key=value, as in proto=tcp"
            ),
            WordError::Unknown { what, value, hint } => {
                write!(f, "unknown {what} `{value}`; {hint}")
            }
            WordError::NotNetwork(value) => {
                write!(
                    f,
                    "`{value}` is not an address or network, such as 10.0.0.0/8"
                )
            }
            WordError::NotPort(value) => write!(f, "`{value}` is not a port (0 to 65535)"),
            WordError::NotYesOrNo(value) => write!(f, "expected yes or no, not `{value}`"),
            WordError::NotSessionId(value) => write!(f, "`{value}` is not a session id"),
            WordError::UnseenReason => f.write_str(
                "a capture sees packets before they are written, as `forward`: \
                 only the counter tells of this reason",
            ),
            WordError::In(word, error) => write!(f, "filter `{word}`: {error}"),
        }
    }
}

impl Error for WordError {}

/// The words, if they are not too many.
pub(crate) fn limited(words: &[String]) -> Result<&[String], WordError> {
    match words.len() {
        0..=MAX_FILTER => Ok(words),
        count => Err(WordError::TooMany(count)),
    }
}

/// The key and the value of a word.
pub(crate) fn split(word: &str) -> Result<(&str, &str), WordError> {
    word.split_once('=')
        .ok_or_else(|| WordError::NoEqualsSign(word.to_owned()))
}

/// A protocol by name or number.
pub(crate) fn protocol(value: &str) -> Result<Protocol, WordError> {
    let names = ["tcp", "udp", "icmp", "a number from 0 to 255"];
    let protocol = value.parse();
    protocol.map_err(|_| unknown("protocol", value, names.into_iter()))
}

/// A network, or a host as a network of one address.
pub(crate) fn network(value: &str) -> Result<IpNet, WordError> {
    let host = || value.parse::<IpAddr>().map(IpNet::from);
    let net = value.parse().or_else(|_| host());
    net.map_err(|_| WordError::NotNetwork(value.to_owned()))
}

/// The number of a port.
pub(crate) fn port(value: &str) -> Result<u16, WordError> {
    let number = value.parse();
    number.map_err(|_| WordError::NotPort(value.to_owned()))
}

/// The name of a port, if there is one of that name.
pub(crate) fn known_port<'a>(value: &str, config: &'a Config) -> Result<&'a str, WordError> {
    let names = config.ports.iter().map(|port| port.name.as_str());
    known("port", value, names)
}

/// A name, if it is one of `names`.
pub(crate) fn known<'a>(
    what: &'static str,
    value: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Result<&'a str, WordError> {
    let found = names.clone().find(|name| *name == value);
    found.ok_or_else(|| unknown(what, value, names))
}

/// "unknown port `lna`; did you mean `lan`?", or all names, if none is close.
pub(crate) fn unknown<'a>(
    what: &'static str,
    value: &str,
    names: impl Iterator<Item = &'a str>,
) -> WordError {
    const SHOWN: usize = 10;
    let names: Vec<&str> = names.collect();
    let hint = did_you_mean(value, names.iter().copied());
    let hint = hint.unwrap_or_else(|| match names.len() {
        0 => format!("there is no {what} at all"),
        1..=SHOWN => format!("known: {}", names.join(", ")),
        more => format!(
            "known: {} and {} more",
            names[..SHOWN].join(", "),
            more - SHOWN
        ),
    });
    WordError::Unknown {
        what,
        value: value.to_owned(),
        hint,
    }
}
