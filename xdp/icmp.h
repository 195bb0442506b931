/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ICMP and ICMPv6 for a VIP: pings are answered here; errors are read for the flow they are about; and a
 * client whose packet doesn't fit a tunnel is told (RFC 792, 1191, 4443, 8201).
 */
#ifndef VC5_ICMP_H
#define VC5_ICMP_H

#define ICMP_HOPS 64

/* ICMPv6 types (RFC 4443) */
#define ICMP6_UNREACHABLE   1
#define ICMP6_TOO_BIG       2
#define ICMP6_TIME_EXCEEDED 3
#define ICMP6_PARAMETER     4
#define ICMP6_ECHO_REQUEST  128
#define ICMP6_ECHO_REPLY    129

/* How much of a packet that is too big comes back: as much as a smallest packet of its version has room for. */
#define ICMP4_QUOTE 548  /* 576 - 20 - 8 (RFC 1812, 4.3.2.3) */
#define ICMP6_QUOTE 1232 /* 1280 - 40 - 8 (RFC 4443, 3.2) */

static __always_inline bool is_echo_request(const struct packet *p, const struct icmphdr *icmp)
{
	return icmp->type == (p->ipv6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO) && !icmp->code;
}

static __always_inline bool is_icmp_error(const struct packet *p, const struct icmphdr *icmp)
{
	u8 type = icmp->type;

	if (p->ipv6)
		return type >= ICMP6_UNREACHABLE && type <= ICMP6_PARAMETER;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

#define IPV4_THIS_NETWORK 0   /* 0.0.0.0/8 */
#define IPV4_LOOPBACK     127 /* 127.0.0.0/8 */
#define IPV4_GROUPS       224 /* from here on multicast, reserved addresses and broadcast */
#define IPV6_GROUPS       0xff
#define IPV6_LOOPBACK     (1ULL << 56) /* the low half of ::1, in network byte order */

/*
 * Whether the source is a single host's address, so that an answer may go there (RFC 1122, 3.2.1.3 and 3.2.2;
 * RFC 4443, 2.4 e; RFC 4291, 2.5): a forged one would have us speak to a whole network.
 */
static __always_inline bool source_is_host(const struct packet *p)
{
	u8 first = p->saddr[0]; /* in network byte order: the first one that was sent */

	if (p->ipv6)
		return first != IPV6_GROUPS &&
		       (p->saddr[0] || (p->saddr[1] && p->saddr[1] != IPV6_LOOPBACK));
	return first != IPV4_THIS_NETWORK && first != IPV4_LOOPBACK && first < IPV4_GROUPS;
}

static __always_inline bool echo_ipv4(const struct cursor *frame, const struct packet *p)
{
	struct iphdr *ip = frame_at(frame, p->l3, sizeof(*ip));

	if (!ip)
		return false;
	ip->check = csum_replace(ip->check, ip->ttl, ICMP_HOPS);
	ip->ttl = ICMP_HOPS;
	ip->saddr = p->daddr[0];
	ip->daddr = p->saddr[0];
	return true;
}

static __always_inline bool echo_ipv6(const struct cursor *frame, const struct packet *p)
{
	struct ipv6hdr *ip = frame_at(frame, p->l3, sizeof(*ip));

	if (!ip)
		return false;
	__builtin_memcpy(&ip->saddr, p->daddr, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, p->saddr, sizeof(ip->daddr));
	ip->hop_limit = ICMP_HOPS;
	return true;
}

/* Turns a ping into its answer, in place. */
static __always_inline bool echo_answer(const struct cursor *frame, const struct packet *p)
{
	struct icmphdr *icmp = frame_at(frame, p->l4, sizeof(*icmp));
	struct ethhdr *eth = frame_at(frame, 0, sizeof(*eth));
	u8 reply = p->ipv6 ? ICMP6_ECHO_REPLY : ICMP_ECHOREPLY;

	if (!icmp || !eth)
		return false;
	icmp->checksum = csum_replace(icmp->checksum, icmp->type, reply);
	icmp->type = reply;
	mac_write(eth->h_dest, p->smac);
	mac_write(eth->h_source, p->dmac);
	return p->ipv6 ? echo_ipv6(frame, p) : echo_ipv4(frame, p);
}

/* A header within the quotation of an ICMP message; NULL where that, or the frame, ends before it does. */
static __always_inline void *quoted_at(const struct cursor *frame, const struct packet *p, u32 offset, u32 bytes)
{
	return offset + bytes <= p->l3 + p->total ? frame_at(frame, offset, bytes) : NULL;
}

/* Where the inner packet is in a tunnel whose header after the outer IP header is at `at`; 0: no tunnel. */
static __always_inline u32 quoted_inner(const struct cursor *frame, const struct packet *p, u8 protocol, u32 at)
{
	u8 *gue;

	if (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6)
		return at;
	if (protocol == IPPROTO_GRE)
		return at + sizeof(struct gre_header);
	at += sizeof(struct udphdr);
	gue = quoted_at(frame, p, at, sizeof(*gue));
	if (protocol != IPPROTO_UDP || !gue)
		return 0;
	return *gue >> 4 ? at : at + sizeof(struct gue_header); /* FOU has the IP version there */
}

/* Whether a quoted inner packet is one for a VIP; `cut`: what to say where too little of it is quoted. */
static __always_inline bool quotes_vip(const struct cursor *frame, const struct packet *p, u32 at, bool cut)
{
	struct iphdr *ip = quoted_at(frame, p, at, sizeof(*ip));
	struct ipv6hdr *ip6 = quoted_at(frame, p, at, sizeof(*ip6));
	u64 daddr[2] = {};
	bool ipv6;
	u32 flags;

	if (!ip || (ip->version != 4 && !ip6))
		return cut;
	ipv6 = ip->version == 6;
	if (ipv6 && ip6)
		__builtin_memcpy(daddr, &ip6->daddr, sizeof(daddr));
	else
		daddr[0] = ip->daddr;
	return (ipv6 || ip->version == 4) && service_find(daddr, ipv6, 0, 0, &flags);
}

/*
 * Whether a router says of a packet that we have sent in a tunnel that it is too big for the way. Nothing is done
 * about it: anybody can say so. Of UDP, which the host itself sends too, the inner packet must be there to be seen;
 * some routers quote no more than 8 bytes behind the IP header (RFC 792).
 */
static __always_inline bool is_about_tunnel(const struct cursor *frame, const struct packet *p,
					    const struct icmphdr *icmp)
{
	u32 at = p->l4 + sizeof(*icmp);
	struct ipv6hdr *ip6;
	struct iphdr *ip;
	u64 saddr[2] = {};
	u8 protocol;

	if (p->ipv6) {
		ip6 = quoted_at(frame, p, at, sizeof(*ip6));
		if (icmp->type != ICMP6_TOO_BIG || !ip6 || ip6->version != 6)
			return false;
		__builtin_memcpy(saddr, &ip6->saddr, sizeof(saddr));
		protocol = ip6->nexthdr;
		at += sizeof(*ip6);
	} else {
		ip = quoted_at(frame, p, at, sizeof(*ip));
		if (icmp->type != ICMP_DEST_UNREACH || icmp->code != ICMP_FRAG_NEEDED || !ip ||
		    *(u8 *)ip != 0x45)
			return false;
		saddr[0] = ip->saddr;
		protocol = ip->protocol;
		at += sizeof(*ip);
	}
	if (saddr[0] != p->daddr[0] || saddr[1] != p->daddr[1])
		return false;
	at = quoted_inner(frame, p, protocol, at);
	return at && quotes_vip(frame, p, at, protocol != IPPROTO_UDP);
}

/* Reads the packet that an ICMP error quotes, as far as its ports. It was sent by the real, from the VIP. */
static __always_inline bool parse_quoted(struct cursor *c, const struct packet *p, struct packet *quoted)
{
	u32 *ports;

	c->pos += sizeof(struct icmphdr);
	if (p->ipv6) {
		if (!read_ipv6_addresses(c, quoted) || ((struct ipv6hdr *)c->pos)->version != 6)
			return false;
		quoted->protocol = ((struct ipv6hdr *)c->pos)->nexthdr;
		c->pos += sizeof(struct ipv6hdr);
		if (!skip_extensions(c, quoted))
			return false;
	} else {
		struct iphdr *ip = c->pos;

		if (!read_ipv4_addresses(c, quoted) || ip->version != 4 || ip->ihl < 5)
			return false;
		quoted->protocol = ip->protocol;
		if (ip->frag_off & bpf_htons(IPV4_OFFSET))
			quoted->content = CONTENT_LATER_FRAGMENT;
		c->pos += ip->ihl * 4;
	}
	ports = c->pos;
	if (quoted->content == CONTENT_LATER_FRAGMENT || (void *)(ports + 1) > c->end)
		return false;
	c->pos = ports + 1;
	if (!within_packet(c, p))
		return false;
	quoted->ports = *ports;
	if (quoted->saddr[0] != p->daddr[0] || quoted->saddr[1] != p->daddr[1])
		return false;
	return quoted->protocol == IPPROTO_TCP || quoted->protocol == IPPROTO_UDP;
}

/* Whether this CPU may send one more "too big" answer in this jiffy. */
static __always_inline bool icmp_allowed(void)
{
	const struct settings *settings = settings_get();
	struct icmp_budget *budget = icmp_budget_here();
	u64 now = bpf_jiffies64();

	if (!settings || !budget)
		return false;
	if (budget->jiffy != now) {
		budget->jiffy = now;
		budget->sent = 0;
	}
	return budget->sent++ < settings->icmp_per_jiffy;
}

/* The sum over what is quoted; sizes are those that bpf_csum_diff takes: constant, at most 512. */
static __always_inline bool quote_sum(void *quote, void *end, bool ipv6, u64 *sum)
{
	if (quote + (ipv6 ? ICMP6_QUOTE : ICMP4_QUOTE) > end)
		return false;
	*sum = (u32)bpf_csum_diff(NULL, 0, quote, 512, 0);
	if (!ipv6) {
		*sum += (u32)bpf_csum_diff(NULL, 0, quote + 512, ICMP4_QUOTE - 512, 0);
		return true;
	}
	*sum += (u32)bpf_csum_diff(NULL, 0, quote + 512, 512, 0);
	*sum += (u32)bpf_csum_diff(NULL, 0, quote + 1024, ICMP6_QUOTE - 1024, 0);
	return true;
}

static __always_inline bool too_big_ipv4_write(struct cursor *c, const struct packet *p, u16 mtu)
{
	struct iphdr *ip = c->pos;
	struct icmphdr *icmp = (void *)(ip + 1);
	u64 sum;

	if (!quote_sum(icmp + 1, c->end, false, &sum))
		return false;
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = 0;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*icmp) + ICMP4_QUOTE);
	ip->id = 0;
	ip->frag_off = bpf_htons(IPV4_DONT_FRAGMENT);
	ip->ttl = ICMP_HOPS;
	ip->protocol = IPPROTO_ICMP;
	ip->check = 0;
	ip->saddr = p->daddr[0];
	ip->daddr = p->saddr[0];
	ip->check = ipv4_header_csum(ip);
	icmp->type = ICMP_DEST_UNREACH;
	icmp->code = ICMP_FRAG_NEEDED;
	icmp->checksum = 0;
	icmp->un.frag.__unused = 0;
	icmp->un.frag.mtu = bpf_htons(mtu);
	icmp->checksum = ~csum_fold(sum + csum_words((u32 *)icmp, 2));
	return true;
}

