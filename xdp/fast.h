/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The shortest way for most packets: untagged, without options or extension headers, whole, TCP or UDP, in a
 * stable slot, to a real on the link by which it came. It decides nothing of its own: a packet that differs in
 * any respect is left as it is to the general code, which would do just the same with this one (the frame tests
 * and the fuzz hold both against one oracle). It exists for the time that it saves.
 *
 * Whether it is about IPv4 or IPv6 is known when this is compiled: there is one copy of each.
 */
#ifndef VC5_FAST_H
#define VC5_FAST_H

/* What both IP versions have; the addresses as in struct packet. */
struct fast_packet {
	u64 saddr[2];
	u64 daddr[2];
	void *l4;
	u32 l4_bytes;
	u8 protocol;
};

static __always_inline bool fast_read4(const struct iphdr *ip, void *end, struct fast_packet *p)
{
	u32 total;

	if ((void *)(ip + 1) + sizeof(struct tcphdr) > end)
		return false;
	total = bpf_ntohs(ip->tot_len);
	if (*(const u8 *)ip != 0x45 || ip->ttl <= 1 || ip->frag_off & bpf_htons(IPV4_OFFSET | IPV4_MORE_FRAGMENTS))
		return false;
	if (total < sizeof(*ip) || (void *)ip + total > end)
		return false;
	p->saddr[0] = ip->saddr;
	p->daddr[0] = ip->daddr;
	p->protocol = ip->protocol;
	p->l4 = (void *)(ip + 1);
	p->l4_bytes = total - sizeof(*ip);
	return true;
}

static __always_inline bool fast_read6(const struct ipv6hdr *ip, void *end, struct fast_packet *p)
{
	if ((void *)(ip + 1) + sizeof(struct tcphdr) > end)
		return false;
	p->l4_bytes = bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || ip->hop_limit <= 1 || p->l4_bytes > 0xffff - sizeof(*ip))
		return false;
	if ((void *)(ip + 1) + p->l4_bytes > end)
		return false;
	__builtin_memcpy(p->saddr, &ip->saddr, sizeof(p->saddr));
	__builtin_memcpy(p->daddr, &ip->daddr, sizeof(p->daddr));
	p->protocol = ip->nexthdr;
	p->l4 = (void *)(ip + 1);
	return true;
}

/* As the general parser would find it: TCP that doesn't end, or UDP, all there. */
static __always_inline bool fast_content(const struct fast_packet *p)
{
	const struct tcphdr *tcp = p->l4;
	const struct udphdr *udp = p->l4;

	if (p->protocol == IPPROTO_TCP)
		return tcp->doff >= sizeof(*tcp) / 4 && tcp->doff * 4U <= p->l4_bytes && !tcp->fin && !tcp->rst;
	return p->protocol == IPPROTO_UDP && bpf_ntohs(udp->len) >= sizeof(*udp) &&
	       bpf_ntohs(udp->len) <= p->l4_bytes;
}

/* The service's index, where it is in the first of its two places. */
static __always_inline bool fast_find(const struct fast_packet *p, u32 ports, bool ipv6, u32 *index)
{
	u64 key = service_key(ports >> 16, p->protocol);
	struct service_entry4 *entry4;
	struct service_entry6 *entry6;

	if (ipv6) {
		entry6 = service_find_in6(service_first_set(service_hash6(p->daddr, key), SERVICE_SETS6), p->daddr, key);
		if (entry6)
			*index = entry6->value;
		return entry6;
	}
	key |= p->daddr[0];
	entry4 = service_find_in4(service_first_set(service_hash4(key), SERVICE_SETS4), key);
	if (entry4)
		*index = entry4->value;
	return entry4;
}

/* The service of the packet, if all of its flows are in their slots and the frame is for us. */
static __always_inline struct service *fast_service(const struct ethhdr *eth, const struct fast_packet *p,
						    u32 ports, bool ipv6, u32 ifindex)
{
	struct interface *interface = interface_at(ifindex);
	struct service *service;
	u32 index;

	if (!fast_find(p, ports, ipv6, &index) || !interface)
		return NULL;
	if (mac_word(interface->mac) != (mac_of_frame(eth->h_dest) | (u64)INTERFACE_OURS << 48))
		return NULL;
	service = service_at(index);
	return service && !service->flags ? service : NULL;
}

/* A real in MODE_L2 is its own neighbour. */
#define FAST_FLAGS (BACKEND_UP | BACKEND_REACHABLE | BACKEND_ON_LINK)

/* Whether the frame needs no more than other MAC addresses and a smaller TTL to get there. */
static __always_inline bool fast_reachable(const struct backend *backend, u64 link, const struct ethhdr *eth,
					   u32 ifindex)
{
	if ((link >> 48 & (FAST_FLAGS | BACKEND_SET_TAGS)) != FAST_FLAGS)
		return false;
	if (backend->mode != MODE_L2 || leaves_by(backend->ifindex, ifindex) != ifindex)
		return false;
	return mac_of_frame(eth->h_source) != (link & MAC_MASK);
}

static __always_inline void fast_rewrite(struct ethhdr *eth, u64 link, bool ipv6)
{
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);
	u32 sum;

	mac_write(eth->h_source, mac_of_frame(eth->h_dest));
	mac_write(eth->h_dest, link);
	if (ipv6) {
		ip6->hop_limit--;
	} else {
		sum = (u32)ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	}
}

static __always_inline bool fast_path(struct xdp_md *ctx, struct ethhdr *eth, void *end, bool ipv6)
{
	struct fast_packet p = {};
	u32 ports, slot, index;
	struct service *service;
	struct backend *backend;
	u64 hash, link, backends;

	if (!(ipv6 ? fast_read6((void *)(eth + 1), end, &p) : fast_read4((void *)(eth + 1), end, &p)))
		return false;
	if (!fast_content(&p))
		return false;
	ports = *(u32 *)p.l4;
	service = fast_service(eth, &p, ports, ipv6, ctx->ingress_ifindex);
	if (!service)
		return false;
	hash = hash_end(hash_addresses(p.saddr, p.daddr, ipv6), ports, p.protocol);
	slot = slot_lookup(READ_ONCE(service->table), hash_slot(hash));
	backends = READ_ONCE(service->backends);
	if (slot >= backends >> BACKEND_ROOM_SHIFT || sampled(hash, flow_now())) /* unstable ones are larger */
		return false;
	index = (u32)backends + slot;
	backend = backend_at(index);
	if (!backend)
		return false;
	link = mac_word(backend->mac);
	if (!fast_reachable(backend, link, eth, ctx->ingress_ifindex))
		return false;
	fast_rewrite(eth, link, ipv6);
	count_backend(index, end - (void *)eth);
	count_verdict(VERDICT_FORWARDED_STABLE);
	return true;
}

/* Whether the packet was sent on its way, by XDP_TX. */
static __always_inline bool fast_forward(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if ((void *)(eth + 1) > end)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return fast_path(ctx, eth, end, false);
	return eth->h_proto == bpf_htons(ETH_P_IPV6) && fast_path(ctx, eth, end, true);
}

#endif
