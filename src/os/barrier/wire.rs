//! Counts the packets that come in by an interface before anybody's filters see them, those of tc
//! among them: on packet sockets that keep nothing.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::os::check;
use crate::os::packet_socket::{bind, ignore_outgoing, new_socket, set_option};

/// One socket for each family, IPv4 first.
pub(super) struct Wire {
    sockets: [OwnedFd; 2],
    counts: [u64; 2],
}

impl Wire {
    /// Begins to count what comes by the interface of that number, for its hardware address and of
    /// no VLAN.
    ///
    /// # Errors
    /// What the kernel says (no `CAP_NET_RAW`).
    pub(super) fn open(index: u32) -> io::Result<Wire> {
        Ok(Wire {
            sockets: [open(index, libc::ETH_P_IP)?, open(index, libc::ETH_P_IPV6)?],
            counts: [0; 2],
        })
    }

    /// How many packets have come until now, by family.
    pub(super) fn read(&mut self) -> [u64; 2] {
        for (socket, count) in self.sockets.iter().zip(&mut self.counts) {
            *count += u64::from(taken(socket).unwrap_or(0));
        }
        self.counts
    }
}

fn open(index: u32, ethertype: libc::c_int) -> io::Result<OwnedFd> {
    // Protocol 0: it receives nothing before the filter is in place.
    let socket = new_socket(libc::AF_PACKET, libc::SOCK_RAW)?;
    let filter = filter(ethertype as u32);
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_ptr().cast_mut(),
    };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    // The least that there is: what finds no room is counted too, and costs next to nothing.
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &0i32)?;
    ignore_outgoing(&socket)?;
    // Only sockets for all protocols see packets before tc does.
    bind(&socket, index.cast_signed())?;
    Ok(socket)
}

/// Accepts a byte of what is for this host, of no VLAN, and of one family.
fn filter(ethertype: u32) -> [libc::sock_filter; 8] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const ETHERTYPE: u32 = 12;
    let about = |what: libc::c_int| (libc::SKF_AD_OFF + what) as u32;
    let op = |code: u32, k: u32, jf: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    [
        op(LOAD | libc::BPF_B, about(libc::SKF_AD_PKTTYPE), 0),
        op(IF_EQUAL, u32::from(libc::PACKET_HOST), 5),
        op(LOAD | libc::BPF_B, about(libc::SKF_AD_VLAN_TAG_PRESENT), 0),
        op(IF_EQUAL, 0, 3),
        op(LOAD | libc::BPF_H, ETHERTYPE, 0),
        op(IF_EQUAL, ethertype, 1),
        op(RETURN, 1, 0),
        op(RETURN, 0, 0),
    ]
}

/// How many packets a socket has seen since the last call, kept or not.
fn taken(socket: &OwnedFd) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: `statistics` is writable for `length` bytes, and both are borrowed for the call only.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    })?;
    Ok(statistics.tp_packets)
}
