//! `tandemgw maintenance on|off` and `tandemgw drain UNIT`.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tandemgw::os::clock;
use tandemgw_core::control::protocol::{MaintenanceDone, Request, Status};

use super::args::OnOff;
use super::client::{Client, ClientError, PATIENCE, parse};
use super::table::duration;
use super::{EXIT_USAGE, fail, query, say};

pub fn set(socket: Option<&Path>, json: bool, state: OnOff, time: Option<&str>) -> ExitCode {
    let on = state == OnOff::On;
    let for_s = match time.map(|text| seconds("--for", text)).transpose() {
        Ok(for_s) => for_s,
        Err(why) => return fail(EXIT_USAGE, why),
    };
    if for_s.is_some() && !on {
        return fail(EXIT_USAGE, "--for goes with `on` only");
    }
    match ask(socket, on, for_s, None) {
        Err(error) => fail(error.code(), error),
        Ok((done, status)) => match report(json, &done, &status, for_s) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, error),
        },
    }
}

/// A unit forwards what hosts still send to it for some seconds after a handover.
const DRAINED_WITHIN: Duration = Duration::from_secs(15);
/// Between two looks at the status.
const LOOK: Duration = Duration::from_millis(100);
/// For so long another unit forwards what hosts still send to it, and a bit more: its status is not
/// seen from here.
const STRAGGLERS: Duration = Duration::from_millis(2500);

/// Begins the maintenance of `unit`, this one or a peer, and waits until it forwards nothing any
/// longer.
pub fn drain(socket: Option<&Path>, json: bool, unit: &str) -> ExitCode {
    match try_drain(socket, unit) {
        Err(error) => fail(error.code(), error),
        Ok(done) if !done.primary_of.is_empty() => {
            let groups = done.primary_of.join(", ");
            fail(
                1,
                format_args!(
                    "{unit} is not drained: it is still primary of {groups}, and no other unit can take over; \
                     it hands over as soon as one can"
                ),
            )
        }
        Ok(done) => match report_drained(json, &done) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, error),
        },
    }
}

fn try_drain(socket: Option<&Path>, unit: &str) -> Result<MaintenanceDone, ClientError> {
    let before = Client::connect(socket, PATIENCE)?.status()?;
    if before.node != unit {
        let is_peer = before.peers.iter().any(|peer| peer.name == unit);
        let node = before.node;
        return match is_peer {
            true => drain_peer(socket, unit),
            false => Err(ClientError::Failed(format!(
                "there is no unit `{unit}`: this is {node}"
            ))),
        };
    }
    let (done, mut status) = ask(socket, true, None, None)?;
    let until = clock::now() + DRAINED_WITHIN;
    let drains = |status: &Status| status.groups.iter().any(|it| it.draining == Some(true));
    while drains(&status) {
        if clock::now() >= until {
            let why = "hosts are still forwarded; see `tandemgw status`";
            return Err(ClientError::Failed(why.to_owned()));
        }
        clock::sleep(LOOK);
        status = Client::connect(socket, PATIENCE)?.status()?;
    }
    Ok(done)
}

fn drain_peer(socket: Option<&Path>, unit: &str) -> Result<MaintenanceDone, ClientError> {
    let (done, _) = ask(socket, true, None, Some(unit))?;
    if !done.on {
        return Err(ClientError::Failed(format!(
            "{unit} has not begun a maintenance: if it runs an older release, run `tandemgw drain {unit}` there"
        )));
    }
    if done.primary_of.is_empty() {
        clock::sleep(STRAGGLERS);
    }
    Ok(done)
}

fn report_drained(json: bool, done: &MaintenanceDone) -> io::Result<()> {
    if json {
        return query::print_line(&serde_json::to_string(done)?);
    }
    let node = &done.node;
    writeln!(
        io::stdout().lock(),
        "{node} is drained: standby of all groups, and no host sends to it; `tandemgw maintenance off` on it ends that"
    )
}

/// Sets it; the answer comes when the unit is primary of nothing any longer, or it is clear that it
/// stays that.
fn ask(
    socket: Option<&Path>,
    on: bool,
    for_s: Option<u64>,
    unit: Option<&str>,
) -> Result<(MaintenanceDone, Status), ClientError> {
    let mut client = Client::connect(socket, PATIENCE)?;
    let mut answer = None;
    let unit = unit.map(str::to_owned);
    client.ask(&Request::Maintenance { on, for_s, unit }, |line| {
        answer = Some(parse::<MaintenanceDone>(line)?);
        Ok(())
    })?;
    let done = answer.ok_or_else(|| ClientError::Failed("there was no answer".to_owned()))?;
    Ok((done, client.status()?))
}

fn report(
    json: bool,
    done: &MaintenanceDone,
    status: &Status,
    for_s: Option<u64>,
) -> io::Result<()> {
    let why_not = status
        .maintenance
        .as_ref()
        .and_then(|it| it.not_saved.as_ref());
    if let Some(why) = why_not {
        say(format_args!("tandemgw: a restart would forget it: {why}\n"));
    }
    if json {
        return query::print_line(&serde_json::to_string(done)?);
    }
    let mut out = io::stdout().lock();
    let node = &done.node;
    let end = for_s.map(|seconds| format!(" for {}", duration(seconds)));
    match (done.on, done.primary_of.as_slice()) {
        (false, _) => writeln!(out, "{node} is not in maintenance"),
        (true, []) => writeln!(
            out,
            "{node} is in maintenance{}, and standby of all groups",
            end.unwrap_or_default()
        ),
        (true, groups) => writeln!(
            out,
            "{node} is in maintenance{}, but still primary of {}: no other unit can take over; it hands over \
             as soon as one can",
            end.unwrap_or_default(),
            groups.join(", ")
        ),
    }
}

/// `90s`, `30m`, `2h`, `1d` in seconds.
pub fn seconds(option: &str, text: &str) -> Result<u64, String> {
    let wrong = || format!("{option} {text}: write a number and a unit, such as 30m, 2h or 1d");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(unit)
        .filter(|it| *it > 0)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        for (text, wanted) in [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(seconds("--for", text), Ok(wanted));
        }
        for text in [
            "",
            "2",
            "h",
            "0h",
            "-1h",
            "2x",
            "2h30m",
            "99999999999999999999d",
        ] {
            let why = seconds("--for", text).unwrap_err();
            assert!(why.contains("such as 30m"), "{text}: {why}");
        }
    }
}
