//! The program in the kernel that forwards packets of established sessions, and the memory that it
//! shares with the gateway. What it does is up to the gateway (`tandemgw_core::fast_path`).
//!
//! `program.bpf.c` is the source. `scripts/fast-path` builds the object beside it, which is kept
//! there so that a build needs no compiler for BPF.
//!
//! Nothing is pinned: program, maps and links go with the process. Before Linux 6.6 the program is
//! a filter of tc, which stays if the process is killed; there the lease is what ends its work.

mod bpf;
mod elf;
mod mapping;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use tandemgw_core::fast_path::{
    Change, ENTRY_LEN, Entry, FLOW_LEN, Flow, GroupCell, Memory, SessionCell,
};
use tandemgw_core::flow::{Addr, Direction, FlowKey, GroupId, Protocol};
use tandemgw_core::session::Numbers;
use tandemgw_core::time::Time;

use super::netlink::{Netlink, NetlinkError};
use bpf::MapShape;
pub use bpf::Run;
pub use mapping::{Taken, TakenCount};
use tandemgw_core::in_quotes::InQuotes;

const OBJECT: &[u8] = include_bytes!("fast_path/program.bpf.o");
const SECTION: &str = "tc";

/// The most sessions that the program forwards; some 500 bytes of the kernel's memory each.
pub const MOST_SESSIONS: u32 = 65_536;

/// What the program returns for a packet that it leaves to the process.
pub const GO_ON: i32 = -1;
/// What it returns for one that it has forwarded.
pub const FORWARDED: i32 = 7;

/// Why there is no fast path.
#[derive(Debug)]
pub struct Unavailable {
    what: &'static str,
    error: io::Error,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.error)?;
        match self.error.raw_os_error() {
            Some(libc::EPERM) => f.write_str(" (it needs CAP_BPF and CAP_NET_ADMIN)"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Unavailable {}

fn unavailable(what: &'static str) -> impl FnOnce(io::Error) -> Unavailable {
    move |error| Unavailable { what, error }
}

/// The loaded program with its maps.
pub struct FastPath {
    flows: OwnedFd,
    program: Program,
    memory: Memory,
    counts: &'static mapping::Counts,
    taken: Taken,
}

/// The program alone: another thread may put it at an interface.
#[derive(Clone)]
pub struct Program(Arc<OwnedFd>);

impl Program {
    /// Its number in the kernel.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn number(&self) -> io::Result<u32> {
        bpf::number_of(&self.0)
    }

    /// Puts the program at the ingress of an interface. Waits for the kernel's lock on interfaces.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses.
    pub fn attach(&self, interface: u32) -> Result<Attached, Unavailable> {
        match bpf::attach(&self.0, interface) {
            Ok(link) => Ok(Attached(At::Link { _link: link })),
            // Before Linux 6.6.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.attach_as_filter(interface)
            }
            Err(error) => Err(unavailable("attaching the program")(error)),
        }
    }

    /// The same as a filter of tc, which older kernels have too. It stays where it is when the
    /// process is killed; then the lease is what ends its work, until the next process replaces it.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses.
    pub fn attach_as_filter(&self, interface: u32) -> Result<Attached, Unavailable> {
        let opened = Netlink::open().map_err(NetlinkError::on_open);
        let added = opened.and_then(|mut it| it.add_program(interface, &self.0));
        let what = "attaching the program as a filter of tc";
        let added = added.map_err(|error| unavailable(what)(io::Error::other(error)))?;
        Ok(Attached(At::Filter {
            interface,
            made_place: added,
        }))
    }
}

/// The numbers of the programs at the ingress of an interface (tcx). Filters of tc are not among
/// them.
pub fn programs_at(interface: u32) -> Vec<u32> {
    // An error: no such interface, or an older kernel.
    bpf::programs_at(interface).unwrap_or_default()
}

/// A program at the ingress of an interface, for as long as this lives.
#[derive(Debug)]
pub struct Attached(At);

