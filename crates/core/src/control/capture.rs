//! A capture, as it is fetched: what a line of the answer says, and the answer in pieces.

use std::borrow::Cow;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::capture::{self, Filter, MAX_SNAPSHOT, MIN_SNAPSHOT};
use crate::flow::PortId;
use crate::gateway::Gateway;
use crate::in_quotes::InQuotes;
use crate::time::Time;

use super::{Progress, Refusal};

/// Bytes of answer in a piece, give or take a packet: some 100 µs.
const PIECE: usize = 64 * 1024;

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
    /// At the end: what was seen at a port.
    #[serde(borrow)]
    Statistics(Statistics<'a>),
}

/// What a capture is of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Begin<'a> {
    /// When it began, in nanoseconds since boot, as all times here (`CLOCK_BOOTTIME`).
    pub at: u64,
    /// The name of the node.
    pub node: Cow<'a, str>,
    /// Bytes captured of each packet.
    pub snapshot: u32,
    /// The ports.
    pub ports: Vec<Port<'a>>,
}

/// A port of the gateway.
#[derive(Debug, Serialize, Deserialize)]
pub struct Port<'a> {
    /// Its name.
    pub name: Cow<'a, str>,
    /// The kernel interface.
    pub interface: Cow<'a, str>,
}

/// A packet at one of the ports.
#[derive(Debug, Serialize, Deserialize)]
pub struct Packet<'a> {
    /// When, in nanoseconds since boot.
    pub at: u64,
    /// The same number for a packet as it came in and as it left.
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
    /// Its session.
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

/// What was seen at a port.
#[derive(Debug, Serialize, Deserialize)]
pub struct Statistics<'a> {
    /// When the capture ended, in nanoseconds since boot.
    pub at: u64,
    /// The port.
    pub port: Cow<'a, str>,
    /// Packets that matched the filter.
    pub matched: u64,
    /// Those of them that were lost to the capture, since the client did not keep up.
    pub lost: u64,
}

/// An answer that lasts until the capture ends.
#[derive(Debug)]
pub struct Stream {
    idle: bool,
}

impl Stream {
    pub(super) fn begin(
        gateway: &mut Gateway,
        filter: &[String],
        snapshot: Option<u32>,
        count: Option<u64>,
        now: Time,
        out: &mut String,
    ) -> Result<Stream, Refusal> {
        if let Some(other) = gateway.capture() {
            let (since, total) = (now.since(other.started()).as_secs(), other.total());
            return Err(Refusal::State(format!(
                "another capture runs for {since} s, with {} packets: end it first, there is one at a time",
                total.matched
            )));
        }
        let snapshot = snapshot.unwrap_or(MAX_SNAPSHOT);
        if !(MIN_SNAPSHOT..=MAX_SNAPSHOT).contains(&snapshot) {
            return Err(Refusal::Usage(format!(
                "the snapshot length {snapshot} is not from {MIN_SNAPSHOT} to {MAX_SNAPSHOT}"
            )));
        }
        let options = capture::Options {
            filter: Filter::parse(filter, gateway.config()).map_err(Refusal::Usage)?,
            snapshot,
            count: count.unwrap_or(u64::MAX),
        };
        gateway.start_capture(now, options);
        log::info!("capture begin filter={}", InQuotes(filter.join(" ")));
        write_line(out, &Line::Begin(begin(gateway, snapshot, now)));
        Ok(Stream { idle: false })
    }

    pub fn go_on(&mut self, gateway: &mut Gateway, now: Time, out: &mut String) -> Progress {
        let enough = out.len() + PIECE;
        while out.len() < enough {
            let Some(record) = gateway.capture_mut().and_then(capture::Capture::fetch) else {
                break;
            };
            write_line(out, &Line::Packet(packet(gateway, &record)));
        }
        let Some(capture) = gateway.capture() else {
            return Progress::Done;
        };
        self.idle = capture.is_fetched();
        if !self.idle || capture.is_recording() {
            return Progress::More;
        }
        for (index, port) in capture.statistics().iter().enumerate() {
            let line = Line::Statistics(Statistics {
                at: now.as_nanos(),
                port: gateway.port_name(PortId::from_index(index)).into(),
                matched: port.matched,
                lost: port.lost,
            });
            write_line(out, &line);
        }
        end(gateway);
        Progress::Done
    }

    /// Whether there is nothing to say until there are packets.
    pub fn is_idle(&self) -> bool {
        self.idle
    }
}

/// Ends a capture, whether its client has fetched all of it or not.
pub fn end(gateway: &mut Gateway) {
    if let Some(capture) = gateway.capture() {
        let total = capture.total();
        log::info!("capture end packets={} lost={}", total.matched, total.lost);
    }
    gateway.end_capture();
}

fn begin(gateway: &Gateway, snapshot: u32, now: Time) -> Begin<'_> {
    let config = gateway.config();
    let port = |port: &crate::config::Port| Port {
        name: port.name.clone().into(),
        interface: port.interface.clone().into(),
    };
    Begin {
        at: now.as_nanos(),
        node: config.node.name.as_str().into(),
        snapshot,
        ports: config.ports.iter().map(port).collect(),
    }
}

fn packet<'a>(gateway: &'a Gateway, record: &capture::Record) -> Packet<'a> {
    let facts = &record.facts;
    let port_name = |port: PortId| Cow::from(gateway.port_name(port));
    Packet {
        at: facts.at.as_nanos(),
        id: record.packet,
        port: port_name(record.port),
        outbound: record.outbound,
        in_port: facts.in_port.map(port_name),
        out_port: facts.out_port.map(port_name),
        verdict: facts.fate.name().into(),
        reason: facts.fate.reason().map(|reason| reason.name().into()),
        policy: facts
            .policy
            .map(|policy| gateway.policy_name(policy).into()),
        session: facts.session.map(|session| session.0),
        translated: facts.translated,
        released: facts.released,
        segment: facts.segment_size,
        length: record.length,
        data: STANDARD.encode(&record.bytes).into(),
    }
}

fn write_line(out: &mut String, line: &Line<'_>) {
    // Neither a map with odd keys nor a failing writer is involved, so there is always a text.
    if let Ok(text) = serde_json::to_string(line) {
        let _ = writeln!(out, "{text}");
    }
}
