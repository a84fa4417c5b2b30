//! Chains of iptables-legacy (linux/netfilter_ipv4/ip_tables.h), of which no notice tells.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

/// One family's packet filter.
struct Family {
    tool: &'static str,
    /// The tables that the network namespace has. Asking for another one would make it.
    names: &'static str,
    /// How the names of the modules of its tables begin.
    modules: &'static str,
    domain: Domain,
    level: libc::c_int,
    /// Bytes before `target_offset` in a rule.
    target_offset: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        tool: "iptables-legacy",
        names: "/proc/net/ip_tables_names",
        modules: "iptable_",
        domain: Domain::IPV4,
        level: libc::SOL_IP,
        target_offset: 88,
    },
    Family {
        tool: "ip6tables-legacy",
        names: "/proc/net/ip6_tables_names",
        modules: "ip6table_",
        domain: Domain::IPV6,
        level: libc::SOL_IPV6,
        target_offset: 140,
    },
];

/// The hooks that packets of the fast path skip, by their numbers.
const SKIPPED: [(usize, &str); 3] = [(0, "PREROUTING"), (2, "FORWARD"), (4, "POSTROUTING")];

/// The length of a table's name, in all structures.
const NAME: usize = 32;

/// `struct ipt_getinfo`, a name first.
const INFO: usize = NAME + 4 + 5 * 4 + 5 * 4 + 4 + 4;

/// `struct ipt_get_entries` without its rules.
const ENTRIES: usize = NAME + 8;

/// A chain of iptables-legacy with a rule or a policy of drop that packets of the fast path skip;
/// none if there is none.
pub(super) fn find() -> Option<String> {
    FAMILIES.iter().find_map(find_of)
}

fn find_of(family: &Family) -> Option<String> {
    let names = match fs::read_to_string(family.names) {
        Ok(names) => names,
        // Only root may read it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return unread(family),
        Err(_) => return None,
    };
    names.lines().find_map(|table| {
        let chain = match read(family, table) {
            Ok(chain) => chain?.to_owned(),
            Err(_) => "?".to_owned(),
        };
        let tool = family.tool;
        Some(format!("the chain {chain} of table {table} of {tool}"))
    })
}

/// Where it can't be told which tables this network namespace has: those that the kernel has
/// loaded.
fn unread(family: &Family) -> Option<String> {
    let modules = fs::read_to_string("/proc/modules").ok()?;
    let names = modules.lines().filter_map(|line| line.split(' ').next());
    let mut tables = names.filter_map(|name| name.strip_prefix(family.modules));
    let table = tables.next()?;
    Some(format!(
        "table {table} of {}, if that has rules, which only root may tell",
        family.tool
    ))
}

/// The chain of a table that has a rule, or drops by its policy.
fn read(family: &Family, table: &str) -> io::Result<Option<&'static str>> {
    const GET_INFO: libc::c_int = 64;
    const GET_ENTRIES: libc::c_int = 65;
    let socket = Socket::new(family.domain, Type::DGRAM, None)?;
    let mut info = named(table, INFO);
    get(&socket, (family.level, GET_INFO), &mut info)?;
    let info = Info::of(&info);
    if let Some(chain) = info.chain_with_rules() {
        return Ok(Some(chain));
    }
    let mut entries = named(table, ENTRIES + info.size);
    entries[NAME..NAME + 4].copy_from_slice(&(info.size as u32).to_ne_bytes());
    get(&socket, (family.level, GET_ENTRIES), &mut entries)?;
    Ok(info.chain_that_drops(&entries[ENTRIES..], family.target_offset))
}

/// Bytes that begin with the name of a table.
fn named(table: &str, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = table.bytes().take(NAME - 1).collect();
    bytes.resize(length, 0);
    bytes
}

/// What the kernel says of a table.
struct Info {
    valid_hooks: u32,
    /// By hook: where its rules begin.
    starts: [u32; 5],
    /// By hook: where its policy is, after them.
    policies: [u32; 5],
    /// Of all rules, in bytes.
    size: usize,
}

impl Info {
    fn of(bytes: &[u8]) -> Info {
        let word = |index: usize| {
            let word = bytes.get(NAME + index * 4..NAME + index * 4 + 4);
            word.and_then(|word| word.try_into().ok())
                .map_or(0, u32::from_ne_bytes)
        };
        Info {
            valid_hooks: word(0),
            starts: std::array::from_fn(|hook| word(1 + hook)),
            policies: std::array::from_fn(|hook| word(6 + hook)),
            size: word(12) as usize,
        }
    }

    fn chains(&self) -> impl Iterator<Item = (usize, &'static str)> {
        let valid = self.valid_hooks;
        let all = SKIPPED.into_iter();
        all.filter(move |(hook, _)| valid & 1 << hook != 0)
    }

    fn chain_with_rules(&self) -> Option<&'static str> {
        let mut chains = self.chains();
        let found = chains.find(|(hook, _)| self.starts[*hook] != self.policies[*hook]);
        found.map(|(_, chain)| chain)
    }

    fn chain_that_drops(&self, rules: &[u8], target_offset: usize) -> Option<&'static str> {
        /// Of `struct xt_entry_target`, before its data.
        const TARGET: usize = 32;
        const DROP: i32 = -1;
        let verdict = |hook: usize| {
            let rule = rules.get(self.policies[hook] as usize..)?;
            let offset = rule.get(target_offset..target_offset + 2)?;
            let at = usize::from(u16::from_ne_bytes(offset.try_into().ok()?)) + TARGET;
            let verdict = rule.get(at..at + 4)?;
            Some(i32::from_ne_bytes(verdict.try_into().ok()?))
        };
        let found = self.chains().find(|(hook, _)| verdict(*hook) == Some(DROP));
        found.map(|(_, chain)| chain)
    }
}

/// Reads an option of a socket that says in `value` what it wants to know.
fn get(
    socket: &Socket,
    (level, option): (libc::c_int, libc::c_int),
    value: &mut [u8],
) -> io::Result<()> {
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: the address and the length are those of `value`, which may be written.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