static __always_inline bool too_big_ipv6_write(struct cursor *c, const struct packet *p, u16 mtu)
{
	struct ipv6hdr *ip = c->pos;
	struct icmphdr *icmp = (void *)(ip + 1);
	u32 bytes = sizeof(*icmp) + ICMP6_QUOTE;
	u64 sum;

	if (!quote_sum(icmp + 1, c->end, true, &sum))
		return false;
	*(__be32 *)ip = bpf_htonl(6U << 28);
	ip->payload_len = bpf_htons(bytes);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = ICMP_HOPS;
	__builtin_memcpy(&ip->saddr, p->daddr, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, p->saddr, sizeof(ip->daddr));
	icmp->type = ICMP6_TOO_BIG;
	icmp->code = 0;
	icmp->checksum = 0;
	icmp->un.gateway = bpf_htonl(mtu);
	sum += csum_words((u32 *)icmp, 2) + address_sum(p->saddr, true) + address_sum(p->daddr, true) +
	       bpf_htons(bytes) + bpf_htons(IPPROTO_ICMPV6);
	icmp->checksum = ~csum_fold(sum);
	return true;
}

/* Turns a packet that is too big into the answer that says so. `mtu`: the largest packet that would fit. */
static __always_inline bool too_big_answer(struct xdp_md *ctx, const struct packet *p, u16 mtu)
{
	u32 quote = p->ipv6 ? ICMP6_QUOTE : ICMP4_QUOTE;
	u32 headers = sizeof(struct icmphdr) + (p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	int bytes = frame_bytes(ctx), kept = l2_bytes(&p->tags) + quote;
	struct cursor c;

	if (p->total < quote)
		return false;
	if (bpf_xdp_adjust_tail(ctx, kept - bytes) || bpf_xdp_adjust_head(ctx, -(int)headers))
		return false;
	c = frame_of(ctx);
	c.pos = l2_write(&c, p->smac, p->dmac, &p->tags, bpf_htons(p->ipv6 ? ETH_P_IPV6 : ETH_P_IP));
	if (!c.pos)
		return false;
	return p->ipv6 ? too_big_ipv6_write(&c, p, mtu) : too_big_ipv4_write(&c, p, mtu);
}

#endif
