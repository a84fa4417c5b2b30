/* What the program shares with the process; crates/core/src/fast_path.rs says the same in Rust. */
#pragma once
#include <linux/types.h>

/* Of a packet as it comes in. IPv4 addresses are IPv4-mapped, as in the process. */
struct flow {
	__be32 src[4], dst[4];
	__be16 src_port, dst_port;
	__u32 ifindex;
	__u8 protocol, family, zero[2]; /* family: 4 or 6, so that a mapped address on the wire matches nothing */
};

#define REPLY 1		/* the direction of the packet in its session */
#define PORTS 2		/* ports change */
#define INCOMPLETE 4	/* part of the connection's history is missing: windows are wider */

/* What becomes of it. */
struct action {
	__be32 src[4], dst[4], next_hop[4];
	__be16 src_port, dst_port;
	__u16 address_change, port_change; /* of one's-complement sums (RFC 1624: ~m + m'), network order */
	__u32 ifindex, mtu;		   /* of the port that it leaves by */
	__u32 epoch, session, serial;	   /* what must hold in `groups[group]` and `sessions[session]` */
	__u8 group, flags, shift, zero;	   /* shift: of the windows that the sender advertises */
};

/* Written by the process alone: one store stops a group. */
struct group {
	__u64 lease; /* CLOCK_BOOTTIME, ns: nothing is forwarded after it */
	__u32 epoch, zero;
};

/* What one end has sent. `acked` is written by packets of the other end. */
struct side {
	__u64 packets, bytes;
	__u32 end, acked, window;
	__u32 hole; /* something may be missing between `acked` and `end` */
};

struct session {
	__u64 last;	    /* CLOCK_BOOTTIME, ns, of the last packet */
	__u32 serial, zero; /* written by the process: one store stops a session */
	struct side side[2];
};

/* Where packets are counted that came in by an interface, and were forwarded, and those that leave by one: as packets <<
 * 32 plus segments. CPUs and interfaces may share a place. */
#define TAKEN_PLACE(cpu, ifindex, is_v6) (((cpu) & 15) << 11 | ((ifindex) & 1023) << 1 | (is_v6))
#define GIVEN_PLACE(cpu, ifindex, is_v6) (1 << 15 | TAKEN_PLACE(cpu, ifindex, is_v6))

/* Why a packet goes on to the process. */
enum why { NO_ENTRY, NOT_IN_FORCE, FLAGS, WINDOW, TOO_BIG, ODD, LOST, WHYS };
