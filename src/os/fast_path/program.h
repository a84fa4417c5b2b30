/* What the program shares with the process; crates/core/src/fast_path.rs says the same in Rust. */
#pragma once
#include <linux/types.h>

/* Of a packet as it comes in. IPv4 addresses are IPv4-mapped, as in the process. */
struct flow {
	__be32 src[4], dst[4];
	__be16 src_port, dst_port;
	__u32 ifindex;
	__u8 protocol, family, zero[6]; /* family: 4 or 6, so that a mapped address on the wire matches nothing */
} __attribute__((aligned(8)));

#define FLOW_WORDS 11 /* of 4 bytes, that may differ from 0 */

/* How flows are hashed. */
struct secret {
	__u64 key[FLOW_WORDS + 1]; /* the last one is added */
	__u64 mask;		   /* of the numbers of buckets */
};

/* Where flows are found: 14 bits of the hash, USED, the number of the session, the direction. 0: nothing is here. */
#define PLACES 16
#define USED (1U << 17)
#define TAG_OF(hash) (((hash) & ~(2 * USED - 1)) | USED)
#define HAS_TAG(place, tag) (((place) & ~(USED - 1)) == (tag))
struct bucket {
	__u32 place[PLACES];
};

/* Written by the process alone: one store stops a group. */
struct group {
	__u64 lease; /* CLOCK_BOOTTIME, ns: nothing is forwarded after it */
	__u32 epoch, zero;
};

/* What one end has sent. `acked` is written by packets of the other end. */
struct side {
	__u64 bytes;
	__u32 packets, end, acked, window;
};

#define PORTS 1		/* ports change, in either direction */
#define INCOMPLETE 2	/* part of the connection's history is missing: windows are wider */

/* What arrays hold is by direction. The first 64 bytes, a line of the cache, are written by the program, all others by
 * the process alone. */
struct session {
	struct side side[2];
	__u32 hole[2]; /* something may be missing between `acked` and `end` */
	__u64 last;    /* CLOCK_BOOTTIME, ns, of the last packet */
	/* One store of 0 stops a session. It changes before anything below does. */
	__u32 serial;
	__u32 epoch; /* what must hold in `groups[group]` */
	__u8 group, flags, shift[2]; /* shift: of the windows that the sender advertises */
	struct {
		__u16 address, port; /* of one's-complement sums (RFC 1624: ~m + m'), network order */
	} change[2];
	__u32 mtu[2]; /* of the ports that packets leave by */
	__u32 zero;
	/* Packets leave with the reverse of the other direction's flow, by its interface. */
	struct flow flow[2];
	__be32 next_hop[2][4];
	__u32 unused[8];
};
_Static_assert(sizeof(struct session) == 256, "as in Rust");

/* Where packets are counted that came in by an interface, and were forwarded, and those that leave by one: as packets <<
 * 32 plus segments. CPUs and interfaces may share a place. */
#define TAKEN_PLACE(cpu, ifindex, is_v6) (((cpu) & 15) << 11 | ((ifindex) & 1023) << 1 | (is_v6))
#define GIVEN_PLACE(cpu, ifindex, is_v6) (1 << 15 | TAKEN_PLACE(cpu, ifindex, is_v6))

/* Where packets are counted that left by the exit at a TUN device. */
#define LEFT_PLACE(cpu, ifindex, is_v6) (2 << 15 | TAKEN_PLACE(cpu, ifindex, is_v6))

/* By the number of a TUN device, modulo this. */
#define EXITS 1024
struct exit {
	__u64 pair;	     /* that number << 32 | the number of the port's interface */
	__u32 longest, zero; /* bytes of a packet from the IP header on: no route asks for less */
};

/* Where packets are counted that came to the process by the ring, by TUN device. */
#define ENTERED_PLACE(cpu, ifindex, is_v6) (3 << 15 | TAKEN_PLACE(cpu, ifindex, is_v6))

/* Whether datagrams of a TUN device come by the ring, by its number modulo EXITS. The process opens the gate; both close
 * it, the program where a packet does not fit, or the ring is full (FULL). But it closes none that is OPENING: as long as
 * the process reads what was in the queue before, nothing may be put behind that. */
enum gate { CLOSED, OPEN, FULL, OPENING };
struct entrance {
	__u32 tun, gate;
};

/* A packet in the ring, with room for one of these lengths. */
#define SHORT_PACKET 108
#define LONG_PACKET 1524
struct arrival {
	__u32 tun;
	__u16 length; /* from the IP header on */
	__u8 flags, zero;
	__u16 start, field; /* where the header above IP begins, and where its checksum is */
	__u8 bytes[];
};
#define VERIFIED 1   /* the checksum was found to be right */
#define UNFINISHED 2 /* the checksum is still to be finished */

/* Why a packet goes on to the process. */
enum why { NO_ENTRY, NOT_IN_FORCE, FLAGS, WINDOW, TOO_BIG, ODD, LOST, WHYS };
