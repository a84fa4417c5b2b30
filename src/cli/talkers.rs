//! `tandemgw sessions --top N --by WHAT`: who has the most traffic.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use tandemgw_core::control::protocol::{Request, Session};

use super::args::Talker;
use super::client::parse;
use super::policies::finish;
use super::query::ask_lines;
use super::say;
use super::table::{Table, bytes, count};

/// The sum over the sessions of one source, destination, policy or service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// The source, destination, policy or service.
    pub name: String,
    /// Its sessions.
    pub sessions: u64,
    /// Their packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Sessions summed by one key.
pub struct Sums {
    by: Talker,
    sums: HashMap<String, Sum>,
}

impl Sums {
    pub fn new(by: Talker) -> Sums {
        Sums {
            by,
            sums: HashMap::new(),
        }
    }

    pub fn add(&mut self, session: &Session<'_>) {
        let name = match self.by {
            Talker::Source => session.src.addr.to_string(),
            Talker::Destination => session.dst.addr.to_string(),
            Talker::Policy => session.policy.to_string(),
            Talker::Service => match session.dst.port {
                Some(port) => format!("{}/{port}", session.proto),
                None => session.proto.to_string(),
            },
        };
        let sum = self.sums.entry(name).or_insert_with_key(|name| Sum {
            name: name.clone(),
            sessions: 0,
            packets: 0,
            bytes: 0,
        });
        sum.sessions += 1;
        sum.packets += session.packets;
        sum.bytes += session.bytes;
    }

    /// How many sources, destinations, policies or services there are.
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    /// Those with the most bytes, largest first; and the total number.
    pub fn largest(self, count: usize) -> (Vec<Sum>, usize) {
        let all = self.sums.len();
        let mut sums: Vec<Sum> = self.sums.into_values().collect();
        sums.sort_by(|a, b| {
            let key = |sum: &Sum| {
                (
                    std::cmp::Reverse(sum.bytes),
                    std::cmp::Reverse(sum.sessions),
                )
            };
            key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
        });
        sums.truncate(count);
        (sums, all)
    }
}

pub fn show(
    socket: Option<&Path>,
    json: bool,
    top: usize,
    by: Talker,
    filter: Vec<String>,
) -> ExitCode {
    let mut sums = Sums::new(by);
    let request = Request::Sessions {
        limit: None,
        filter,
    };
    let code = ask_lines(socket, &request, |line| {
        sums.add(&parse(line)?);
        Ok(())
    });
    if code != ExitCode::SUCCESS {
        return code;
    }
    let (largest, all) = sums.largest(top);
    match json {
        true => finish(print_lines(&largest), code),
        false => finish(print_table(by, &largest, all), code),
    }
}

fn print_lines(sums: &[Sum]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for sum in sums {
        serde_json::to_writer(&mut out, sum)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn print_table(by: Talker, sums: &[Sum], all: usize) -> io::Result<()> {
    if sums.is_empty() {
        say("tandemgw: no session matches\n");
        return Ok(());
    }
    let header = match by {
        Talker::Source => "SOURCE",
        Talker::Destination => "DESTINATION",
        Talker::Policy => "POLICY",
        Talker::Service => "SERVICE",
    };
    let mut table = Table::new(&[header, "SESSIONS", "PACKETS", "BYTES"]).whole();
    for sum in sums {
        table.row([
            sum.name.clone(),
            count(sum.sessions),
            count(sum.packets),
            bytes(sum.bytes),
        ]);
    }
    table.print()?;
    if all > sums.len() {
        say(format_args!(
            "tandemgw: {} more are not shown\n",
            all - sums.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(src: &str, dst: &str, bytes: u64) -> Session<'static> {
        let line = format!(
            r#"{{"id":7,"proto":"tcp","in":"lan","out":"wan","src":"{src}","dst":"{dst}","nat_src":"{src}",
            "nat_dst":"{dst}","state":"established","policy":"lan-out","group":"default","owner":null,
            "synced":false,"age_s":3,"expires_s":297,"packets":1,"bytes":{bytes}}}"#
        );
        parse(&line).unwrap()
    }

    #[test]
    fn sessions_are_added_up_and_the_largest_come_first() {
        let sessions = [
            session("10.0.0.1:1", "192.0.2.1:443", 10),
            session("10.0.0.2:1", "192.0.2.1:80", 25),
            session("10.0.0.1:2", "192.0.2.2:443", 20),
            session("[fd00::1]:2", "[2001:db8::1]:443", 5),
        ];
        let largest = |by, count| {
            let mut sums = Sums::new(by);
            sessions.iter().for_each(|session| sums.add(session));
            let (largest, all) = sums.largest(count);
            let named = largest
                .into_iter()
                .map(|sum| (sum.name, sum.sessions, sum.bytes));
            (named.collect::<Vec<_>>(), all)
        };
        assert_eq!(
            largest(Talker::Source, 2),
            (
                vec![("10.0.0.1".into(), 2, 30), ("10.0.0.2".into(), 1, 25)],
                3
            )
        );
        assert_eq!(
            largest(Talker::Service, 9),
            (vec![("tcp/443".into(), 3, 35), ("tcp/80".into(), 1, 25)], 2)
        );
        assert_eq!(
            largest(Talker::Destination, 1),
            (vec![("192.0.2.1".into(), 2, 35)], 3)
        );
        assert_eq!(
            largest(Talker::Policy, 9),
            (vec![("lan-out".into(), 4, 60)], 1)
        );
    }
}
