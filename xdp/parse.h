/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading a frame: one cursor, one small bounds-checked function per header. Each returns true and moves the
 * cursor behind its header, or false where the frame is too short or the header contradicts itself.
 *
 * What is learnt of a packet goes into struct packet, in which IPv4 and IPv6 look alike: everything behind
 * the parser treats them the same.
 */
#ifndef VC5_PARSE_H
#define VC5_PARSE_H

#define MAX_TAGS            2
#define MAX_EXTENSIONS      6
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET         0x1fff
#define IPV4_DONT_FRAGMENT  0x4000
#define IPV6_MORE_FRAGMENTS 0x0001
#define IPV6_OFFSET         0xfff8
#define VLAN_ID             0x0fff

struct vlan_tag {
	__be16 tci;
	__be16 next; /* ethertype of what follows */
};

/* The VLAN tags of a frame, the outermost first. */
struct tags {
	u32 count;
	__be16 tpid[MAX_TAGS];
	__be16 tci[MAX_TAGS];
};

struct fragment_header {
	u8 next;
	u8 reserved;
	__be16 offset;
	__be32 identification;
};

/*
 * FRAGS: a frame larger than a page is in several buffers, and only the first can be read. The program is built
 * for that where an interface's MTU needs it (vc5py/dataplane/driver.py): it costs some nanoseconds.
 */
#ifndef FRAGS
#define FRAGS 0
#endif

struct cursor {
	void *start;
	void *pos;
	void *end;          /* of what can be read */
	struct xdp_md *ctx; /* of a frame that may be longer; else NULL */
};

static __always_inline struct cursor frame_of(struct xdp_md *ctx)
{
	struct cursor c = { .start = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end };

	c.pos = c.start;
	c.ctx = FRAGS ? ctx : NULL;
	return c;
}

/* Bytes of the whole frame. */
static __always_inline u32 frame_bytes(struct xdp_md *ctx)
{
	return FRAGS ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
}

/* Whether the frame has so many bytes from the cursor on, readable or not. */
static __always_inline bool frame_has(const struct cursor *c, u32 bytes)
{
	return c->pos + bytes <= c->end || (c->ctx && c->pos - c->start + bytes <= frame_bytes(c->ctx));
}

#define MAX_OFFSET 0x3fff /* of a header, whatever extension headers there are */

/* A header at an offset that was found earlier; NULL where the frame has become too short. */
static __always_inline void *frame_at(const struct cursor *frame, u32 offset, u32 bytes)
{
	void *at;

	asm volatile("" : "+r"(offset)); /* or the compiler drops the mask, which the verifier needs */
	at = frame->start + (offset & MAX_OFFSET);
	return at + bytes <= frame->end ? at : NULL;
}

/* A MAC address as the low 48 bits of a word. */
static __always_inline u64 mac_of_frame(const u8 *mac)
{
	return (u64)*(const u32 *)mac | (u64)*(const u16 *)(mac + 4) << 32;
}

/* What follows the IP header, as far as the decision is concerned. */
enum content {
	CONTENT_FLOW,          /* TCP or UDP, ports known */
	CONTENT_LATER_FRAGMENT, /* no ports; ports holds the identification */
	CONTENT_ICMP,
	CONTENT_OTHER,
};

/*
 * Numbers only, no pointers: whoever touches the frame later asks frame_at(), which checks the bounds again.
 * So the verifier sees the same state on the many ways through the parser, and has to walk on only once.
 */
struct packet {
	u64 dmac;
	u64 smac;
	u32 l3;           /* offsets from the start of the frame */
	u32 l4;           /* 0 in later fragments */
	u64 saddr[2];     /* network byte order; IPv4 in the low half of [0] */
	u64 daddr[2];
	u64 ports;        /* source (bits 0-15) and destination (16-31), as they lie in the packet */
	u32 identification;
	u32 total;        /* bytes of the IP packet, header included; what lies behind is padding */
	struct tags tags;
	u8 protocol;
	u8 ttl;
	u8 tos;
	enum content content;
	bool ipv6;
	bool first_fragment;
	bool starts;      /* TCP SYN without ACK: a new connection */
	bool ends;        /* TCP FIN or RST */
};

static __always_inline __be16 packet_dport(const struct packet *p)
{
	return p->ports >> 16;
}

/* Leaves the ethertype of what follows the tags in *proto. */
static __always_inline bool parse_ethernet(struct cursor *c, struct packet *p, __be16 *proto)
{
	struct ethhdr *eth = c->pos;

	if ((void *)(eth + 1) > c->end)
		return false;
	*proto = eth->h_proto;
	p->dmac = mac_of_frame(eth->h_dest);
	p->smac = mac_of_frame(eth->h_source);
	c->pos = eth + 1;
	return true;
}

