/*
 * At the TUN devices: how packets of the process leave, and how datagrams come to it while it is busy.
 */
#include <linux/errno.h>
#include "common.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exit);
} exits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct entrance);
} entrances SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} arrivals SEC(".maps");

/* Addresses that no packet is forwarded from or to: of this network, loopback, multicast, broadcast. */
ALWAYS bool is_unusual_v4(__be32 address)
{
	__u32 first = bpf_ntohl(address) >> 24;
	return !first || first == 127 || first >= 224;
}

/* The same; what is link-local stays on its link. */
ALWAYS bool is_unusual_v6(const struct in6_addr *address)
{
	const __be32 *words = address->in6_u.u6_addr32;
	__u32 first = bpf_ntohl(words[0]);
	return !(words[0] | words[1]) || first >> 24 == 0xff || (first & 0xffc00000) == 0xfe800000;
}

/* Where the kernel would send a packet that the process has written: what to ask it. False means that the packet is
 * unusual. */
ALWAYS bool read_written(struct __sk_buff *skb, struct bpf_fib_lookup *way)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__be16 *ports;
	way->ifindex = skb->ifindex;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;
		ports = (void *)(ip + 1);
		if ((void *)(ports + 2) > end || ip->version != 4 || ip->ihl != 5)
			return false;
		if (ip->frag_off & bpf_htons(0x3fff) || ip->ttl <= 1)
			return false;
		if (is_unusual_v4(ip->saddr) || is_unusual_v4(ip->daddr))
			return false;
		way->family = AF_INET;
		way->l4_protocol = ip->protocol;
		way->tot_len = bpf_ntohs(ip->tot_len);
		way->tos = ip->tos;
		way->ipv4_src = ip->saddr;
		way->ipv4_dst = ip->daddr;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data;
		ports = (void *)(ip + 1);
		if ((void *)(ports + 2) > end || ip->version != 6 || ip->hop_limit <= 1)
			return false;
		if (is_unusual_v6(&ip->saddr) || is_unusual_v6(&ip->daddr))
			return false;
		way->family = AF_INET6;
		way->l4_protocol = ip->nexthdr;
		way->tot_len = sizeof *ip + bpf_ntohs(ip->payload_len);
		way->flowinfo = *(__be32 *)ip & bpf_htonl(0x0fffffff);
		__builtin_memcpy(way->ipv6_src, &ip->saddr, 16);
		__builtin_memcpy(way->ipv6_dst, &ip->daddr, 16);
	} else {
		return false;
	}
	/* The stack drops what is too short, and cuts what is too long. */
	if (way->tot_len != skb->len)
		return false;
	way->sport = ports[0];
	way->dport = ports[1];
	return way->l4_protocol == IPPROTO_TCP || way->l4_protocol == IPPROTO_UDP;
}

/* At a TUN device: what the process has written leaves by the port, past chains and rules that would do nothing to it,
 * if the kernel would send it there and knows the neighbour. All else goes through the stack, which resolves neighbours,
 * and says what is wrong with a packet. */
SEC("tc/exit")
int leave(struct __sk_buff *skb)
{
	__u32 place = skb->ifindex & (EXITS - 1);
	struct exit *exit = bpf_map_lookup_elem(&exits, &place);
	if (!exit)
		return GO_ON;
	__u64 pair = LOAD(exit->pair);
	if (pair >> 32 != skb->ifindex || skb->gso_size || skb->mark)
		return GO_ON;
	/* The lookup below knows the MTU of an interface and of a path, but that of a route of IPv4 only if it is locked. */
	if (skb->len > LOAD(exit->longest))
		return GO_ON;
	struct bpf_fib_lookup way = {};
	if (!read_written(skb, &way))
		return GO_ON;
	if (bpf_fib_lookup(skb, &way, sizeof way, 0) != BPF_FIB_LKUP_RET_SUCCESS || way.ifindex != (__u32)pair)
		return GO_ON;
	/* The redirection expects an Ethernet header in front, and replaces it. */
	if (bpf_skb_change_head(skb, sizeof(struct ethhdr), 0))
		return GO_ON;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	bool is_v4 = skb->protocol == bpf_htons(ETH_P_IP);
	if (is_v4) {
		struct iphdr *ip = data + sizeof(struct ethhdr);
		if ((void *)(ip + 1) > end)
			return lose();
		ip->check = ~fold((__u16)~ip->check + (__u16)~bpf_htons(0x0100));
		ip->ttl--;
		skb->priority = priority_of(ip->tos);
	} else {
		struct ipv6hdr *ip = data + sizeof(struct ethhdr);
		if ((void *)(ip + 1) > end)
			return lose();
		ip->hop_limit--;
	}
	/* A packet of IPv4 may have a next hop of IPv6. */
	struct bpf_redir_neigh hop = { .nh_family = way.family };
	if (way.family == AF_INET)
		hop.ipv4_nh = way.ipv4_dst;
	else
		__builtin_memcpy(hop.ipv6_nh, way.ipv6_dst, 16);
	count_taken(skb, LEFT_PLACE(bpf_get_smp_processor_id(), skb->ifindex, !is_v4));
	return bpf_redirect_neigh(way.ifindex, &hop, sizeof hop, 0);
}

