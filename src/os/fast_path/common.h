/* What the programs of the fast path have in common. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "program.h"

#define ALWAYS static __always_inline
#define GO_ON (-1)		  /* TCX_NEXT, and TC_ACT_UNSPEC */
#define AF_INET 2
#define AF_INET6 10

/* Loads a number which the process may change meanwhile. */
#define LOAD(number) (*(volatile __typeof__(number) *)&(number))

/* The process makes the maps, in its sizes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} taken SEC(".maps");

ALWAYS void count(enum why why)
{
	__u32 key = why;
	__u64 *count = bpf_map_lookup_elem(&counts, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Who looks for what vanishes between a port and the process must know what did not go there, or went there another way,
 * and what leaves without having been there. Where the result is used, this is a barrier for the memory. */
ALWAYS __u64 count_taken(struct __sk_buff *skb, __u32 key)
{
	__u64 *taken_here = bpf_map_lookup_elem(&taken, &key);
	if (!taken_here)
		return 0;
	return __sync_fetch_and_add(taken_here, 1ULL << 32 | (skb->gso_segs ? skb->gso_segs : 1));
}

ALWAYS int go_on(enum why why)
{
	count(why);
	return GO_ON;
}

ALWAYS int lose(void)
{
	count(LOST);
	return TC_ACT_SHOT;
}

ALWAYS __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* As the kernel does where it forwards IPv4 (rt_tos2priority). */
ALWAYS __u32 priority_of(__u8 tos)
{
	return 0x4620 >> (tos >> 3 & 3) * 4 & 15;
}
