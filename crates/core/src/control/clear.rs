//! Ends sessions at an administrator's request, in pieces.

use crate::flow::GroupId;
use crate::gateway::{Gateway, Role, SessionView};
use crate::in_quotes::InQuotes;
use crate::time::Time;

use super::listing::{PIECE, owner};
use super::protocol::{Cleared, ErrorCode, Failure, Skipped, write_line};
use super::{Filter, Progress, bad_request};

/// An end of sessions in progress.
#[derive(Debug)]
pub struct Clear {
    /// The next slot of the table to check.
    cursor: u32,
    filter: Filter,
    /// The filter as it was typed.
    words: String,
    cleared: u64,
    /// Sessions that match but that another unit must end, by group.
    skipped: Vec<u64>,
}

impl Clear {
    /// Starts to end the sessions that match `filter`; ends all of them only with `all`.
    ///
    /// # Errors
    /// A sentence for the operator: the filter is wrong, or this unit may not end any session.
    pub(super) fn begin(
        filter: &[String],
        all: bool,
        gateway: &Gateway,
        now: Time,
    ) -> Result<Clear, Failure> {
        if all != filter.is_empty() {
            return Err(bad_request("give a filter, such as proto=udp, or --all"));
        }
        let clear = Clear {
            cursor: 0,
            filter: Filter::parse(filter, gateway.config()).map_err(bad_request)?,
            words: if all {
                "all".to_owned()
            } else {
                filter.join(" ")
            },
            cleared: 0,
            skipped: vec![0; gateway.config().groups.len()],
        };
        let groups = gateway.groups();
        let mut groups = groups.filter(|group| clear.filter.admits_group(*group, gateway));
        if groups
            .clone()
            .any(|group| gateway.role_of(group) == Role::Primary)
        {
            return Ok(clear);
        }
        let group = groups.next().unwrap_or(GroupId(0));
        let ask = match owner(gateway, group, now) {
            Some(owner) => format!("ask {owner}, the primary"),
            None => "no unit is known to be primary".to_owned(),
        };
        let name = gateway.group_name(group);
        let sentence = format!("this unit is standby of group {name}: {ask}");
        Err(Failure::new(ErrorCode::NotPrimary, sentence))
    }

    pub fn go_on(&mut self, gateway: &mut Gateway, now: Time, out: &mut String) -> Progress {
        let (sessions, next) = gateway.page(self.cursor, PIECE, now);
        let matching: Vec<SessionView> = sessions
            .filter(|session| self.filter.matches(session, gateway))
            .collect();
        for session in matching {
            if gateway.clear_session(now, session.id) {
                self.cleared += 1;
            } else if let Some(skipped) = self.skipped.get_mut(usize::from(session.group.0)) {
                *skipped += 1;
            }
        }
        if let Some(next) = next {
            self.cursor = next;
            return Progress::More;
        }
        let (words, cleared) = (&self.words, self.cleared);
        let others: u64 = self.skipped.iter().sum();
        log::info!(
            "sessions cleared filter={} count={cleared} skipped={others}",
            InQuotes(&words)
        );
        let skipped = gateway
            .groups()
            .zip(&self.skipped)
            .filter(|(_, count)| **count > 0)
            .map(|(group, count)| Skipped {
                group: gateway.group_name(group).to_owned(),
                owner: owner(gateway, group, now).map(str::to_owned),
                sessions: *count,
            })
            .collect();
        write_line(out, &Cleared { cleared, skipped });
        Progress::Done
    }
}