static __always_inline bool is_tag(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

/* Reads up to two tags, of either kind in either place. False where one is truncated. */
static __always_inline bool parse_tags(struct cursor *c, struct packet *p, __be16 *proto)
{
#pragma unroll
	for (int i = 0; i < MAX_TAGS; i++) {
		struct vlan_tag *tag = c->pos;

		if (!is_tag(*proto))
			return true;
		if ((void *)(tag + 1) > c->end)
			return false;
		p->tags.tpid[i] = *proto;
		p->tags.tci[i] = tag->tci;
		p->tags.count = i + 1;
		*proto = tag->next;
		c->pos = tag + 1;
	}
	return true;
}

/* The fixed part only, so that the addresses are known; what it says of lengths is not believed yet. */
static __always_inline bool read_ipv4_addresses(struct cursor *c, struct packet *p)
{
	struct iphdr *ip = c->pos;

	if ((void *)(ip + 1) > c->end)
		return false;
	p->l3 = c->pos - c->start;
	p->saddr[0] = ip->saddr;
	p->daddr[0] = ip->daddr;
	return true;
}

static __always_inline bool parse_ipv4(struct cursor *c, struct packet *p)
{
	struct iphdr *ip = c->pos;
	u32 header_bytes = ip->ihl * 4;

	p->total = bpf_ntohs(ip->tot_len);
	p->protocol = ip->protocol;
	p->ttl = ip->ttl;
	p->tos = ip->tos;
	p->identification = ip->id;
	if (ip->version != 4 || header_bytes < sizeof(*ip) || p->total < header_bytes)
		return false;
	if (!frame_has(c, p->total))
		return false;
	c->pos += header_bytes;
	if (ip->frag_off & bpf_htons(IPV4_OFFSET))
		p->content = CONTENT_LATER_FRAGMENT;
	else if (ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS))
		p->first_fragment = true;
	return true;
}

static __always_inline bool read_ipv6_addresses(struct cursor *c, struct packet *p)
{
	struct ipv6hdr *ip = c->pos;

	if ((void *)(ip + 1) > c->end)
		return false;
	p->l3 = c->pos - c->start;
	p->ipv6 = true;
	__builtin_memcpy(p->saddr, &ip->saddr, sizeof(p->saddr));
	__builtin_memcpy(p->daddr, &ip->daddr, sizeof(p->daddr));
	return true;
}

static __always_inline bool parse_ipv6(struct cursor *c, struct packet *p)
{
	struct ipv6hdr *ip = c->pos;
	u32 total = bpf_ntohs(ip->payload_len) + sizeof(*ip);

	p->total = total;
	p->protocol = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	if (ip->version != 6 || total > 0xffff || !frame_has(c, total))
		return false;
	c->pos = ip + 1;
	return true;
}

static __always_inline bool parse_fragment_header(struct cursor *c, struct packet *p)
{
	struct fragment_header *fragment = c->pos;

	if ((void *)(fragment + 1) > c->end)
		return false;
	p->protocol = fragment->next;
	p->identification = fragment->identification;
	if (fragment->offset & bpf_htons(IPV6_OFFSET))
		p->content = CONTENT_LATER_FRAGMENT;
	else if (fragment->offset & bpf_htons(IPV6_MORE_FRAGMENTS))
		p->first_fragment = true;
	c->pos = fragment + 1;
	return true;
}

/* Hop-by-hop options, destination options, and routing headers that have no segments left. */
static __always_inline bool parse_option_header(struct cursor *c, struct packet *p)
{
	struct ipv6_rt_hdr *header = c->pos;

	if ((void *)(header + 1) > c->end)
		return false;
	if (p->protocol == IPPROTO_ROUTING && header->segments_left)
		return false;
	p->protocol = header->nexthdr;
	c->pos += (header->hdrlen + 1) * 8;
	return true;
}

static __always_inline bool is_extension(u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_FRAGMENT;
}

/* Moves behind all extension headers. False where there are too many, or one that can't be followed. */
static __always_inline bool skip_extensions(struct cursor *c, struct packet *p)
{
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		switch (p->protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			if (!parse_option_header(c, p))
				return false;
			break;
		case IPPROTO_FRAGMENT:
			if (!parse_fragment_header(c, p))
				return false;
			if (p->content == CONTENT_LATER_FRAGMENT)
				return true;
			break;
		default:
			return true;
		}
	}
	return !is_extension(p->protocol);
}

/* Whether what was read so far is of the IP packet, and none of it of the padding behind. */
static __always_inline bool within_packet(const struct cursor *c, const struct packet *p)
{
	return c->pos - c->start <= p->l3 + p->total;
}

/* Bytes of the IP packet from its L4 header on. */
static __always_inline u32 l4_bytes(const struct packet *p)
{
	return p->total - (p->l4 - p->l3);
}

static __always_inline bool parse_tcp(struct cursor *c, struct packet *p)
{
	struct tcphdr *tcp = c->pos;

	if ((void *)(tcp + 1) > c->end || tcp->doff < sizeof(*tcp) / 4 || tcp->doff * 4U > l4_bytes(p))
		return false;
	p->ports = *(u32 *)tcp;
	p->starts = tcp->syn && !tcp->ack;
	p->ends = tcp->fin || tcp->rst;
	return true;
}

static __always_inline bool parse_udp(struct cursor *c, struct packet *p)
{
	struct udphdr *udp = c->pos;

	if ((void *)(udp + 1) > c->end || l4_bytes(p) < sizeof(*udp) || bpf_ntohs(udp->len) < sizeof(*udp))
		return false;
	if (bpf_ntohs(udp->len) > l4_bytes(p) && !p->first_fragment)
		return false;
	p->ports = *(u32 *)udp;
	return true;
}

/* What follows the IP headers. False where it is truncated or impossible. */
static __always_inline bool parse_content(struct cursor *c, struct packet *p)
{
	if (p->content == CONTENT_LATER_FRAGMENT)
		return true;
	p->l4 = c->pos - c->start;
	if (p->protocol == IPPROTO_TCP)
		return parse_tcp(c, p);
	if (p->protocol == IPPROTO_UDP)
		return parse_udp(c, p);
	if (p->protocol == (p->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		p->content = CONTENT_ICMP;
		return c->pos + sizeof(struct icmphdr) <= c->end && l4_bytes(p) >= sizeof(struct icmphdr);
	}
	p->content = CONTENT_OTHER;
	return true;
}

#endif
