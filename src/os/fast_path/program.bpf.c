/*
 * Forwards packets of established sessions at the ingress of a port, as the process has decided. Each packet that it
 * does not know all about goes on to the process, unchanged.
 *
 * It never decides that a packet may pass: an entry says so, as long as the group's lease and epoch and the session's
 * serial are those of the entry. Segments of TCP are judged like in crates/core/src/session/tcp.rs.
 */
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
#define F_IPV6 (1ULL << 7)	  /* BPF_F_IPV6, Linux 6.16: complete checksums of IPv6 stay right */
#define MIN_ACK_RANGE 66000	  /* as in tcp.rs */
#define MAX_WINDOW (1 << 29)	  /* as in tcp.rs */
#define AF_INET 2
#define AF_INET6 10
/* The longest headers that are read: Ethernet, IPv6, TCP without options. */
#define LONGEST (sizeof(struct ethhdr) + sizeof(struct ipv6hdr) + sizeof(struct tcphdr))

/* The process makes the maps, in its sizes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow);
	__type(value, struct action);
} flows SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct group);
} groups SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct session);
} sessions SEC(".maps");
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

struct packet {
	struct flow flow;
	__u32 total;	      /* bytes from the IP header on */
	__u32 headers;	      /* of these: IP and transport */
	__u32 seq, ack, last; /* TCP: `last` is the number after the data */
	__u32 window;
	__u32 checksum; /* where that of the transport is in the frame */
	bool unchecked; /* it has none (UDP) */
};

ALWAYS void count(enum why why)
{
	__u32 key = why;
	__u64 *count = bpf_map_lookup_elem(&counts, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Who looks for what vanishes between a port and the process must know what did not go there, and what leaves without
 * having been there. */
ALWAYS void count_taken(struct __sk_buff *skb, __u32 key)
{
	__u64 *taken_here = bpf_map_lookup_elem(&taken, &key);
	if (taken_here)
		__sync_fetch_and_add(taken_here, 1ULL << 32 | (skb->gso_segs ? skb->gso_segs : 1));
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

/* Is `number` at most `behind` before `base`, and at most `ahead` after it? */
ALWAYS bool is_within(__u32 number, __u32 base, __u32 behind, __u32 ahead)
{
	__s64 offset = (__s32)(number - base);
	return -(__s64)behind <= offset && offset <= (__s64)ahead;
}

ALWAYS bool is_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

/* Reads the header above IP; `at` is where it is in the frame. None of the results means that it is unusual. */
ALWAYS bool read_transport(struct __sk_buff *skb, struct packet *p, void *header, void *end, __u32 at, enum why *why)
{
	__u32 ip = at - sizeof(struct ethhdr);
	if (p->flow.protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = header;
		if ((void *)(tcp + 1) > end)
			return false;
		__u32 length = tcp->doff * 4;
		if (length < sizeof *tcp || ip + length > p->total)
			return false;
		*why = FLAGS;
		if (tcp->syn || tcp->fin || tcp->rst || tcp->urg || !tcp->ack)
			return false;
		p->flow.src_port = tcp->source;
		p->flow.dst_port = tcp->dest;
		p->headers = ip + length;
		p->seq = bpf_ntohl(tcp->seq);
		p->ack = bpf_ntohl(tcp->ack_seq);
		p->last = p->seq + p->total - p->headers;
		p->window = bpf_ntohs(tcp->window);
		p->checksum = at + offsetof(struct tcphdr, check);
		return true;
	}
	if (p->flow.protocol != IPPROTO_UDP)
		return false;
	struct udphdr *udp = header;
	if ((void *)(udp + 1) > end)
		return false;
	__u32 length = bpf_ntohs(udp->len);
	if (length < sizeof *udp || ip + length > p->total)
		return false;
	p->flow.src_port = udp->source;
	p->flow.dst_port = udp->dest;
	p->headers = ip + sizeof *udp;
	p->checksum = at + offsetof(struct udphdr, check);
	p->unchecked = !udp->check;
	return true;
}

ALWAYS bool read_v4(struct __sk_buff *skb, struct packet *p, enum why *why)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5)
		return false;
	if (ip->frag_off & bpf_htons(0x3fff) || ip->ttl <= 1)
		return false;
	/* The kernel verifies this where a packet goes on to the process. */
	__u32 sum = 0;
	__u16 *words = (void *)ip;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	if (fold(sum) != 0xffff)
		return false;
	p->total = bpf_ntohs(ip->tot_len);
	if (p->total + sizeof(struct ethhdr) > skb->len)
		return false;
	p->flow.src[2] = p->flow.dst[2] = bpf_htonl(0xffff);
	p->flow.src[3] = ip->saddr;
	p->flow.dst[3] = ip->daddr;
	p->flow.protocol = ip->protocol;
	p->flow.family = 4;
	return read_transport(skb, p, ip + 1, end, sizeof(struct ethhdr) + sizeof *ip, why);
}

ALWAYS bool read_v6(struct __sk_buff *skb, struct packet *p, enum why *why)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);
	if ((void *)(ip + 1) > end || ip->version != 6 || ip->hop_limit <= 1 || !ip->payload_len)
		return false;
	p->total = sizeof *ip + bpf_ntohs(ip->payload_len);
	if (p->total + sizeof(struct ethhdr) > skb->len)
		return false;
	__builtin_memcpy(p->flow.src, &ip->saddr, 16);
	__builtin_memcpy(p->flow.dst, &ip->daddr, 16);
	p->flow.protocol = ip->nexthdr; /* an extension header is neither TCP nor UDP */
	p->flow.family = 6;
	return read_transport(skb, p, ip + 1, end, sizeof(struct ethhdr) + sizeof *ip, why);
}

