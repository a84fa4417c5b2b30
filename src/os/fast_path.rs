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
mod ring;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use tandemgw_core::fast_path::{
    Entry, Flow, Index, KEYS, MOST_SESSIONS, Memory, Secret, Way, buckets_for,
};
use tandemgw_core::flow::{Addr, Direction, FlowKey, GroupId, Protocol};
use tandemgw_core::session::Numbers;
use tandemgw_core::time::Time;

use super::clock;
use super::netlink::{Netlink, NetlinkError};
pub use bpf::Run;
pub use mapping::{Exits, Taken, TakenCount};
pub use ring::{Arrival, Arrivals, Gate, Mark};
use tandemgw_core::in_quotes::InQuotes;

const OBJECT: &[u8] = include_bytes!("fast_path/program.bpf.o");
const SECTION: &str = "tc";
/// The programs at TUN devices.
const TUN_OBJECT: &[u8] = include_bytes!("fast_path/tun.bpf.o");
const EXIT_SECTION: &str = "tc/exit";
const ENTRANCE_SECTION: &str = "tc/entrance";

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
    program: Program,
    /// The program at the ingress of TUN devices; none on a kernel that refuses it.
    exit: Option<Program>,
    /// That at their egress, and what it hands over; the same.
    entrance: Option<(Program, Arrivals)>,
    memory: Memory,
    counts: mapping::Counts,
    taken: Taken,
    exits: Exits,
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
        match self.attach_link(interface) {
            // Before Linux 6.6.
            Err(it) if it.error.raw_os_error() == Some(libc::EINVAL) => {
                self.attach_as_filter(interface)
            }
            result => result,
        }
    }

    /// Puts the program at the ingress of an interface, where the kernel removes it when the
    /// process ends (tcx, Linux 6.6).
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses.
    pub fn attach_link(&self, interface: u32) -> Result<Attached, Unavailable> {
        self.attach_to(interface, bpf::Side::Ingress)
    }

    /// The same at the egress.
    ///
    /// # Errors
    /// As for [`attach_link`](Self::attach_link).
    pub fn attach_to_egress(&self, interface: u32) -> Result<Attached, Unavailable> {
        self.attach_to(interface, bpf::Side::Egress)
    }

    fn attach_to(&self, interface: u32, side: bpf::Side) -> Result<Attached, Unavailable> {
        let link = bpf::attach(&self.0, interface, side);
        let link = link.map_err(unavailable("attaching the program"))?;
        Ok(Attached(At::Link { _link: link }))
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
    bpf::programs_at(interface, bpf::Side::Ingress).unwrap_or_default()
}

/// The same at the egress.
pub fn programs_at_egress(interface: u32) -> Vec<u32> {
    bpf::programs_at(interface, bpf::Side::Egress).unwrap_or_default()
}

