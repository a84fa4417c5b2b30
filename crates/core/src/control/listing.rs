//! The session table, in pieces.

use crate::filter_words::WordError;
use crate::flow::{Addr, GroupId};
use crate::gateway::{Gateway, SessionView};
use crate::time::Time;

use super::protocol::{Endpoint, Session, write_line};
use super::{Filter, Progress};

/// Slots of the table per piece: some 50 µs if all of them are listed.
pub(super) const PIECE: u32 = 64;

/// The rest of a listing.
#[derive(Debug)]
pub struct Listing {
    /// The next slot of the table to list.
    cursor: u32,
    /// Sessions still to be listed.
    left: u64,
    filter: Filter,
    /// The table is listed: multicast sessions follow, after this one.
    multicast: Option<Option<(Addr, Addr)>>,
}

impl Listing {
    pub fn begin(
        limit: Option<u64>,
        filter: &[String],
        gateway: &Gateway,
    ) -> Result<Listing, WordError> {
        Ok(Listing {
            cursor: 0,
            left: limit.unwrap_or(u64::MAX),
            filter: Filter::parse(filter, gateway.config())?,
            multicast: None,
        })
    }

    pub fn go_on(&mut self, gateway: &Gateway, now: Time, out: &mut String) -> Progress {
        if let Some(after) = self.multicast {
            return self.list_multicast(after, gateway, now, out);
        }
        let (sessions, next) = gateway.page(self.cursor, PIECE, now);
        let owners = owners(gateway, now);
        for session in sessions.filter(|session| self.filter.matches(session, gateway)) {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            let owner = owners.get(usize::from(session.group.0));
            write_line(out, &row(&session, gateway, owner.copied().flatten()));
        }
        match next {
            Some(next) if self.left > 0 => {
                self.cursor = next;
                Progress::More
            }
            _ if self.left > 0 && gateway.multicast_count() > 0 => {
                self.multicast = Some(None);
                Progress::More
            }
            _ => Progress::Done,
        }
    }

    /// One row for each port that a multicast session leaves by.
    fn list_multicast(
        &mut self,
        after: Option<(Addr, Addr)>,
        gateway: &Gateway,
        now: Time,
        out: &mut String,
    ) -> Progress {
        let owners = owners(gateway, now);
        let mut last = None;
        for (at, views) in gateway.multicast_page(after, PIECE as usize, now) {
            last = Some(at);
            let wanted = views
                .iter()
                .filter(|(view, _)| self.filter.matches(view, gateway));
            for (view, policy) in wanted {
                if self.left == 0 {
                    return Progress::Done;
                }
                self.left -= 1;
                let owner = owners.get(usize::from(view.group.0)).copied().flatten();
                // It is of all ports.
                let end = |addr| Endpoint { addr, port: None };
                let row = Session {
                    src: end(view.original.src),
                    dst: end(view.original.dst),
                    nat_src: end(view.translated.src),
                    nat_dst: end(view.translated.dst),
                    policy: (*policy).into(),
                    ..row(view, gateway, owner)
                };
                write_line(out, &row);
            }
        }
        self.multicast = Some(last);
        match last {
            Some(_) => Progress::More,
            None => Progress::Done,
        }
    }
}

/// The node that handles the packets of each group, if known.
pub(super) fn owners(gateway: &Gateway, now: Time) -> Vec<Option<&str>> {
    let groups = gateway.groups();
    groups.map(|group| owner(gateway, group, now)).collect()
}

/// The node that handles the packets of a group, if known.
pub(super) fn owner(gateway: &Gateway, group: GroupId, now: Time) -> Option<&str> {
    match gateway.cluster() {
        None => Some(&gateway.config().node.name),
        Some(cluster) => cluster.ha().group(now, group)?.primary,
    }
}

/// A session in the form of the protocol; borrows the names.
pub(super) fn row<'a>(
    view: &SessionView,
    gateway: &'a Gateway,
    owner: Option<&'a str>,
) -> Session<'a> {
    let (original, translated) = (&view.original, &view.translated);
    Session {
        id: view.id,
        proto: original.protocol,
        r#in: gateway.port_name(view.in_port).into(),
        out: gateway.port_name(view.out_port).into(),
        src: Endpoint::source(original),
        dst: Endpoint::destination(original),
        nat_src: Endpoint::source(translated),
        nat_dst: Endpoint::destination(translated),
        state: view.state.into(),
        policy: gateway.policy_name(view.policy).into(),
        group: gateway.group_name(view.group).into(),
        owner: owner.map(Into::into),
        synced: view.synced,
        offloaded: Some(view.offloaded),
        age_s: view.age_s,
        expires_s: view.expires_s,
        packets: view.packets.iter().sum(),
        bytes: view.bytes.iter().sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Addr, FlowKey, Protocol};

    #[test]
    fn a_session_is_told_as_json() {
        let config = r#"
[node]
name = "gw"

[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.77.1.1/24"]
"#;
        let (config, _) = crate::config::parse(std::path::Path::new("t.toml"), config).unwrap();
        let gateway = Gateway::new(config, crate::gateway::Seed([1; 32]), Time::ZERO);
        let key = FlowKey {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v6([0xfd; 16]),
            src_port: 4000,
            dst_port: 53,
            protocol: Protocol::UDP,
        };
        let view = SessionView::example(key);
        let mut text = String::new();
        write_line(&mut text, &row(&view, &gateway, None));
        let v6 = "[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:53";
        assert_eq!(
            text,
            format!(
                r#"{{"id":7,"proto":"udp","in":"lan","out":"lan","src":"10.0.0.1:4000","dst":"{v6}","#
            ) + &format!(
                r#""nat_src":"10.0.0.1:4000","nat_dst":"{v6}","state":"replied","policy":"-","#
            ) + r#""group":"default","owner":null,"synced":false,"offloaded":true,"#
                + r#""age_s":3,"expires_s":297,"#
                + "\"packets\":3,\"bytes\":300}\n"
        );
    }
}
