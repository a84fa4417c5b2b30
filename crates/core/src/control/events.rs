//! Past events, and new ones as they happen.

use crate::gateway::{Gateway, Severity, Stage};

use super::protocol::{Event, EventSeverity, EventState, write_line};
use super::status::since_1970;
use super::{Progress, ShellView};

/// Events per piece.
const PIECE: usize = 64;

/// The rest of the events, and future ones if the client follows.
#[derive(Debug)]
pub struct Events {
    /// The number of the last event that was sent.
    after: u64,
    follow: bool,
    idle: bool,
}

impl Events {
    /// Starts with the event after `after` of that run; for another run, with the oldest kept.
    pub fn begin(
        gateway: &Gateway,
        (after, run): (Option<u64>, Option<&str>),
        follow: bool,
    ) -> Events {
        let is_same = run.is_none_or(|run| run == run_text(gateway));
        let after = match after {
            Some(after) if is_same => after.min(gateway.events().last()),
            _ => 0,
        };
        Events {
            after,
            follow,
            idle: false,
        }
    }

    pub fn go_on(&mut self, gateway: &Gateway, shell: &ShellView, out: &mut String) -> Progress {
        for _ in 0..PIECE {
            let Some(event) = gateway.events().after(self.after) else {
                self.idle = true;
                return match self.follow {
                    true => Progress::More,
                    false => Progress::Done,
                };
            };
            // Some are missing only if the reader was away for too long.
            let missed = event.sequence - self.after - 1;
            self.after = event.sequence;
            let line = Event {
                run: run_text(gateway),
                sequence: event.sequence,
                missed,
                at: since_1970(shell, event.at),
                id: event.id.to_owned(),
                state: match event.stage {
                    Stage::Once => None,
                    Stage::Begin => Some(EventState::Begin),
                    Stage::End => Some(EventState::End),
                },
                severity: match event.severity {
                    None => EventSeverity::Info,
                    Some(Severity::Warning) => EventSeverity::Warning,
                    Some(Severity::Critical) => EventSeverity::Critical,
                },
                node: gateway.config().node.name.clone(),
                group: event.subject.group.clone(),
                peer: event.subject.peer.clone(),
                port: event.subject.port.clone(),
                what: event.what.clone(),
                why: Some(event.why.clone()).filter(|why| !why.is_empty()),
            };
            write_line(out, &line);
        }
        self.idle = false;
        Progress::More
    }

    /// Whether it waits for an event.
    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// Whether an event has occurred since.
    pub fn has_news(&self, gateway: &Gateway) -> bool {
        !self.follow || gateway.events().last() != self.after
    }

    /// The client wants no more events.
    pub fn finish(&mut self) {
        self.follow = false;
    }
}

fn run_text(gateway: &Gateway) -> String {
    format!("{:016x}", gateway.events().run())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::event::LinkState;
    use crate::flow::PortId;
    use crate::gateway::Seed;
    use crate::time::Time;

    fn gateway() -> Gateway {
        let config = "[node]\nname = \"a\"\n[[port]]\nname = \"lan\"\ninterface = \"eth0\"\n";
        let (config, _) = crate::config::parse(Path::new("a.toml"), config).unwrap();
        Gateway::new(config, Seed([7; 32]), Time::ZERO)
    }

    /// The port goes up and down this often: one event each.
    fn flap(gateway: &mut Gateway, times: usize) {
        for up in [true, false].into_iter().cycle().take(times) {
            let link = LinkState {
                up,
                mtu: 1500,
                mac: [2; 6],
            };
            gateway.handle_link(Time::ZERO, PortId(0), link);
        }
    }

    fn read(gateway: &Gateway, after: (Option<u64>, Option<&str>)) -> Vec<Event> {
        let (mut events, mut out) = (Events::begin(gateway, after, false), String::new());
        while matches!(
            events.go_on(gateway, &ShellView::default(), &mut out),
            Progress::More
        ) {}
        let parse = |line| serde_json::from_str(line).unwrap();
        out.lines().map(parse).collect()
    }

    #[test]
    fn a_reader_goes_on_in_the_same_run_only() {
        let mut gateway = gateway();
        flap(&mut gateway, 5);
        let all = read(&gateway, (None, None));
        assert!(all.len() >= 4, "{all:?}");
        for (event, number) in all.iter().zip(1..) {
            assert_eq!((event.sequence, event.missed), (number, 0));
        }
        let run = all[0].run.clone();
        assert_eq!(read(&gateway, (Some(2), Some(&run))), all[2..]);
        assert_eq!(read(&gateway, (Some(999), Some(&run))), []);
        assert_eq!(read(&gateway, (Some(2), Some("another"))), all);
    }

    #[test]
    fn a_reader_that_was_away_for_long_is_told_what_it_missed() {
        let mut gateway = gateway();
        flap(&mut gateway, 3000);
        let all = read(&gateway, (Some(1), None));
        let missed: Vec<u64> = all.iter().map(|event| event.missed).collect();
        assert!(missed[0] > 1000, "{}", missed[0]);
        assert_eq!(all[0].sequence, 1 + missed[0] + 1);
        assert!(missed[1..].iter().all(|missed| *missed == 0));
    }
}
