//! A stream to three hosts whose gateway ends.

use std::path::Path;
use std::time::Duration;

use crate::pair::{Event, Kind, Pair, Settings};
use crate::takeover::Echo;
use crate::workers::monotonic;
use crate::{Figure, Options, Target};
use testkit::system::worker::{Result, Worker};

const GROUP: &str = "239.1.1.1";
const HOSTS: usize = 3;
/// Of the stream; what happens does so half a second after the other unit knows of it.
const SECONDS: &str = "3";

const POLICY: &str = r#"
[[multicast-policy]]
name = "stream"
from = ["wan"]
to = ["lan"]
group = ["239.1.1.0/24"]
action = "accept"
"#;

/// The longest time without a datagram at any of the hosts, and what came twice.
pub fn gaps(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (event, name, target) in [
        (Event::Power, "loses power", Target::AtMost(5.0)),
        (Event::Kill, "is killed", Target::None),
        (Event::Handover, "hands over", Target::None),
    ] {
        let what = format!("1 kHz to {HOSTS} members, primary {name}");
        let mut gap = Figure::new(format!("{what}: longest gap"), "ms", target);
        // What is under way at a handover may be sent on by both.
        let most = if event == Event::Handover {
            Target::None
        } else {
            Target::AtMost(0.0)
        };
        let mut twice = Figure::new(format!("{what}: came twice"), "", most);
        for _ in 0..options.runs {
            let (longest, again) = one_run(event, folder)?;
            gap.add(Kind::Tandemgw, longest);
            twice.add(Kind::Tandemgw, again as f64);
        }
        figures.extend([gap, twice]);
    }
    Ok(figures)
}

fn one_run(event: Event, folder: &Path) -> Result<(f64, usize)> {
    let settings = Settings {
        more: POLICY,
        ..Settings::quick(Kind::Tandemgw)
    };
    let mut pair = Pair::new(settings, folder)?;
    let hosts = (0..HOSTS).map(|number| pair.host(number));
    let hosts = hosts.collect::<Result<Vec<_>>>()?;
    let receivers = hosts.iter().enumerate().map(|(number, host)| {
        let own = format!("10.77.1.{}", 110 + number);
        let mut receiver = host.worker(&["member", GROUP, &own], None)?;
        receiver.line()?;
        Ok(receiver)
    });
    let mut receivers: Vec<Worker> = receivers.collect::<Result<Vec<_>>>()?;
    let mut sender = pair.server.worker(&["to-many", GROUP, SECONDS], None)?;
    sender.line()?;
    pair.wait("the other unit to know the stream", |pair| {
        pair.has_stream(1)
    })?;
    std::thread::sleep(Duration::from_millis(500));
    let at = monotonic();
    pair.fire(event)?;
    let end = sender.result("end")?;
    let (mut longest, mut again) = (0.0f64, 0);
    for receiver in &mut receivers {
        receiver.tell("end")?;
        let mut seen = Echo::parse(&receiver.json()?)?;
        let last = seen.received.last().map_or(0.0, |(_, at)| *at);
        // A stream that never goes on is not a gap of zero.
        let silence = (end - last).max(0.0) * 1e3;
        longest = longest.max(seen.longest_gap(at, f64::MAX)).max(silence);
        let count = seen.received.len();
        seen.received.sort_unstable_by_key(|(number, _)| *number);
        seen.received.dedup_by_key(|(number, _)| *number);
        again += count - seen.received.len();
    }
    Ok((longest, again))
}
