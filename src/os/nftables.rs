//! Requests to the kernel's packet filter, nf_tables (linux/netfilter/nf_tables.h, nfnetlink).
//!
//! Changes are made in a [`Batch`]: the kernel applies all of it or nothing, and no packet sees a
//! state in between. Only the parts of nf_tables that [`super::barrier`] needs are here: tables,
//! base chains, rules, and named sets.

mod message;

use std::io;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::netlink::{Answer, Messages, NetlinkError, extended_ack, receive};

pub(super) use message::{Attributes, Expression, Message, attribute};

/// Hook and priority of a base chain.
pub(super) struct Hook {
    /// `NF_INET_FORWARD` and the like; a bridge has the same numbers.
    pub number: u32,
    /// The lowest priority sees a packet first.
    pub priority: i32,
    /// The devices whose packets it sees; of all if there are none. Only for the ingress hook.
    pub devices: Vec<String>,
}

/// A named set of keys of one length.
pub(super) struct Set<'a> {
    pub name: &'a str,
    /// The data type as nft(8) knows it; the kernel only stores it.
    pub data_type: u32,
    /// The length of a key in bytes.
    pub key_length: usize,
    /// Whether the keys are addresses, in network byte order.
    pub is_address: bool,
    pub keys: &'a [Vec<u8>],
}

/// The family of tables whose chains see IPv4 and IPv6.
pub(super) const INET: u8 = libc::NFPROTO_INET as u8;

/// The family of tables whose chains see what a bridge forwards.
pub(super) const BRIDGE: u8 = libc::NFPROTO_BRIDGE as u8;

/// The family of tables whose chains see what passes single devices.
pub(super) const NETDEV: u8 = libc::NFPROTO_NETDEV as u8;

/// Keys in one message: an attribute holds 64 KiB.
const KEYS_PER_MESSAGE: usize = 1000;

