//! A capture in the terms of the protocol: each line of the answer is a [`Line`].

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line<'a> {
    /// The first one.
    #[serde(borrow)]
    Begin(Begin<'a>),
    /// A packet at one of the ports.
    #[serde(borrow)]
    Packet(Packet<'a>),
    /// At the end: the packet counts of a port.
    #[serde(borrow)]
    Statistics(Statistics<'a>),
}

/// The setup of a capture.
#[derive(Debug, Serialize, Deserialize)]
pub struct Begin<'a> {
    /// When it began, in nanoseconds since boot, like all times here (`CLOCK_BOOTTIME`).
    pub at: u64,
    /// The name of the node.
    pub node: Cow<'a, str>,
    /// Bytes captured of each packet.
    pub snapshot: u32,
    /// The ports that it watches.
    pub ports: Vec<Port<'a>>,
}

/// A port of the gateway.
#[derive(Debug, Serialize, Deserialize)]
pub struct Port<'a> {
    /// `name` of the `[[port]]`.
    pub name: Cow<'a, str>,
    /// The kernel interface.
    pub interface: Cow<'a, str>,
}

/// A packet at one of the ports.
#[derive(Debug, Serialize, Deserialize)]
pub struct Packet<'a> {
    /// When, in nanoseconds since boot.
    pub at: u64,
    /// The same for both copies of a packet, as it came in and as it left.
    pub id: u64,
    /// The port where it was seen.
    pub port: Cow<'a, str>,
    /// As it left, rather than as it came in.
    pub outbound: bool,
    /// The port that it came in by; none if the gateway made it.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub in_port: Option<Cow<'a, str>>,
    /// The port that it left by, or would have.
    #[serde(rename = "out", skip_serializing_if = "Option::is_none")]
    pub out_port: Option<Cow<'a, str>>,
    /// `forward`, `drop`, `consumed` or `answer`.
    pub verdict: Cow<'a, str>,
    /// Why it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    /// The policy that accepted its session, or refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Cow<'a, str>>,
    /// The slot of its session, as `sessions` shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u32>,
    /// Whether the session translates it.
    pub translated: bool,
    /// Whether it had waited.
    pub released: bool,
    /// Payload bytes of each segment of a super-packet; 0 for an ordinary packet.
    pub segment: u16,
    /// Its length in bytes.
    pub length: u32,
    /// The packet from its IP header on, or the beginning of it, in base64.
    pub data: Cow<'a, str>,
}

/// Packet counts of a port.
#[derive(Debug, Serialize, Deserialize)]
pub struct Statistics<'a> {
    /// When the capture ended, in nanoseconds since boot.
    pub at: u64,
    /// `name` of the `[[port]]`.
    pub port: Cow<'a, str>,
    /// Packets that matched the filter.
    pub matched: u64,
    /// Those of them that were lost to the capture, because the client did not keep up.
    pub lost: u64,
}
