//! Answers a capture request, in pieces.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::capture::{self, Filter, MAX_SNAPSHOT, MIN_SNAPSHOT};
use crate::flow::PortId;
use crate::gateway::Gateway;
use crate::in_quotes::InQuotes;
use crate::time::Time;

use super::protocol::capture::{Begin, Line, Packet, Port, Statistics};
use super::protocol::{ErrorCode, Failure, write_line};
use super::{Progress, bad_request};

/// Bytes of answer per piece, plus or minus one packet: some 100 µs.
const PIECE: usize = 64 * 1024;

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
    ) -> Result<Stream, Failure> {
        if let Some(other) = gateway.capture() {
            let (since, total) = (now.since(other.started()).as_secs(), other.total());
            return Err(Failure::new(
                ErrorCode::Busy,
                format!(
                    "another capture has run for {since} s and has {} packets: \
                     end it first, there is one at a time",
                    total.matched
                ),
            ));
        }
        let snapshot = snapshot.unwrap_or(MAX_SNAPSHOT);
        if !(MIN_SNAPSHOT..=MAX_SNAPSHOT).contains(&snapshot) {
            return Err(bad_request(format!(
                "the snapshot length {snapshot} is not from {MIN_SNAPSHOT} to {MAX_SNAPSHOT}"
            )));
        }
        let options = capture::Options {
            filter: Filter::parse(filter, gateway.config()).map_err(bad_request)?,
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

    /// Whether it can send nothing until packets arrive.
    pub fn is_idle(&self) -> bool {
        self.idle
    }
}

/// Ends a capture, whether or not its client has fetched everything.
pub(super) fn end(gateway: &mut Gateway) {
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
