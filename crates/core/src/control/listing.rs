//! The session table, in pieces.

use std::fmt::{self, Display};
use std::io;

use serde::{Serialize, Serializer};

use crate::flow::{Addr, FlowKey, GroupId, Protocol};
use crate::gateway::{Gateway, SessionView};
use crate::time::Time;

use super::{Filter, Progress};

/// Slots of the table looked at in one piece: some 50 µs if all of them are listed.
pub(super) const PIECE: u32 = 64;

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
    pub fn begin(
        limit: Option<u64>,
        filter: &[String],
        gateway: &Gateway,
    ) -> Result<Listing, String> {
        Ok(Listing {
            cursor: 0,
            left: limit.unwrap_or(u64::MAX),
            filter: Filter::parse(filter, gateway.config())?,
        })
    }

    pub fn go_on(&mut self, gateway: &Gateway, now: Time, out: &mut String) -> Progress {
        let (sessions, next) = gateway.page(self.cursor, PIECE, now);
        let owners = owners(gateway, now);
        for session in sessions.filter(|session| self.filter.matches(session, gateway)) {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            let owner = owners.get(usize::from(session.group.0));
            let row = Row::new(&session, gateway, owner.copied().flatten());
            // It fails only if the row could not be told as JSON, which is not so.
            let _ = serde_json::to_writer(Text(out), &row);
            out.push('\n');
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

/// The node that handles the packets of each group, if one is known to.
pub(super) fn owners(gateway: &Gateway, now: Time) -> Vec<Option<&str>> {
    let groups = gateway.groups();
    groups.map(|group| owner(gateway, group, now)).collect()
}

/// The node that handles the packets of a group, if one is known to.
pub(super) fn owner(gateway: &Gateway, group: GroupId, now: Time) -> Option<&str> {
    match gateway.cluster() {
        None => Some(&gateway.config().node.name),
        Some(cluster) => cluster.ha().group(now, group)?.primary,
    }
}

/// A session as JSON. It is written as it stands: no allocation a session.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    id: u32,
    proto: Shown<Protocol>,
    r#in: &'a str,
    out: &'a str,
    src: Shown<Endpoint>,
    dst: Shown<Endpoint>,
    nat_src: Shown<Endpoint>,
    nat_dst: Shown<Endpoint>,
    state: &'static str,
    policy: &'a str,
    group: &'a str,
    owner: Option<&'a str>,
    synced: bool,
    age_s: u64,
    expires_s: u64,
    packets: u64,
    bytes: u64,
}

impl<'a> Row<'a> {
    pub fn new(view: &SessionView, gateway: &'a Gateway, owner: Option<&'a str>) -> Row<'a> {
        let (original, translated) = (&view.original, &view.translated);
        Row {
            id: view.id,
            proto: Shown(original.protocol),
            r#in: gateway.port_name(view.in_port),
            out: gateway.port_name(view.out_port),
            src: Shown(Endpoint::source(original)),
            dst: Shown(Endpoint::destination(original)),
            nat_src: Shown(Endpoint::source(translated)),
            nat_dst: Shown(Endpoint::destination(translated)),
            state: view.state,
            policy: gateway.policy_name(view.policy),
            group: gateway.group_name(view.group),
            owner,
            synced: view.synced,
            age_s: view.age_s,
            expires_s: view.expires_s,
            packets: view.packets.iter().sum(),
            bytes: view.bytes.iter().sum(),
        }
    }
}

/// An end of a flow: `10.0.0.1:80`, `[fd00::1]:80`, or an address alone if the protocol has no ports.
pub(super) struct Endpoint {
    addr: Addr,
    port: Option<u16>,
}

impl Endpoint {
    pub fn source(key: &FlowKey) -> Endpoint {
        Endpoint::new(key.src, key.src_port, key.protocol)
    }

    pub fn destination(key: &FlowKey) -> Endpoint {
        Endpoint::new(key.dst, key.dst_port, key.protocol)
    }

    pub fn new(addr: Addr, port: u16, protocol: Protocol) -> Endpoint {
        let port = protocol.has_ports().then_some(port);
        Endpoint { addr, port }
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.addr.is_v4()) {
            (None, _) => self.addr.fmt(f),
            (Some(port), true) => write!(f, "{}:{port}", self.addr),
            (Some(port), false) => write!(f, "[{}]:{port}", self.addr),
        }
    }
}

/// What is told as the text that people read.
struct Shown<T>(T);

impl<T: Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// The end of a text, as JSON is written to.
struct Text<'a>(&'a mut String);

impl io::Write for Text<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = str::from_utf8(bytes).map_err(io::Error::other)?;
        self.0.push_str(text);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{PolicyId, PortId};

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
        let view = SessionView {
            id: 7,
            original: key,
            translated: key,
            in_port: PortId(0),
            out_port: PortId(0),
            policy: PolicyId::NONE,
            group: GroupId(0),
            synced: false,
            state: "replied",
            packets: [1, 2],
            bytes: [100, 200],
            age_s: 3,
            expires_s: 297,
        };
        let mut text = String::new();
        let row = Row::new(&view, &gateway, None);
        serde_json::to_writer(Text(&mut text), &row).unwrap();
        let v6 = "[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:53";
        assert_eq!(
            text,
            format!(
                r#"{{"id":7,"proto":"udp","in":"lan","out":"lan","src":"10.0.0.1:4000","dst":"{v6}","#
            ) + &format!(
                r#""nat_src":"10.0.0.1:4000","nat_dst":"{v6}","state":"replied","policy":"-","#
            ) + r#""group":"default","owner":null,"synced":false,"age_s":3,"expires_s":297,"#
                + r#""packets":3,"bytes":300}"#
        );
    }
}