/// A socket for requests to nf_tables. Each call waits for its answer, which the kernel gives at
/// once.
pub(super) struct Nftables {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Nftables {
    /// Opens the socket, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// `ProtocolNotSupported` (`EPROTONOSUPPORT`) if the kernel has no netfilter.
    pub(super) fn open() -> io::Result<Nftables> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel has answered when `send` returns: no answer is an error, and never a wait.
        socket.set_non_blocking(true)?;
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Nftables {
            socket,
            sequence: 0,
            buffer: Vec::new(),
        })
    }

    /// An empty batch for the table of that name in a family.
    pub(super) fn batch(&self, family: u8, table: &str) -> Batch {
        let mut batch = Batch {
            bytes: Vec::new(),
            last: 0,
            first_number: self.sequence,
            next_number: self.sequence,
            family,
            table: table.to_owned(),
        };
        batch.mark(libc::NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Carries out all of `batch`, or nothing.
    ///
    /// # Errors
    /// The kernel's error for the first change that it refuses.
    pub(super) fn commit(&mut self, mut batch: Batch) -> Result<(), NetlinkError> {
        let Batch {
            first_number,
            next_number,
            ..
        } = batch;
        let object = format!("the nftables table {}", batch.table);
        message::ask_for_answer(&mut batch.bytes[batch.last..]);
        batch.mark(libc::NFNL_MSG_BATCH_END);
        self.sequence = batch.next_number;
        let last = next_number.wrapping_sub(1);
        let numbers = first_number..next_number;
        self.exchange("change", &object, &batch.bytes, numbers, last, |_| {})
    }

    /// All objects that the request `kind` (`NFT_MSG_GETRULE` …) with these attributes lists.
    ///
    /// # Errors
    /// The kernel's error. A missing table is not an error, and lists nothing.
    pub(super) fn list(
        &mut self,
        kind: libc::c_int,
        family: u8,
        fill: impl FnOnce(&mut Message),
        mut take: impl FnMut(Attributes<'_>),
    ) -> Result<(), NetlinkError> {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Message::request(kind, family, NLM_F_REQUEST | NLM_F_DUMP, sequence);
        fill(&mut message);
        let bytes = message.finish();
        let range = sequence..sequence.wrapping_add(1);
        let listed = self.exchange(
            "list",
            "the packet filter",
            &bytes,
            range,
            sequence,
            &mut take,
        );
        match listed {
            Err(error) if error.is(libc::ENOENT) => Ok(()),
            listed => listed,
        }
    }

    /// Sends a request; returns the messages of its answer, which ends with the one of number
    /// `last` that says so, or with the first error.
    fn exchange(
        &mut self,
        operation: &'static str,
        object: &str,
        bytes: &[u8],
        numbers: std::ops::Range<u32>,
        last: u32,
        mut take: impl FnMut(Attributes<'_>),
    ) -> Result<(), NetlinkError> {
        let error = |source, detail| NetlinkError {
            operation,
            object: object.to_owned(),
            source,
            detail,
        };
        self.socket.send(bytes, 0).map_err(|e| error(e, None))?;
        loop {
            receive(&self.socket, &mut self.buffer).map_err(|e| error(e, None))?;
            for raw in Messages::new(&self.buffer) {
                let offset = raw.sequence().wrapping_sub(numbers.start);
                if offset >= numbers.end.wrapping_sub(numbers.start) {
                    continue; // The rest of an answer that ended with an error.
                }
                match raw.answer() {
                    Answer::Data(body) => take(Attributes::after_header(body)),
                    Answer::Done if raw.sequence() == last => return Ok(()),
                    Answer::Done => {}
                    Answer::Error(errno, tail) => {
                        let source = io::Error::from_raw_os_error(errno);
                        return Err(error(source, tail.and_then(extended_ack)));
                    }
                }
            }
        }
    }
}

/// Changes that the kernel makes all together or not at all.
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// The start of the last message in them.
    last: usize,
    first_number: u32,
    next_number: u32,
    family: u8,
    table: String,
}

impl Batch {
    /// Adds the table, unless it is there.
    pub(super) fn add_table(&mut self) {
        self.add_table_with(0);
    }

    /// Adds a table that the kernel removes when the socket is closed, and that nobody else may
    /// change.
    pub(super) fn add_table_of_socket(&mut self) {
        /// `NFT_TABLE_F_OWNER`.
        const OWNED: u32 = 2;
        self.add_table_with(OWNED);
    }

    fn add_table_with(&mut self, flags: u32) {
        self.add(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE, |message| {
            message.u32(attribute::TABLE_FLAGS, flags);
        });
    }

    /// Removes the table with everything in it: an error if there is none.
    pub(super) fn remove_table(&mut self) {
        self.add(libc::NFT_MSG_DELTABLE, 0, |_| {});
    }

    /// Adds a chain that sees packets at `hook`, and accepts packets that none of its rules drops.
    pub(super) fn add_chain(&mut self, name: &str, hook: &Hook) {
        self.add_chain_of("filter", name, hook);
    }

    /// The same at the output hook; packets whose mark changes there are routed once more.
    pub(super) fn add_rerouting_chain(&mut self, name: &str, hook: &Hook) {
        self.add_chain_of("route", name, hook);
    }

    fn add_chain_of(&mut self, kind: &str, name: &str, hook: &Hook) {
        const ACCEPT: u32 = 1;
        self.add(libc::NFT_MSG_NEWCHAIN, NLM_F_CREATE, |message| {
            message.text(attribute::CHAIN_NAME, name);
            message.text(attribute::CHAIN_TYPE, kind);
            message.u32(attribute::CHAIN_POLICY, ACCEPT);
            message.nest(attribute::CHAIN_HOOK, |message| {
                message.u32(attribute::HOOK_NUMBER, hook.number);
                message.u32(attribute::HOOK_PRIORITY, hook.priority as u32);
                if !hook.devices.is_empty() {
                    message.nest(attribute::HOOK_DEVICES, |message| {
                        for device in &hook.devices {
                            message.text(attribute::DEVICE_NAME, device);
                        }
                    });
                }
            });
        });
    }

    /// Adds a set with its keys; they can't change as long as a rule uses it.
    pub(super) fn add_set(&mut self, set: &Set<'_>) {
        let id = self.next_number;
        self.add(libc::NFT_MSG_NEWSET, NLM_F_CREATE, |message| {
            message.text(attribute::SET_NAME, set.name);
            message.u32(attribute::SET_FLAGS, libc::NFT_SET_CONSTANT as u32);
            message.u32(attribute::SET_KEY_TYPE, set.data_type);
            message.u32(attribute::SET_KEY_LENGTH, set.key_length as u32);
            message.u32(attribute::SET_ID, id);
            message.nest(attribute::SET_DESCRIPTION, |message| {
                message.u32(attribute::SET_SIZE, set.keys.len().max(1) as u32);
            });
            if !set.is_address {
                message.bytes(attribute::SET_USER_DATA, &message::HOST_BYTE_ORDER);
            }
        });
        for keys in set.keys.chunks(KEYS_PER_MESSAGE) {
            self.add(libc::NFT_MSG_NEWSETELEM, NLM_F_CREATE, |message| {
                message.text(attribute::ELEMENTS_SET, set.name);
                message.nest(attribute::ELEMENTS, |message| {
                    for key in keys {
                        message.nest(attribute::LIST_ELEMENT, |message| {
                            message.nest(attribute::ELEMENT_KEY, |message| {
                                message.bytes(attribute::DATA_VALUE, key);
                            });
                        });
                    }
                });
            });
        }
    }

    /// Adds a rule at the end of a chain; the comment is what nft(8) shows beside it.
    pub(super) fn add_rule(&mut self, chain: &str, expressions: &[Expression<'_>], comment: &str) {
        self.add(
            libc::NFT_MSG_NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            |message| {
                message.text(attribute::RULE_CHAIN, chain);
                message.nest(attribute::RULE_EXPRESSIONS, |message| {
                    for expression in expressions {
                        message.expression(expression);
                    }
                });
                message.bytes(attribute::RULE_USER_DATA, &message::comment(comment));
            },
        );
    }

    fn add(&mut self, kind: libc::c_int, flags: u16, fill: impl FnOnce(&mut Message)) {
        let flags = NLM_F_REQUEST | flags;
        let mut message = Message::request(kind, self.family, flags, self.next_number);
        // Attribute 1 is the table's name for objects of all kinds.
        message.text(attribute::TABLE_NAME, &self.table);
        fill(&mut message);
        self.last = self.bytes.len();
        self.bytes.extend(message.finish());
        self.next_number = self.next_number.wrapping_add(1);
    }

    fn mark(&mut self, kind: libc::c_int) {
        let mark = message::batch_mark(kind, self.next_number);
        self.bytes.extend(mark);
        self.next_number = self.next_number.wrapping_add(1);
    }
}