#[derive(Debug)]
enum At {
    /// By tcx: it goes with the descriptor.
    Link { _link: OwnedFd },
    /// By a filter of tc.
    Filter { interface: u32, made_place: bool },
}

impl Attached {
    /// Somebody else has taken the program off: there is no filter of ours to remove any more. The
    /// result is what is left to be closed.
    pub fn taken_off(self) -> Option<Attached> {
        match self.0 {
            At::Link { .. } => Some(self),
            At::Filter { .. } => {
                std::mem::forget(self);
                None
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let At::Filter {
            interface,
            made_place,
        } = self.0
        else {
            return;
        };
        let opened = Netlink::open().map_err(NetlinkError::on_open);
        let removed = opened.and_then(|mut it| it.remove_program(interface, made_place));
        if let Err(error) = removed {
            log::warn!(
                "filter of the fast path not removed error={}",
                InQuotes(&error)
            );
        }
    }
}

impl FastPath {
    /// Loads the program, with room for this number of sessions and groups.
    ///
    /// # Errors
    /// [`Unavailable`], for an operator to read.
    pub fn load(sessions: u32, groups: u32) -> Result<FastPath, Unavailable> {
        let array = |name, value, entries| {
            let shape = MapShape {
                kind: bpf::ARRAY,
                key: 4,
                value,
                entries,
                flags: bpf::MMAPABLE,
            };
            bpf::create_map(name, shape).map_err(unavailable("making a map"))
        };
        let group_map = array("groups", size_of::<GroupCell>(), groups)?;
        let session_map = array("sessions", size_of::<SessionCell>(), sessions)?;
        let count_map = array("counts", size_of::<u64>(), mapping::REASONS.len() as u32)?;
        let taken_map = array("taken", size_of::<u64>(), mapping::TAKEN_PLACES as u32)?;
        let shape = MapShape {
            kind: bpf::HASH,
            key: FLOW_LEN,
            value: ENTRY_LEN,
            entries: sessions.saturating_mul(2),
            flags: 0,
        };
        let flows = bpf::create_map("flows", shape).map_err(unavailable("making a map"))?;
        let maps = [
            ("flows", &flows),
            ("groups", &group_map),
            ("sessions", &session_map),
            ("counts", &count_map),
            ("taken", &taken_map),
        ];
        let code = linked(&maps).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
        let code = code.map_err(unavailable("reading the program"))?;
        let program = bpf::load_program("fast_path", &code, c"Dual MIT/GPL")
            .map_err(unavailable("loading the program"))?;
        let map = unavailable("mapping memory");
        let memory = mapping::shared(
            (&group_map, groups),
            (&session_map, sessions),
            &count_map,
            &taken_map,
        );
        let (memory, counts, taken) = memory.map_err(map)?;
        Ok(FastPath {
            flows,
            program: Program(Arc::new(program)),
            memory,
            counts,
            taken,
        })
    }

    /// Whether the kernel can keep the checksums of translated IPv6 right (`BPF_F_IPV6`, from Linux
    /// 6.16): whether the program forwards such a packet. Call it before the memory is used.
    pub fn knows_ipv6(&self) -> bool {
        const LOOPBACK: u32 = 1;
        let [src, dst, other] =
            [1, 2, 3].map(|n| Addr::from(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])));
        let key = FlowKey {
            src,
            dst,
            src_port: 1,
            dst_port: 2,
            protocol: Protocol::UDP,
        };
        let flow = Flow {
            key,
            interface: LOOPBACK,
        };
        let entry = Entry {
            to: FlowKey { src: other, ..key },
            next_hop: dst,
            interface: LOOPBACK,
            mtu: 1500,
            group: GroupId(0),
            epoch: 0,
            session: 0,
            serial: 1,
            direction: Direction::Original,
            shift: 0,
            is_incomplete: false,
        };
        let (Some(group), Some(cell)) = (self.memory.groups.first(), self.memory.sessions.first())
        else {
            return false;
        };
        let (flow, entry) = (flow.encode(), entry.encode(&key));
        group.lease(Time::from_nanos(u64::MAX));
        cell.begin(Time::ZERO, 1, &Numbers::default());
        let entered = self.change(&[Change::Insert { flow, entry }]);
        let run = self.test_run(&datagram(src, dst), &[], false);
        let _ = self.change(&[Change::Remove { flow }]);
        cell.stop();
        group.lease(Time::ZERO);
        for direction in Direction::ALL {
            cell.take(direction);
        }
        entered.is_ok() && run.is_ok_and(|run| run.verdict == FORWARDED)
    }

