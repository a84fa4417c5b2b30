/*
 * Forwards packets of established sessions at the ingress of a port, as the process has decided. Each packet that it
 * does not know all about goes on to the process, unchanged.
 *
 * It never decides that a packet may pass: the process has said so for its flow, and takes it back by one store.
 * Segments of TCP are judged like in crates/core/src/session/tcp.rs.
 */
#include "common.h"

#define F_IPV6 (1ULL << 7)	  /* BPF_F_IPV6, Linux 6.16: complete checksums of IPv6 stay right */
#define MIN_ACK_RANGE 66000	  /* as in tcp.rs */
#define MAX_WINDOW (1 << 29)	  /* as in tcp.rs */
/* The longest headers that are read: Ethernet, IPv6, TCP without options. */
#define LONGEST (sizeof(struct ethhdr) + sizeof(struct ipv6hdr) + sizeof(struct tcphdr))

/* The process makes the maps, in its sizes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct secret);
} secret SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");
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

struct packet {
	struct flow flow;
	__u32 total;	      /* bytes from the IP header on */
	__u32 headers;	      /* of these: IP and transport */
	__u32 seq, ack, last; /* TCP: `last` is the number after the data */
	__u32 window;
	__u32 checksum; /* where that of the transport is in the frame */
	bool unchecked; /* it has none (UDP) */
};

/* What the process has said of the packet's session, read at one time. */
struct way {
	struct flow out; /* the reverse of how it leaves */
	__be32 next_hop[4];
	__u32 mtu, epoch, group;
	__u16 address_change, port_change;
	__u8 flags, shift;
};

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

ALWAYS bool is_same(const struct flow *a, const struct flow *b)
{
	const __u64 *x = (const void *)a, *y = (const void *)b;
	__u64 difference = 0;
#pragma unroll
	for (int i = 0; i < sizeof *a / 8; i++)
		difference |= x[i] ^ y[i];
	return !difference;
}

/* The finalizer of MurmurHash3: flows that differ by equal steps no longer do so. */
ALWAYS __u32 mix(__u32 hash)
{
	hash = (hash ^ hash >> 16) * 0x85ebca6b;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* The session that a place leads to, and the direction. */
ALWAYS struct session *session_at(__u32 place, __u32 *reply, __u32 *serial)
{
	__u32 number = place >> 1 & 0xffff;
	struct session *session = bpf_map_lookup_elem(&sessions, &number);
	if (!session)
		return NULL;
	*serial = LOAD(session->serial);
	barrier();
	*reply = place & 1;
	return session;
}

/* The session of a flow, and the direction.
 *
 * Without CAP_PERFMON the kernel refuses to add a number to an address if it knows that number, but as another one on
 * another path, be it one that is only speculated on. So there is no loop over places, and none is 0 to begin with. */
ALWAYS struct session *find(const struct flow *flow, __u32 *reply, __u32 *serial)
{
	__u32 zero = 0;
	const struct secret *hash = bpf_map_lookup_elem(&secret, &zero);
	if (!hash)
		return NULL;
	const __u32 *words = (const void *)flow;
	__u64 sum = hash->key[FLOW_WORDS];
#pragma unroll
	for (int i = 0; i < FLOW_WORDS; i++)
		sum += hash->key[i] * words[i];
	__u32 mixed = mix(sum >> 32), number = mixed & hash->mask, tag = TAG_OF(mixed);
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &number);
	if (!bucket)
		return NULL;
	/* Two places of a bucket at most have the same tag. */
	__u32 place = LOAD(bucket->place[0]), other = place;
#pragma unroll
	for (int i = 1; i < PLACES; i++) {
		__u32 here = LOAD(bucket->place[i]);
		if (HAS_TAG(here, tag)) {
			other = place;
			place = here;
		}
	}
	if (!HAS_TAG(place, tag))
		return NULL;
	struct session *session = session_at(place, reply, serial);
	if (!session)
		return NULL;
	if (is_same(&session->flow[*reply], flow))
		return session;
	if (!HAS_TAG(other, tag))
		return NULL;
	session = session_at(other, reply, serial);
	if (!session)
		return NULL;
	if (!is_same(&session->flow[*reply], flow))
		return NULL;
	return session;
}

/* Reads what the process has said. It may say something else of this place meanwhile: then the serial has changed. */
ALWAYS bool read_way(struct session *session, __u32 reply, __u32 serial, struct way *way)
{
	__u32 other = reply ^ 1; /* not !reply, of which the compiler makes two paths: see find() */
	way->out = session->flow[other];
	__builtin_memcpy(way->next_hop, session->next_hop[reply], 16);
	way->mtu = session->mtu[reply];
	way->epoch = session->epoch;
	way->group = session->group;
	way->address_change = session->change[reply].address;
	way->port_change = session->change[reply].port;
	way->flags = session->flags;
	way->shift = session->shift[reply];
	barrier();
	return serial && LOAD(session->serial) == serial;
}

/* Brings a number of TCP forward: other CPUs and the process may do so meanwhile, and it must never go back. A segment
 * whose end was forgotten could not be acknowledged. Returns whether it did, and from where. */
