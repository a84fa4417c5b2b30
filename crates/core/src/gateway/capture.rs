//! Packets while an administrator captures them: copies are taken before and after the usual
//! handling.

use crate::capture::{Capture, CapturedFate, Facts, Options, Sight};
use crate::event::{DropReason, Offload, Verdict};
use crate::flow::{Direction, FlowKey, PolicyId, PortId};
use crate::packet::{self, Parsed};
use crate::session::SessionId;
use crate::time::Time;

use super::Gateway;

/// Facts about a packet before it is handled.
struct Arrival {
    now: Time,
    port: PortId,
    offload: Offload,
    length: usize,
    parsed: Option<Parsed>,
    /// The key under which its session would be found.
    flow: Option<FlowKey>,
}

/// Facts about the session of a packet.
struct Known {
    id: SessionId,
    policy: PolicyId,
    out_port: PortId,
    translated: bool,
}

impl Gateway {
    /// Starts to capture the packets of [`Gateway::handle_captured_packet`]. Only one capture runs
    /// at a time: an earlier one ends.
    pub fn start_capture(&mut self, now: Time, options: Options) {
        // It sees all packets from here on.
        self.fast_path.stop_all();
        let capture = Capture::new(options, self.rules.config().ports.len(), now);
        self.capture = Some(Box::new(capture));
    }

    /// Ends the capture, and discards the copies that were not fetched.
    pub fn end_capture(&mut self) {
        self.capture = None;
    }

    /// The capture in progress.
    pub fn capture(&self) -> Option<&Capture> {
        self.capture.as_deref()
    }

    /// The same, to fetch from it.
    pub fn capture_mut(&mut self) -> Option<&mut Capture> {
        self.capture.as_deref_mut()
    }

    /// Whether packets should go through [`Gateway::handle_captured_packet`] now.
    pub fn is_capturing(&self) -> bool {
        self.capture
            .as_ref()
            .is_some_and(|capture| capture.is_recording())
    }

    /// As [`Gateway::handle_packet`], with a copy of the packet for the capture as it came in, and
    /// as it left.
    ///
    /// The shell calls [`Gateway::is_capturing`] once a batch and then this function, so that
    /// packets pay nothing while no capture runs.
    pub fn handle_captured_packet(
        &mut self,
        now: Time,
        port: PortId,
        bytes: &mut [u8],
        offload: Offload,
    ) -> Verdict {
        let Some(capture) = &mut self.capture else {
            return self.handle_packet(now, port, bytes, offload);
        };
        let (place, copy) = (capture.place(), capture.copy(bytes));
        let arrival = self.arrival(now, port, bytes, offload);
        let verdict = self.handle_packet(now, port, bytes, offload);
        self.capture_handled(&arrival, verdict, place, copy, bytes);
        verdict
    }

    fn arrival(&self, now: Time, port: PortId, bytes: &[u8], offload: Offload) -> Arrival {
        let parsed = packet::parse(bytes, offload).ok();
        let parsed_flow = |parsed| self.flow_of(bytes, parsed, port);
        let flow = parsed.as_ref().and_then(parsed_flow);
        Arrival {
            now,
            port,
            offload,
            length: bytes.len(),
            parsed,
            flow,
        }
    }

    fn capture_handled(
        &mut self,
        arrival: &Arrival,
        verdict: Verdict,
        place: usize,
        mut before: Vec<u8>,
        after: &mut [u8],
    ) {
        let facts = self.facts(arrival, verdict, after);
        let Some(capture) = &mut self.capture else {
            return;
        };
        if !capture.wants(&facts, self.rules.config(), self.rules.ruleset()) {
            return capture.take_back(before);
        }
        let incoming = |bytes| Sight {
            port: arrival.port,
            outbound: false,
            bytes,
            length: arrival.length,
        };
        complete(&mut before, arrival);
        match facts.out_port.filter(|_| verdict == Verdict::Forward) {
            None => capture.record(facts, place, &[incoming(&before)]),
            Some(port) => {
                let mut after = capture.copy(after);
                complete(&mut after, arrival);
                let left = Sight {
                    port,
                    outbound: true,
                    bytes: &after,
                    length: arrival.length,
                };
                capture.record(facts, place, &[incoming(&before), left]);
            }
        }
        capture.take_back(before);
    }

    fn facts(&self, arrival: &Arrival, verdict: Verdict, after: &[u8]) -> Facts {
        let known = arrival.flow.and_then(|flow| self.known(&flow));
        let refused = match verdict {
            Verdict::Drop(DropReason::PolicyDrop | DropReason::PolicyReject) => arrival
                .flow
                .and_then(|flow| self.policy_for(arrival.port, &flow)),
            _ => None,
        };
        let after = Some(after)
            .filter(|_| verdict == Verdict::Forward)
            .and_then(|bytes| packet::parse(bytes, arrival.offload).ok());
        Facts {
            in_port: Some(arrival.port),
            before: arrival.parsed.map(|parsed| parsed.key),
            after: after.map(|parsed| parsed.key),
            policy: known.as_ref().map(|known| known.policy).or(refused),
            segment_size: arrival.offload.segment_size,
            ..facts(arrival.now, verdict.into(), known.as_ref())
        }
    }