/* Where the header of a datagram begins; 0 for all other packets. */
ALWAYS __u32 datagram_of(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 start = 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;
		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->frag_off & bpf_htons(0x3fff))
			return 0;
		if (ip->protocol == IPPROTO_UDP)
			start = sizeof *ip;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data;
		if ((void *)(ip + 1) > end)
			return 0;
		if (ip->nexthdr == IPPROTO_UDP)
			start = sizeof *ip;
	}
	return skb->len < start + sizeof(struct udphdr) ? 0 : start;
}

/* What follows takes the queue of the device, and is read after what is in the ring. */
ALWAYS int close_entrance(struct entrance *way, enum gate gate)
{
	if (LOAD(way->gate) == OPEN)
		way->gate = gate;
	return GO_ON;
}

/* A packet comes to the process by the ring, or is lost where it would. */
ALWAYS __u64 count_entered(struct __sk_buff *skb)
{
	bool is_v6 = skb->protocol != bpf_htons(ETH_P_IP);
	return count_taken(skb, ENTERED_PLACE(bpf_get_smp_processor_id(), skb->ifindex, is_v6));
}

/* Copies a packet into the ring, and drops it. */
ALWAYS int hand_over(struct __sk_buff *skb, struct entrance *way, __u32 start, const __u32 room)
{
	struct arrival *arrival = bpf_ringbuf_reserve(&arrivals, sizeof *arrival + room, 0);
	if (!arrival) {
		if (LOAD(way->gate) != OPENING)
			return close_entrance(way, FULL);
		count_entered(skb);
		return lose();
	}
	__u32 length = skb->len, field = start + offsetof(struct udphdr, check);
	arrival->tun = skb->ifindex;
	arrival->length = length;
	arrival->flags = arrival->zero = 0;
	arrival->start = start;
	arrival->field = field;
	asm volatile("" : "+r"(length));
	if (!length || length > room || bpf_skb_load_bytes(skb, 0, arrival->bytes, length))
		goto odd;
	/* Nothing tells whether a checksum is still to be finished, except that the packet can't be cut before the end
	 * of it. It has been copied, and goes nowhere else. */
	if (bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0) {
		arrival->flags = VERIFIED;
	} else {
		long refused = bpf_skb_change_tail(skb, field + 1, 0);
		if (refused && (refused != -EINVAL || bpf_skb_change_tail(skb, field + sizeof(__sum16), 0)))
			goto odd;
		if (refused)
			arrival->flags = UNFINISHED;
	}
	/* The process closes the gate before it looks for the last time, and goes to sleep: either it sees that there
	 * is something, or this sees that it must be woken. */
	__u64 before = count_entered(skb); /* a barrier */
	asm volatile("" ::"r"(before) : "memory");
	__u32 gate = LOAD(way->gate);
	bpf_ringbuf_submit(arrival, gate == OPEN || gate == OPENING ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP);
	return TC_ACT_SHOT;
odd:
	bpf_ringbuf_discard(arrival, BPF_RB_NO_WAKEUP);
	return close_entrance(way, CLOSED);
}

/* At a TUN device of which more comes than the process reads: datagrams come to it by a ring, which it reads without a
 * call of the kernel. All other packets come by the queue of the device, and so does a datagram that does not fit: it
 * closes the gate, so that those that follow do not overtake it. */
SEC("tc/entrance")
int enter(struct __sk_buff *skb)
{
	__u32 place = skb->ifindex & (EXITS - 1);
	struct entrance *way = bpf_map_lookup_elem(&entrances, &place);
	if (!way || way->tun != skb->ifindex)
		return GO_ON;
	__u32 gate = LOAD(way->gate);
	if (gate != OPEN && gate != OPENING)
		return GO_ON;
	__u32 start = datagram_of(skb);
	if (!start)
		return GO_ON;
	if (skb->gso_size || skb->len > LONG_PACKET)
		return close_entrance(way, CLOSED);
	if (skb->len > SHORT_PACKET)
		return hand_over(skb, way, start, LONG_PACKET);
	return hand_over(skb, way, start, SHORT_PACKET);
}

char _license[] SEC("license") = "Dual MIT/GPL";