ALWAYS bool bring_forward(__u32 *number, __u32 to, __u32 *from)
{
	/* Each time somebody else was faster. */
#pragma unroll
	for (int i = 0; i < 8; i++) {
		__u32 now = LOAD(*number);
		if (!is_before(now, to))
			return false;
		if (__sync_val_compare_and_swap(number, now, to) == now) {
			*from = now;
			return true;
		}
	}
	return false;
}

/* Judges a segment and follows it, like `Tracker::handle` for a segment that moves no state. */
ALWAYS bool follow(struct session *session, __u32 reply, const struct way *way, const struct packet *p)
{
	struct side *own = &session->side[reply], *other = &session->side[reply ^ 1];
	__u32 acked = own->acked, window = other->window, other_acked = other->acked, other_end = other->end;
	__u32 payload = p->total - p->headers, margin = 0, other_margin = 0;
	if (way->flags & INCOMPLETE) {
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
	__u32 before;
	if (bring_forward(&own->end, p->last, &before)) {
		if (acked == before)
			session->hole[reply] = 0;
		if (is_before(before, p->seq))
			session->hole[reply] = 1;
	}
	__u32 agreed = is_before(other_end, p->ack) ? other_end : p->ack;
	bring_forward(&other->acked, agreed, &before);
	__u32 advertised = p->window << (way->shift & 15);
	bring_forward(&own->window, advertised, &before);
	return true;
}

/* Gives the packet its new addresses and ports, and takes a hop. Checksums first: the helper knows unfinished and
 * complete ones. Before the first one succeeds nothing has changed. */
ALWAYS int translate(struct __sk_buff *skb, const struct way *way, const struct packet *p)
{
	bool is_v4 = p->flow.family == 4;
	__u64 flags = p->flow.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u64 pseudo = flags | BPF_F_PSEUDO_HDR | (is_v4 ? 0 : F_IPV6);
	if (p->unchecked) {
		/* Where the hardware has summed up the packet, its sum still follows. */
		if (!is_v4)
			bpf_csum_update(skb, way->address_change);
		bpf_csum_update(skb, way->port_change);
	} else {
		if (way->address_change &&
		    bpf_l4_csum_replace(skb, p->checksum, 0, way->address_change, pseudo))
			return go_on(ODD);
		if (way->flags & PORTS && bpf_l4_csum_replace(skb, p->checksum, 0, way->port_change, flags))
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
		ip->check = ~fold((__u16)~ip->check + way->address_change + (__u16)~bpf_htons(0x0100));
		ip->ttl--;
		ip->saddr = way->out.dst[3];
		ip->daddr = way->out.src[3];
		skb->priority = priority_of(ip->tos);
	} else {
		struct ipv6hdr *ip = data + sizeof(struct ethhdr);
		ports = (void *)(ip + 1);
		if ((void *)(ports + 2) > end)
			return lose();
		ip->hop_limit--;
		__builtin_memcpy(&ip->saddr, way->out.dst, 16);
		__builtin_memcpy(&ip->daddr, way->out.src, 16);
	}
	if (way->flags & PORTS) {
		ports[0] = way->out.dst_port;
		ports[1] = way->out.src_port;
	}
	struct bpf_redir_neigh hop = { .nh_family = is_v4 ? AF_INET : AF_INET6 };
	if (is_v4)
		hop.ipv4_nh = way->next_hop[3];
	else
		__builtin_memcpy(hop.ipv6_nh, way->next_hop, 16);
	return bpf_redirect_neigh(way->out.ifindex, &hop, sizeof hop, 0);
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
	__u32 reply = 0, serial = 0;
	struct session *session = find(&p.flow, &reply, &serial);
	if (!session)
		return go_on(NO_ENTRY);
	struct way way;
	if (!read_way(session, reply, serial, &way))
		return go_on(NOT_IN_FORCE);
	struct group *group = bpf_map_lookup_elem(&groups, &way.group);
	if (!group)
		return go_on(ODD);
	__u64 now = bpf_ktime_get_boot_ns();
	if (LOAD(group->epoch) != way.epoch || LOAD(group->lease) < now)
		return go_on(NOT_IN_FORCE);
	if ((skb->gso_size ? p.headers + skb->gso_size : p.total) > way.mtu)
		return go_on(TOO_BIG);
	if (p.flow.protocol == IPPROTO_TCP && !follow(session, reply, &way, &p))
		return go_on(WINDOW);
	__u32 total = p.total;
	int verdict = translate(skb, &way, &p);
	if (verdict != TC_ACT_REDIRECT)
		return verdict;
	__u32 cpu = bpf_get_smp_processor_id();
	count_taken(skb, TAKEN_PLACE(cpu, skb->ifindex, p.flow.family == 6));
	count_taken(skb, GIVEN_PLACE(cpu, way.out.ifindex, p.flow.family == 6));
	session->last = now;
	/* The process takes packets first: it never takes a packet without its bytes. */
	__sync_fetch_and_add(&session->side[reply].bytes, total);
	__sync_fetch_and_add(&session->side[reply].packets, 1);
	return verdict;
}

char _license[] SEC("license") = "Dual MIT/GPL";
