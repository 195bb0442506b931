/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What forwarding changes in a frame that keeps its IP header: MAC addresses, VLAN tags, TTL, and for L3 DSR
 * the destination and the DSCP.
 */
#ifndef VC5_REWRITE_H
#define VC5_REWRITE_H

/* A MAC address and the 16 bits of flags behind it, as one word. */
static __always_inline u64 mac_word(const void *mac_and_flags)
{
	return READ_ONCE(*(const u64 *)mac_and_flags);
}

#define MAC_MASK 0x0000ffffffffffffULL /* the address's part of the word (little endian) */

/*
 * A backend's record as one packet sees it: every word that may change is read once, `link` last, as the control
 * plane clears BACKEND_REACHABLE there before it changes what doesn't fit one word.
 */
struct way {
	const struct backend *backend; /* for the outer addresses */
	u64 how;                       /* from backend.mode on */
	u64 place;                     /* from backend.ifindex on */
	u64 link;                      /* from backend.mac on */
};

static __always_inline void way_read(struct way *way, const struct backend *backend)
{
	way->backend = backend;
	way->how = READ_ONCE(*(const u64 *)&backend->mode);
	way->place = READ_ONCE(*(const u64 *)&backend->ifindex);
	way->link = mac_word(backend->mac);
}

static __always_inline u16 way_flags(const struct way *way)
{
	return way->link >> 48;
}

static __always_inline u8 way_mode(const struct way *way)
{
	return way->how & (MODE_OUTER6 - 1);
}

static __always_inline bool way_outer6(const struct way *way)
{
	return way->how & MODE_OUTER6;
}

static __always_inline u8 way_dscp(const struct way *way)
{
	return way->how >> 8;
}

static __always_inline __be16 way_port(const struct way *way)
{
	return way->how >> 16;
}

static __always_inline u16 way_mtu(const struct way *way)
{
	return way->how >> 32;
}

static __always_inline u32 way_ifindex(const struct way *way)
{
	return way->place;
}

static __always_inline u16 way_vlan(const struct way *way)
{
	return way->place >> 32;
}

static __always_inline u16 way_svlan(const struct way *way)
{
	return way->place >> 48;
}

static __always_inline void mac_write(u8 *mac, u64 word)
{
	*(u32 *)mac = word;
	*(u16 *)(mac + 4) = word >> 32;
}

/* The tags that a frame to this backend has; the priority bits are those it came with. */
static __always_inline struct tags tags_towards(const struct way *way, const struct tags *in)
{
	__be16 priority = in->count ? (in->count == MAX_TAGS ? in->tci[1] : in->tci[0]) & bpf_htons(~VLAN_ID) : 0;
	struct tags out = {};

	if (!(way_flags(way) & BACKEND_SET_TAGS))
		return *in;
	if (!way_vlan(way))
		return out;
	out.count = 1;
	out.tpid[0] = bpf_htons(ETH_P_8021Q);
	out.tci[0] = bpf_htons(way_vlan(way)) | priority;
	if (way_svlan(way)) {
		out.count = 2;
		out.tpid[1] = out.tpid[0];
		out.tci[1] = out.tci[0];
		out.tpid[0] = bpf_htons(ETH_P_8021AD);
		out.tci[0] = bpf_htons(way_svlan(way)) | priority;
	}
	return out;
}

static __always_inline u32 l2_bytes(const struct tags *tags)
{
	return sizeof(struct ethhdr) + (tags->count & 3) * sizeof(struct vlan_tag);
}

/* Writes a whole L2 header at the start of the frame; returns its end, or NULL where it doesn't fit. */
static __always_inline void *l2_write(struct cursor *c, u64 destination, u64 source, const struct tags *tags,
				      __be16 proto)
{
	struct ethhdr *eth = c->pos;
	struct vlan_tag *tag = (void *)(eth + 1);

	if ((void *)tag > c->end)
		return NULL;
	mac_write(eth->h_dest, destination);
	mac_write(eth->h_source, source);
	eth->h_proto = tags->count ? tags->tpid[0] : proto;
	if (!tags->count)
		return tag;
	if ((void *)(tag + 1) > c->end)
		return NULL;
	tag->tci = tags->tci[0];
	tag->next = tags->count == MAX_TAGS ? tags->tpid[1] : proto;
	if (tags->count != MAX_TAGS)
		return tag + 1;
	if ((void *)(tag + 2) > c->end)
		return NULL;
	tag[1].tci = tags->tci[1];
	tag[1].next = proto;
	return tag + 2;
}