/// A program at an interface, for as long as this lives.
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
    /// Loads the program, with room for this number of groups, and of sessions up to
    /// [`MOST_SESSIONS`].
    ///
    /// # Errors
    /// [`Unavailable`], for an operator to read.
    pub fn load(sessions: u32, groups: u32) -> Result<FastPath, Unavailable> {
        let sessions = sessions.min(MOST_SESSIONS) as usize;
        let (group_map, groups) = mapping::array("groups", groups as usize)?;
        let (session_map, sessions) = mapping::array("sessions", sessions)?;
        let (bucket_map, buckets) = mapping::array("buckets", buckets_for(sessions.len()))?;
        let (secret_map, secret) = mapping::array::<Secret>("secret", 1)?;
        let (count_map, counts) = mapping::array("counts", mapping::REASONS.len())?;
        let (taken_map, taken) = mapping::array("taken", mapping::TAKEN_PLACES)?;
        let (exit_map, exits) = mapping::array("exits", mapping::TUN_PLACES)?;
        secret[0].set(
            keys().map_err(unavailable("random numbers"))?,
            buckets.len(),
        );
        let maps = [
            ("groups", &group_map),
            ("sessions", &session_map),
            ("buckets", &bucket_map),
            ("secret", &secret_map),
            ("counts", &count_map),
            ("taken", &taken_map),
            ("exits", &exit_map),
        ];
        let program = load_program("fast_path", OBJECT, SECTION, &maps)?;
        let exit = load_program("exit", TUN_OBJECT, EXIT_SECTION, &maps);
        let entrance = load_entrance(&maps);
        let index = Index {
            buckets,
            secret: &secret[0],
        };
        Ok(FastPath {
            program,
            exit: exit.inspect_err(|error| log_missing("exit", error)).ok(),
            entrance: entrance
                .inspect_err(|error| log_missing("entrance", error))
                .ok(),
            memory: Memory {
                groups,
                sessions,
                index,
            },
            counts: mapping::Counts(counts),
            taken: Taken(taken),
            exits: Exits(exits),
        })
    }

    /// Whether the kernel can keep the checksums of translated IPv6 right (`BPF_F_IPV6`, from Linux
    /// 6.16): whether the program forwards such a packet. Call it before the memory is used.
    pub fn knows_ipv6(&self) -> bool {
        const LOOPBACK: u32 = 1;
        let [src, dst, other] =
            [1, 2, 3].map(|n| Addr::from(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])));
        let way = |src, dst, ports: (u16, u16)| Way {
            flow: Flow {
                key: FlowKey {
                    src,
                    dst,
                    src_port: ports.0,
                    dst_port: ports.1,
                    protocol: Protocol::UDP,
                },
                interface: LOOPBACK,
            },
            next_hop: dst,
            mtu: 1500,
        };
        let entry = Entry {
            ways: [way(src, dst, (1, 2)), way(dst, other, (2, 1))],
            group: GroupId(0),
            epoch: 0,
            shifts: [0; 2],
            is_incomplete: false,
        };
        let (Some(group), Some(cell)) = (self.memory.groups.first(), self.memory.sessions.first())
        else {
            return false;
        };
        group.lease(Time::from_nanos(u64::MAX));
        let numbers = Numbers::default();
        let entered = self.memory.enter(0, (Time::ZERO, 1), &numbers, &entry);
        let run = self.test_run(&datagram(src, dst), &[], false);
        self.memory.leave(0);
        group.lease(Time::ZERO);
        for direction in Direction::ALL {
            cell.take(direction);
        }
        entered && run.is_ok_and(|run| run.verdict == FORWARDED)
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

    /// The program, to put it at the interfaces of ports.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The program for TUN devices; none on a kernel that refuses it.
    pub fn exit(&self) -> Option<&Program> {
        self.exit.as_ref()
    }

    /// The program that hands packets over at TUN devices; none on a kernel that refuses it.
    pub fn entrance(&self) -> Option<&Program> {
        self.entrance.as_ref().map(|(program, _)| program)
    }

    /// What it hands over.
    pub fn arrivals(&mut self) -> Option<&mut Arrivals> {
        self.entrance.as_mut().map(|(_, arrivals)| arrivals)
    }

    /// It is not used.
    pub fn lose_entrance(&mut self) {
        self.entrance = None;
    }

    /// Which TUN devices use it.
    pub fn exits(&self) -> Exits {
        self.exits
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

/// Without one of the programs at TUN devices, packets take the way that is longer.
fn log_missing(what: &str, error: &Unavailable) {
    log::debug!("no {what} of the fast path error={}", InQuotes(error));
}

/// Random numbers, by which nobody can tell how flows are hashed.
fn keys() -> io::Result<[u64; KEYS]> {
    let bytes: [u8; KEYS * 8] = clock::random_bytes()?;
    let mut keys = [0; KEYS];
    for (key, bytes) in keys.iter_mut().zip(bytes.as_chunks().0) {
        *key = u64::from_ne_bytes(*bytes);
    }
    Ok(keys)
}

/// A frame with an empty datagram from port 1 to port 2, whose checksum does not matter.
fn datagram(src: Addr, dst: Addr) -> Vec<u8> {
    const IP: [u8; 8] = [0x60, 0, 0, 0, 0, 8, 17, 64];
    const UDP: [u8; 8] = [0, 1, 0, 2, 0, 8, 1, 1];
    let ethernet = [&[0; 12][..], &[0x86, 0xdd]].concat();
    [&ethernet[..], &IP, src.octets(), dst.octets(), &UDP].concat()
}

/// Loads the program at the egress of TUN devices, and makes the ring that it puts packets into.
fn load_entrance(maps: &[(&str, &OwnedFd)]) -> Result<(Program, Arrivals), Unavailable> {
    let (entrance_map, entrances) = mapping::array("entrances", mapping::TUN_PLACES)?;
    let ring = bpf::create_ring("arrivals", ring::RING).map_err(unavailable("making a ring"))?;
    let maps = [maps, &[("entrances", &entrance_map), ("arrivals", &ring)]].concat();
    let program = load_program("entrance", TUN_OBJECT, ENTRANCE_SECTION, &maps)?;
    Ok((program, Arrivals::new(ring, entrances)?))
}

/// Loads the program of a section.
fn load_program(
    name: &str,
    object: &[u8],
    section: &str,
    maps: &[(&str, &OwnedFd)],
) -> Result<Program, Unavailable> {
    let code =
        linked(object, section, maps).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
    let code = code.map_err(unavailable("reading the program"))?;
    let program = bpf::load_program(name, &code, c"Dual MIT/GPL");
    program
        .map(|program| Program(Arc::new(program)))
        .map_err(unavailable("loading the program"))
}

/// The code of a program, with the numbers of its maps.
fn linked(object: &[u8], section: &str, maps: &[(&str, &OwnedFd)]) -> Option<Vec<u8>> {
    /// `BPF_PSEUDO_MAP_FD`, in the upper half of the byte for registers.
    const MAP: u8 = 1 << 4;
    let mut program = elf::program(object, section)?;
    for (at, name) in &program.maps {
        let (_, map) = maps.iter().find(|(known, _)| known == name)?;
        let instruction = program.code.get_mut(*at..at + 8)?;
        instruction[1] = instruction[1] & 15 | MAP;
        instruction[4..8].copy_from_slice(&map.as_raw_fd().to_ne_bytes());
    }
    Some(program.code)
}