    fn known(&self, flow: &FlowKey) -> Option<Known> {
        let (id, direction) = self.sessions.lookup(flow)?;
        let session = self.sessions.get(id)?;
        let original = Direction::Original;
        Some(Known {
            id,
            policy: session.policy,
            out_port: session.ports(direction).1,
            translated: session.translated(original, self.sessions.book())
                != session.key(original, self.sessions.book()),
        })
    }

    /// Captures a packet of the flow `flow` that had waited, as it leaves.
    pub(super) fn capture_released(&mut self, now: Time, flow: &FlowKey, bytes: &[u8]) {
        if !self.is_capturing() {
            return;
        }
        let Some(known) = self.known(flow) else {
            return;
        };
        let facts = Facts {
            released: true,
            before: Some(*flow),
            ..facts(now, CapturedFate::Forward, Some(&known))
        };
        self.capture_sent(facts, known.out_port, bytes);
    }

    /// Captures a packet to many as it came in; it leaves by `judged` first, or not.
    #[cold]
    pub(super) fn capture_stream(
        &mut self,
        now: Time,
        port: PortId,
        (bytes, offload): (&[u8], Offload),
        judged: Result<Option<PortId>, DropReason>,
    ) {
        let verdict = match judged {
            Ok(_) => Verdict::Forward,
            Err(reason) => Verdict::Drop(reason),
        };
        let arrival = Arrival {
            now,
            port,
            offload,
            length: bytes.len(),
            parsed: packet::parse(bytes, offload).ok(),
            flow: None,
        };
        let facts = Facts {
            in_port: Some(port),
            out_port: judged.ok().flatten(),
            before: arrival.parsed.map(|parsed| parsed.key),
            segment_size: offload.segment_size,
            ..facts(now, verdict.into(), None)
        };
        let Some(capture) = &mut self.capture else {
            return;
        };
        if capture.wants(&facts, self.rules.config(), self.rules.ruleset()) {
            let mut copy = capture.copy(bytes);
            complete(&mut copy, &arrival);
            let sight = Sight {
                port,
                outbound: false,
                bytes: &copy,
                length: bytes.len(),
            };
            capture.record(facts, capture.place(), &[sight]);
            capture.take_back(copy);
        }
    }

    /// Captures a copy of a packet to many as it leaves.
    pub(super) fn capture_copy(
        &mut self,
        now: Time,
        port: PortId,
        (before, translated): (FlowKey, bool),
        bytes: &[u8],
    ) {
        let facts = Facts {
            before: Some(before),
            out_port: Some(port),
            translated,
            ..facts(now, CapturedFate::Forward, None)
        };
        self.capture_sent(facts, port, bytes);
    }

    /// Captures a packet that the gateway has made.
    pub(super) fn capture_answer(&mut self, now: Time, port: PortId, bytes: &[u8]) {
        if self.is_capturing() {
            let facts = Facts {
                out_port: Some(port),
                ..facts(now, CapturedFate::Answer, None)
            };
            self.capture_sent(facts, port, bytes);
        }
    }

    #[cold]
    fn capture_sent(&mut self, mut facts: Facts, port: PortId, bytes: &[u8]) {
        let after = packet::parse(bytes, Offload::default()).ok();
        facts.after = after.map(|parsed| parsed.key);
        let Some(capture) = &mut self.capture else {
            return;
        };
        if capture.wants(&facts, self.rules.config(), self.rules.ruleset()) {
            let sight = Sight {
                port,
                outbound: true,
                bytes,
                length: bytes.len(),
            };
            capture.record(facts, capture.place(), &[sight]);
        }
    }
}

fn facts(at: Time, fate: CapturedFate, known: Option<&Known>) -> Facts {
    Facts {
        at,
        in_port: None,
        out_port: known.map(|known| known.out_port),
        fate,
        session: known.map(|known| known.id),
        policy: known.map(|known| known.policy),
        before: None,
        after: None,
        translated: known.is_some_and(|known| known.translated),
        released: false,
        segment_size: 0,
    }
}

/// Completes the checksum that was left to the hardware, unless part of the covered data is
/// missing.
fn complete(copy: &mut [u8], arrival: &Arrival) {
    if let Some(parsed) = arrival.parsed.filter(|_| copy.len() == arrival.length) {
        packet::complete_checksum(copy, &parsed, arrival.offload);
    }
}