/* One hop less; for IPv4 the header's checksum with it (the TTL is the high byte of its word). */
static __always_inline bool decrement_ttl(const struct cursor *frame, const struct packet *p)
{
	if (p->ipv6) {
		struct ipv6hdr *ip = frame_at(frame, p->l3, sizeof(*ip));

		if (!ip)
			return false;
		ip->hop_limit--;
	} else {
		struct iphdr *ip = frame_at(frame, p->l3, sizeof(*ip));
		u32 sum;

		if (!ip)
			return false;
		sum = (u32)ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	}
	return true;
}

/* The words of an address, to be summed. */
static __always_inline u64 address_sum(const void *address, bool ipv6)
{
	return ipv6 ? csum_words(address, 4) : csum_words(address, 1);
}

/* Where in the L4 header the checksum is that covers the addresses; 0 where there is none. */
static __always_inline u32 l4_csum_offset(const struct packet *p)
{
	if (!p->l4)
		return 0;
	if (p->protocol == IPPROTO_TCP)
		return offsetof(struct tcphdr, check);
	if (p->protocol == IPPROTO_UDP)
		return offsetof(struct udphdr, check);
	return p->ipv6 && p->protocol == IPPROTO_ICMPV6 ? offsetof(struct icmphdr, checksum) : 0;
}

/* The L4 checksum after another destination address; an absent one of UDP stays absent. */
static __always_inline bool l4_csum_update(const struct cursor *frame, const struct packet *p, u64 from, u64 to)
{
	u32 offset = l4_csum_offset(p);
	u16 *check = frame_at(frame, p->l4 + offset, sizeof(*check));

	if (!offset)
		return true;
	if (!check)
		return false;
	if (p->protocol == IPPROTO_UDP && !*check)
		return true;
	*check = csum_replace(*check, from, to);
	if (p->protocol == IPPROTO_UDP && !*check)
		*check = 0xffff;
	return true;
}

static __always_inline bool dscp_ipv4(const struct cursor *frame, const struct packet *p, u32 destination, u8 tos)
{
	struct iphdr *ip = frame_at(frame, p->l3, sizeof(*ip));

	if (!ip)
		return false;
	ip->tos = tos;
	ip->daddr = destination;
	ip->check = csum_replace(ip->check, p->daddr[0] + bpf_htons(p->tos), (u64)destination + bpf_htons(tos));
	return true;
}

static __always_inline bool dscp_ipv6(const struct cursor *frame, const struct packet *p, const void *destination,
				      u8 tos)
{
	struct ipv6hdr *ip = frame_at(frame, p->l3, sizeof(*ip));

	if (!ip)
		return false;
	ip->priority = tos >> 4;
	ip->flow_lbl[0] = (tos & 15) << 4 | (ip->flow_lbl[0] & 15);
	__builtin_memcpy(&ip->daddr, destination, sizeof(ip->daddr));
	return true;
}

/* L3 DSR: the real's address becomes the destination and the DSCP says which VIP it was. */
static __always_inline bool dscp_rewrite(const struct cursor *frame, const struct packet *p, const struct way *way)
{
	const struct backend *backend = way->backend;
	u64 from = address_sum(p->daddr, p->ipv6), to = address_sum(backend->destination, p->ipv6);
	u8 tos = way_dscp(way) << 2 | (p->tos & 3);

	if (!l4_csum_update(frame, p, from, to))
		return false;
	return p->ipv6 ? dscp_ipv6(frame, p, backend->destination, tos) :
			 dscp_ipv4(frame, p, backend->destination[0], tos);
}

#endif
