//! `tandemgw ipfix`: sessions that begin and end, to a collector. It can hold nothing but this
//! process.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tandemgw::os::collector::{self, Encode, Message, Queue};
use tandemgw::os::{clock, hook};
use tandemgw_core::control::protocol::{Endpoint, Request, SessionEvent};
use tandemgw_core::flow::{Addr, Family, Protocol};
use tandemgw_core::time::Time;

mod message;

use message::{Encoder, End, Record};

use super::client::{Client, ClientError, PATIENCE, parse};
use super::{EXIT_USAGE, fail, say};

/// Between two attempts to reach a gateway that has ended.
const RETRY: Duration = Duration::from_secs(1);

/// Between two lines about what was lost.
const SAY_EACH: Duration = Duration::from_secs(10);

/// Reasons of RFC 5102, section 5.11.3.
const IDLE_TIMEOUT: u8 = 1;
const END_OF_FLOW: u8 = 3;
const FORCED_END: u8 = 4;
const LACK_OF_RESOURCES: u8 = 5;

/// In IPv6 packets; the gateway has one number for both families.
const ICMPV6: u8 = 58;

impl Encode for Encoder {
    type Item = Record;

    fn add(&mut self, record: Record) -> Option<Message> {
        Encoder::add(self, &record, now_s())
    }

    fn take(&mut self) -> Option<Message> {
        Encoder::take(self, now_s())
    }

    fn repeat(&mut self, sent: u64, lost: u64) -> Message {
        self.templates((sent, lost), now_s())
    }
}

/// Seconds since 1970.
fn now_s() -> u32 {
    clock::since_1970(clock::now()).as_secs() as u32
}

pub fn ipfix(socket: Option<&Path>, collector: &str, domain: u32) -> ExitCode {
    let queue = match collector::start(collector, Encoder::new(domain)) {
        Ok(queue) => queue,
        Err(error) => return fail(EXIT_USAGE, format!("--collector {collector}: {error}")),
    };
    let mut losses = Losses::default();
    let mut path = socket.map(Path::to_owned);
    let mut has_been_there = false;
    loop {
        let asked = Client::connect(path.as_deref(), PATIENCE).and_then(|mut client| {
            // The same one again, whatever else is started meanwhile.
            path = Some(client.path().to_owned());
            has_been_there = true;
            client.ask(&Request::SessionEvents, |line| {
                let event: SessionEvent<'_> = parse(line)?;
                queue.note_lost(event.missed);
                queue.offer(record(&event));
                losses.tell(&queue);
                Ok(())
            })
        });
        match asked {
            Ok(()) => {}
            Err(ClientError::NotRunning(_) | ClientError::Failed(_)) if has_been_there => {}
            Err(error) => return fail(error.code(), error),
        }
        losses.tell(&queue);
        hook::pause(RETRY);
    }
}

/// What was said about losses.
#[derive(Default)]
struct Losses {
    told: u64,
    due: Time,
}

impl Losses {
    fn tell(&mut self, queue: &Queue<Record>) {
        let lost = queue.lost();
        let now = clock::now();
        if lost > self.told && now >= self.due {
            let new = lost - self.told;
            say(format_args!(
                "tandemgw: {new} records are lost, {lost} in all: the collector or this process is too slow, \
                 or nobody listens there\n"
            ));
            (self.told, self.due) = (lost, now + SAY_EACH);
        }
    }
}

fn ip(addr: Addr) -> IpAddr {
    Ipv6Addr::from(*addr.octets()).to_canonical()
}

/// The ends of a flow. The identifier of ICMP stands in the place of the source port (RFC 8158,
/// section 5.6): collectors take the other one for type and code.
fn ends(protocol: Protocol, (src, dst): (&Endpoint, &Endpoint)) -> (End, End) {
    let (from, to) = (src.port.unwrap_or(0), dst.port.unwrap_or(0));
    match protocol {
        Protocol::ICMP => ((ip(src.addr), from.max(to)), (ip(dst.addr), 0)),
        _ => ((ip(src.addr), from), (ip(dst.addr), to)),
    }
}

fn record(event: &SessionEvent<'_>) -> Record {
    let session = &event.session;
    let at = (event.at * 1000.0) as u64;
    let both = |total: u64, back: u64| [total.saturating_sub(back), back];
    Record {
        at,
        begun: at.saturating_sub(session.age_s * 1000),
        end: event.end.as_deref().map(|why| match why {
            "expired" => IDLE_TIMEOUT,
            "replaced" => END_OF_FLOW,
            "early-drop" => LACK_OF_RESOURCES,
            _ => FORCED_END,
        }),
        protocol: match session.src.addr.family() {
            Family::V6 if session.proto == Protocol::ICMP => ICMPV6,
            _ => session.proto.0,
        },
        original: ends(session.proto, (&session.src, &session.dst)),
        translated: ends(session.proto, (&session.nat_src, &session.nat_dst)),
        packets: both(session.packets, event.packets_back),
        bytes: both(session.bytes, event.bytes_back),
    }
}