/* Judges a segment and follows it, like `Tracker::handle` for a segment that moves no state. */
ALWAYS bool follow(struct session *session, const struct action *action, const struct packet *p)
{
	struct side *own = &session->side[action->flags & REPLY], *other = &session->side[!(action->flags & REPLY)];
	__u32 acked = own->acked, window = other->window, other_acked = other->acked, other_end = other->end;
	__u32 payload = p->total - p->headers, margin = 0, other_margin = 0;
	if (action->flags & INCOMPLETE) {
		margin = (window < MAX_WINDOW ? window : MAX_WINDOW) * 2;
		other_margin = (own->window < MAX_WINDOW ? own->window : MAX_WINDOW) * 2;
	}
	__u32 ahead = (window ? window : 1) + !payload;
	if (!is_within(p->last, acked, window + 2 + margin, ahead + margin))
		return false;
	__u32 range = own->window > MIN_ACK_RANGE ? own->window : MIN_ACK_RANGE;
	__u32 in_flight = is_before(other_end, other_acked) ? 0 : other_end - other_acked;
	if (!is_within(p->ack, other_acked, range + other_margin, in_flight + other_margin))
		return false;
	if (is_before(own->end, p->last)) {
		if (acked == own->end)
			own->hole = 0;
		if (is_before(own->end, p->seq))
			own->hole = 1;
		own->end = p->last;
	}
	__u32 agreed = is_before(other_end, p->ack) ? other_end : p->ack;
	if (is_before(other_acked, agreed))
		other->acked = agreed;
	__u32 advertised = p->window << (action->shift & 15);
	if (own->window < advertised)
		own->window = advertised;
	return true;
}

/* Gives the packet its new addresses and ports, and takes a hop. Checksums first: the helper knows unfinished and
 * complete ones. Before the first one succeeds nothing has changed. */
