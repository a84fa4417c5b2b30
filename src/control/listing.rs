//! The session table, in pieces.

use std::fmt::Write;

use crate::gateway::Gateway;
use crate::time::Time;

use super::{Filter, Progress, status};

/// Slots of the table looked at in one piece: some 100 µs.
const PIECE: u32 = 256;

/// The rest of a listing.
#[derive(Debug)]
pub struct Listing {
    /// The next slot of the table to look at.
    cursor: u32,
    /// Sessions still to be listed.
    left: u64,
    filter: Filter,
}

impl Listing {
    pub fn begin(limit: Option<u64>, filter: &[String]) -> Result<Listing, String> {
        Ok(Listing {
            cursor: 0,
            left: limit.unwrap_or(u64::MAX),
            filter: Filter::parse(filter)?,
        })
    }

    pub fn go_on(&mut self, gateway: &Gateway, now: Time, out: &mut String) -> Progress {
        let (sessions, next) = gateway.page(self.cursor, PIECE, now);
        for session in sessions.filter(|session| self.filter.matches(session, gateway)) {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            let _ = writeln!(out, "{}", status::session(&session, gateway, now));
        }
        match next {
            Some(next) if self.left > 0 => {
                self.cursor = next;
                Progress::More
            }
            _ => Progress::Done,
        }
    }
}