    /// The memory that the program shares.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// How many packets the program has left to the process, by reason.
    pub fn counts(&self) -> [(&'static str, u64); mapping::REASONS.len()] {
        self.counts.read()
    }

    /// What the program has forwarded.
    pub fn taken(&self) -> Taken {
        self.taken
    }

    /// The program, to put it at interfaces.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Carries out changes of the entries, in their order.
    ///
    /// # Errors
    /// If an entry found no room; those after it are not tried.
    pub fn change(&self, changes: &[Change]) -> io::Result<()> {
        let is_same = |a: &Change, b: &Change| {
            matches!(a, Change::Insert { .. }) == matches!(b, Change::Insert { .. })
        };
        for run in changes.chunk_by(is_same) {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for change in run {
                match change {
                    Change::Insert { flow, entry } => {
                        keys.extend(flow);
                        values.extend(entry);
                    }
                    Change::Remove { flow } => keys.extend(flow),
                }
            }
            match values.is_empty() {
                true => self.remove(&keys, run.len()),
                false => bpf::update(&self.flows, &keys, &values, run.len()).map(|_| ())?,
            }
        }
        Ok(())
    }

    /// A batch ends at an entry that does not exist: it goes on after that.
    fn remove(&self, keys: &[u8], count: usize) {
        let mut done = 0;
        while done < count {
            done += bpf::delete(&self.flows, &keys[done * FLOW_LEN..], count - done);
            done += usize::from(done < count);
        }
    }

    /// Runs the program with a frame, as if it came in as `context` says (`struct __sk_buff`). With
    /// `complete`, as if the hardware had summed it up, and the kernel checks that the sum is right
    /// afterwards (Linux 6.17).
    ///
    /// # Errors
    /// If the kernel does not accept the frame, or the sum is wrong (`EBADMSG`).
    pub fn test_run(&self, frame: &[u8], context: &[u8], complete: bool) -> io::Result<Run> {
        const CHECKSUM_COMPLETE: u32 = 1 << 2;
        let flags = if complete { CHECKSUM_COMPLETE } else { 0 };
        bpf::test_run(&self.program.0, frame, context, flags)
    }
}

/// A frame with an empty datagram from port 1 to port 2, whose checksum does not matter.
fn datagram(src: Addr, dst: Addr) -> Vec<u8> {
    const IP: [u8; 8] = [0x60, 0, 0, 0, 0, 8, 17, 64];
    const UDP: [u8; 8] = [0, 1, 0, 2, 0, 8, 1, 1];
    let ethernet = [&[0; 12][..], &[0x86, 0xdd]].concat();
    [&ethernet[..], &IP, src.octets(), dst.octets(), &UDP].concat()
}

/// The code of the program, with the numbers of its maps.
fn linked(maps: &[(&str, &OwnedFd)]) -> Option<Vec<u8>> {
    /// `BPF_PSEUDO_MAP_FD`, in the upper half of the byte for registers.
    const MAP: u8 = 1 << 4;
    let mut program = elf::program(OBJECT, SECTION)?;
    for (at, name) in &program.maps {
        let (_, map) = maps.iter().find(|(known, _)| known == name)?;
        let instruction = program.code.get_mut(*at..at + 8)?;
        instruction[1] = instruction[1] & 15 | MAP;
        instruction[4..8].copy_from_slice(&map.as_raw_fd().to_ne_bytes());
    }
    Some(program.code)
}
