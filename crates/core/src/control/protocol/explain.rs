//! The explanation of a packet, as sent over the protocol.

use serde::{Deserialize, Serialize};

use super::{Endpoint, Session};

/// The packet to explain, as the operator typed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// `tcp`, `udp`, `icmp` or a number.
    pub protocol: String,
    /// Address, with the port; the identifier of an echo request may follow like a port.
    pub source: String,
    /// Address, with the port; the identifier of an echo reply may follow like a port.
    pub destination: String,
    /// The name of the port that it comes in by.
    pub in_port: String,
}

/// The fate of a packet, step by step. A step that it does not reach is `null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The unit that answers.
    pub node: Option<String>,
    /// The packet as it comes in.
    pub flow: Flow,
    /// The assumed kind of packet, in words.
    pub explained_as: Option<String>,
    /// The session or connection that the packet belongs to.
    pub matches: Option<Matches>,
    /// Its session, as `sessions` lists it; `null` if there is none.
    pub session: Option<Session<'static>>,
    /// Why the kernel does not forward the packets of that session; `null` if it does, or if there
    /// is no fast path.
    pub why_not_offloaded: Option<String>,
    /// Its direction in the session.
    pub direction: Option<FlowDirection>,
    /// The forward that applies.
    pub forward: Option<ForwardStep>,
    /// The route to its destination.
    pub route: Option<RouteStep>,
    /// How many policies were checked before the first of `policies`, which has the last 1000.
    #[serde(default)]
    pub policies_before: u32,
    /// The policies that were checked, in order: those that do not match, then the one that
    /// decides.
    #[serde(default)]
    pub policies: Vec<PolicyStep>,
    /// The translation of its source.
    pub nat: Option<NatStep>,
    /// Whether the table is full, so that an unanswered session would have to end.
    #[serde(default)]
    pub makes_room: bool,
    /// The port that it leaves by.
    pub out: Option<ExitPort>,
    /// Its addresses as it leaves.
    pub leaves_as: Option<Translated>,
    /// The group that decides which unit handles it.
    pub group: Option<String>,
    /// The primary of that group; `null` if none is known.
    pub owner: Option<String>,
    /// Whether this unit is that primary.
    pub primary_here: Option<bool>,
    /// The primary's verdict.
    pub verdict: Verdict,
    /// This unit's verdict, if different.
    pub verdict_here: Option<Verdict>,
    /// Whether its session would survive a takeover.
    pub survives: Option<Survival>,
    /// Why it would or would not.
    pub why: Option<String>,
}

/// A packet as it comes in, by its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp`, `icmp` or a number.
    pub proto: String,
    /// Where it comes from.
    pub src: Endpoint,
    /// Where it goes.
    pub dst: Endpoint,
    /// The port that it comes in by.
    pub r#in: String,
}

/// The session, address or flow that a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matches {
    /// A session that is in the table.
    Session,
    /// A virtual address that the gateway answers for.
    Gateway,
    /// An address of the machine itself; the kernel handles its packets.
    Machine,
    /// Nothing yet: it would open a session.
    Nothing,
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The direction of a packet in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowDirection {
    /// The direction of the packet that opened it.
    Original,
    /// The other one.
    Reply,
}

impl FlowDirection {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            FlowDirection::Original => "original",
            FlowDirection::Reply => "reply",
        }
    }
}

/// A forward that redirects the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardStep {
    /// `name` in the config.
    pub name: String,
    /// Where it leads.
    pub to: Endpoint,
}

/// The route to a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStep {
    /// The address that was looked up: the internal one if a forward applies.
    pub destination: String,
    /// The prefix that matches; `null` if none does.
    pub prefix: Option<String>,
    /// Where it leads.
    pub target: RouteTarget,
    /// The port that it leads out of.
    pub port: Option<String>,
    /// The router; `null` if the destination is on the link.
    pub next_hop: Option<String>,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteTarget {
    /// Out of a port.
    Port,
    /// Out of an interface that is not a port.
    Elsewhere,
    /// Nowhere: blackhole, unreachable or prohibit.
    Unreachable,
    /// There is no route.
    None,
}

/// A policy that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStep {
    /// `name` in the config.
    pub name: String,
    /// The key that does not match; left out if all do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<Mismatch>,
    /// Its action; left out if it does not match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<PolicyAction>,
}

/// The key of a policy that does not match a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mismatch {
    /// `from`.
    From,
    /// `to`.
    To,
    /// `source`.
    Source,
    /// `destination`.
    Destination,
    /// `service`.
    Service,
    /// `forwarded`: a forward has or has not translated the destination, or the packet is for the
    /// server's own address.
    Forwarded,
    /// A key that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The action of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyAction {
    /// It lets the packet pass.
    Accept,
    /// It drops the packet.
    Drop,
    /// It drops the packet and notifies the sender.
    Reject,
}

impl PolicyAction {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            PolicyAction::Accept => "accept",
            PolicyAction::Drop => "drop",
            PolicyAction::Reject => "reject",
        }
    }
}

/// The translation of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatStep {
    /// The pool; `null` for the address of the port that the packet leaves by.
    pub pool: Option<String>,
    /// Whether client and server are behind the same port, so that answers have to come back here.
    pub hairpin: bool,
    /// The translated source; `null` if no port is left.
    pub src: Option<Endpoint>,
    /// Whether the source port stays the same; `null` if no port is left.
    pub port_kept: Option<bool>,
}

/// The port that a packet leaves by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitPort {
    /// `name` of the `[[port]]`.
    pub port: String,
    /// The kernel interface.
    pub interface: String,
    /// Whether it is up.
    pub up: bool,
    /// The MTU of the interface, in bytes.
    pub mtu: u32,
}

/// The addresses of a packet as it leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translated {
    /// Where it comes from.
    pub src: Endpoint,
    /// Where it goes.
    pub dst: Endpoint,
}

/// The outcome for a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It leaves by the port in `out`.
    Forward,
    /// It leaves once the peers have its session.
    Wait {
        /// Which guarantee it waits for.
        guarantee: Guarantee,
    },
    /// The gateway answers it.
    Answer,
    /// The machine's kernel handles it instead of the gateway, and no policy applies.
    Kernel,
    /// It ends here, and the counter of the reason moves.
    Drop {
        /// Why; see docs/drop-reasons.md.
        reason: String,
        /// The meaning of the reason.
        meaning: String,
        /// Whether the sender is notified.
        sender_is_told: bool,
    },
}

/// A `pickup-guarantee`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarantee {
    /// Nothing waits: a session may be lost if the primary dies before the peers have it.
    Off,
    /// The first packet waits for a limited time.
    Bounded,
    /// The first packet waits, or is dropped.
    Strict,
}

impl Guarantee {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Guarantee::Off => "off",
            Guarantee::Bounded => "bounded",
            Guarantee::Strict => "strict",
        }
    }
}

/// Whether a session would survive a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Survival {
    /// A unit that may take over holds it.
    #[serde(rename = "yes")]
    Yes,
    /// It would not.
    #[serde(rename = "no")]
    No,
    /// Not now, but soon.
    #[serde(rename = "not yet")]
    NotYet,
}

impl Survival {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Survival::Yes => "yes",
            Survival::No => "no",
            Survival::NotYet => "not yet",
        }
    }
}
