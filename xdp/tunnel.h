/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Encapsulation: the headers put in front of a packet to get it to a real that is not on our L2.
 */
#ifndef VC5_TUNNEL_H
#define VC5_TUNNEL_H

#define TUNNEL_TTL 64
#define GUE_VERSION_0 0 /* no options: version, control bit and length are all zero */

struct gre_header {
	__be16 flags;
	__be16 proto;
};

struct gue_header {
	u8 version_and_length;
	u8 proto;
	__be16 flags;
};

static __always_inline bool is_tunnel(u8 mode)
{
	return mode == MODE_IPIP || mode == MODE_GRE || mode == MODE_FOU || mode == MODE_GUE;
}

/*
 * Whether packets get there: by a neighbour who, where nothing in the packet says more, is the real itself; and
 * in a tunnel from an address of ours.
 */
static __always_inline bool way_open(const struct way *way)
{
	if (!(way_flags(way) & BACKEND_REACHABLE))
		return false;
	if (way_mode(way) == MODE_L2)
		return way_flags(way) & BACKEND_ON_LINK;
	return !is_tunnel(way_mode(way)) || way->backend->source[0];
}

static __always_inline u32 tunnel_bytes(const struct way *way)
{
	u32 bytes = way_outer6(way) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);

	if (way_mode(way) == MODE_GRE)
		return bytes + sizeof(struct gre_header);
	if (way_mode(way) == MODE_FOU)
		return bytes + sizeof(struct udphdr);
	if (way_mode(way) == MODE_GUE)
		return bytes + sizeof(struct udphdr) + sizeof(struct gue_header);
	return bytes;
}

/* The protocol number of the packet inside, where the protocol around it is IP or GUE. */
static __always_inline u8 inner_protocol(const struct packet *p)
{
	return p->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
}

static __always_inline u8 outer_protocol(const struct packet *p, u8 mode)
{
	if (mode == MODE_GRE)
		return IPPROTO_GRE;
	return mode == MODE_IPIP ? inner_protocol(p) : IPPROTO_UDP;
}

/* Whether a UDP datagram has a checksum, over all that is left of the packet. */
static __always_inline bool udp_covers_all(const struct cursor *frame, const struct packet *p)
{
	struct udphdr *udp = frame_at(frame, p->l4, sizeof(*udp));

	return udp && udp->check && bpf_ntohs(udp->len) == l4_bytes(p);
}

/*
 * The sum over the inner packet without reading it: a packet with a right L4 checksum sums up to the inverse
 * of its pseudo header, and an IPv4 header to nothing (local checksum offload). False where that isn't so:
 * fragments, extension headers, UDP without a checksum or with bytes behind the datagram.
 */
static __always_inline bool inner_sum(const struct cursor *frame, const struct packet *p, u64 *sum)
{
	u32 header = p->l4 - p->l3;
	u16 *check = frame_at(frame, p->l4 + l4_csum_offset(p), sizeof(*check));
	u32 *words;

	if (!p->l4 || p->first_fragment || (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP))
		return false;
	if (!check || (p->protocol == IPPROTO_UDP && !udp_covers_all(frame, p)))
		return false;
	if (!p->ipv6) {
		u64 pseudo = address_sum(p->saddr, false) + address_sum(p->daddr, false) +
			     bpf_htons(p->protocol) + bpf_htons(p->total - header);

		*sum = (u16)~csum_fold(pseudo);
		return true;
	}
	words = frame_at(frame, p->l3, sizeof(struct ipv6hdr));
	if (!words || header != sizeof(struct ipv6hdr))
		return false;
	/* addresses and length stand in the header and in the pseudo header alike, and cancel out */
	*sum = (u64)words[0] + ((u16 *)words)[3] + (u16)~bpf_htons(p->protocol);
	return true;
}

static __always_inline __be16 entropy_port(u64 hash)
{
	return bpf_htons(0xc000 | (hash >> 32 & 0x3fff));
}