ALWAYS int translate(struct __sk_buff *skb, const struct action *action, const struct packet *p)
{
	bool is_v4 = p->flow.family == 4;
	__u64 flags = p->flow.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u64 pseudo = flags | BPF_F_PSEUDO_HDR | (is_v4 ? 0 : F_IPV6);
	if (p->unchecked) {
		/* Where the hardware has summed up the packet, its sum still follows. */
		if (!is_v4)
			bpf_csum_update(skb, action->address_change);
		bpf_csum_update(skb, action->port_change);
	} else {
		if (action->address_change &&
		    bpf_l4_csum_replace(skb, p->checksum, 0, action->address_change, pseudo))
			return go_on(ODD);
		if (action->flags & PORTS && bpf_l4_csum_replace(skb, p->checksum, 0, action->port_change, flags))
			return lose();
	}
	/* The header of IPv6 has no checksum that would make up for the hop. */
	if (!is_v4)
		bpf_csum_update(skb, (__u16)~bpf_htons(1));
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__be16 *ports;
	if (is_v4) {
		struct iphdr *ip = data + sizeof(struct ethhdr);
		ports = (void *)(ip + 1);
		if ((void *)(ports + 2) > end)
			return lose();
		ip->check = ~fold((__u16)~ip->check + action->address_change + (__u16)~bpf_htons(0x0100));
		ip->ttl--;
		ip->saddr = action->src[3];
		ip->daddr = action->dst[3];
	} else {
		struct ipv6hdr *ip = data + sizeof(struct ethhdr);
		ports = (void *)(ip + 1);
		if ((void *)(ports + 2) > end)
			return lose();
		ip->hop_limit--;
		__builtin_memcpy(&ip->saddr, action->src, 16);
		__builtin_memcpy(&ip->daddr, action->dst, 16);
	}
	if (action->flags & PORTS) {
		ports[0] = action->src_port;
		ports[1] = action->dst_port;
	}
	struct bpf_redir_neigh hop = { .nh_family = is_v4 ? AF_INET : AF_INET6 };
	if (is_v4)
		hop.ipv4_nh = action->next_hop[3];
	else
		__builtin_memcpy(hop.ipv6_nh, action->next_hop, 16);
	return bpf_redirect_neigh(action->ifindex, &hop, sizeof hop, 0);
}

SEC("tc")
int fast_path(struct __sk_buff *skb)
{
	/* What is for other machines, or of a VLAN, is not the port's. */
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return GO_ON;
	if (skb->data + LONGEST > skb->data_end && skb->len >= LONGEST && bpf_skb_pull_data(skb, LONGEST))
		return go_on(ODD);
	struct packet p = {};
	enum why why = ODD;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!read_v4(skb, &p, &why))
			return go_on(why);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!read_v6(skb, &p, &why))
			return go_on(why);
	} else {
		return GO_ON;
	}
	p.flow.ifindex = skb->ifindex;
	struct action *action = bpf_map_lookup_elem(&flows, &p.flow);
	if (!action)
		return go_on(NO_ENTRY);
	__u32 number = action->group;
	struct group *group = bpf_map_lookup_elem(&groups, &number);
	number = action->session;
	struct session *session = bpf_map_lookup_elem(&sessions, &number);
	if (!group || !session)
		return go_on(ODD);
	__u64 now = bpf_ktime_get_boot_ns();
	if (*(volatile __u32 *)&group->epoch != action->epoch || *(volatile __u64 *)&group->lease < now ||
	    *(volatile __u32 *)&session->serial != action->serial)
		return go_on(NOT_IN_FORCE);
	if ((skb->gso_size ? p.headers + skb->gso_size : p.total) > action->mtu)
		return go_on(TOO_BIG);
	if (p.flow.protocol == IPPROTO_TCP && !follow(session, action, &p))
		return go_on(WINDOW);
	__u32 total = p.total, reply = action->flags & REPLY;
	int verdict = translate(skb, action, &p);
	if (verdict != TC_ACT_REDIRECT)
		return verdict;
	__u32 cpu = bpf_get_smp_processor_id();
	count_taken(skb, TAKEN_PLACE(cpu, skb->ifindex, p.flow.family == 6));
	count_taken(skb, GIVEN_PLACE(cpu, action->ifindex, p.flow.family == 6));
	session->last = now;
	__sync_fetch_and_add(&session->side[reply].packets, 1);
	__sync_fetch_and_add(&session->side[reply].bytes, total);
	return verdict;
}

char _license[] SEC("license") = "Dual MIT/GPL";