static __always_inline bool outer_ipv4_write(struct cursor *c, const struct packet *p,
					     const struct way *way, u32 total)
{
	struct iphdr *ip = c->pos;

	if ((void *)(ip + 1) > c->end)
		return false;
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = p->tos;
	ip->tot_len = bpf_htons(total);
	ip->id = 0; /* never fragmented (RFC 6864, 4.1) */
	ip->frag_off = bpf_htons(IPV4_DONT_FRAGMENT);
	ip->ttl = TUNNEL_TTL;
	ip->protocol = outer_protocol(p, way_mode(way));
	ip->check = 0;
	ip->saddr = way->backend->source[0];
	ip->daddr = way->backend->destination[0];
	ip->check = ipv4_header_csum(ip);
	c->pos = ip + 1;
	return true;
}

static __always_inline bool outer_ipv6_write(struct cursor *c, const struct packet *p,
					     const struct way *way, u32 total, u64 hash)
{
	struct ipv6hdr *ip = c->pos;

	if ((void *)(ip + 1) > c->end)
		return false;
	*(__be32 *)ip = bpf_htonl(6U << 28 | (u32)p->tos << 20 | (hash >> 32 & 0xfffff));
	ip->payload_len = bpf_htons(total - sizeof(*ip));
	ip->nexthdr = outer_protocol(p, way_mode(way));
	ip->hop_limit = TUNNEL_TTL;
	__builtin_memcpy(&ip->saddr, way->backend->source, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, way->backend->destination, sizeof(ip->daddr));
	c->pos = ip + 1;
	return true;
}

/* UDP, and GUE behind it. Over IPv4 the checksum may be absent; over IPv6 it is there where it is known. */
static __always_inline bool outer_udp_write(struct cursor *c, const struct packet *p,
					    const struct way *way, u64 hash, bool summed, u64 sum)
{
	u32 gue_bytes = way_mode(way) == MODE_GUE ? sizeof(struct gue_header) : 0;
	u32 bytes = sizeof(struct udphdr) + gue_bytes + p->total;
	struct udphdr *udp = c->pos;
	struct gue_header *gue = (void *)(udp + 1);

	if ((void *)gue > c->end)
		return false;
	udp->source = entropy_port(hash);
	udp->dest = way_port(way);
	udp->len = bpf_htons(bytes);
	udp->check = 0;
	c->pos = gue;
	if (gue_bytes) {
		if ((void *)(gue + 1) > c->end)
			return false;
		gue->version_and_length = GUE_VERSION_0;
		gue->proto = inner_protocol(p);
		gue->flags = 0;
		sum += *(u32 *)gue;
		c->pos = gue + 1;
	}
	if (summed && way_outer6(way)) {
		sum += address_sum(way->backend->source, true) + address_sum(way->backend->destination, true) +
		       bpf_htons(IPPROTO_UDP) + bpf_htons(bytes) + csum_words((u32 *)udp, sizeof(*udp) / 4);
		udp->check = ~csum_fold(sum);
		if (!udp->check)
			udp->check = 0xffff;
	}
	return true;
}

/* Writes all outer headers behind the L2 header; the room for them has been made. */
static __always_inline bool tunnel_write(struct cursor *c, const struct packet *p, const struct way *way,
					 u64 hash, bool summed, u64 sum)
{
	u32 total = p->total + tunnel_bytes(way);

	if (way_outer6(way) ? !outer_ipv6_write(c, p, way, total, hash) :
					      !outer_ipv4_write(c, p, way, total))
		return false;
	if (way_mode(way) == MODE_GRE) {
		struct gre_header *gre = c->pos;

		if ((void *)(gre + 1) > c->end)
			return false;
		gre->flags = 0;
		gre->proto = bpf_htons(p->ipv6 ? ETH_P_IPV6 : ETH_P_IP);
		return true;
	}
	return way_mode(way) == MODE_IPIP || outer_udp_write(c, p, way, hash, summed, sum);
}

#endif
