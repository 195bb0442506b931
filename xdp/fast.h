/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The shortest way for most packets: untagged IPv4 without options, whole, TCP or UDP, in a stable slot, to a
 * real on the link by which it came. It decides nothing of its own: a packet that differs in any respect is
 * left as it is to the general code, which would do just the same with this one (the frame tests and the fuzz
 * hold both against one oracle). It exists for what it saves, about half of the time.
 */
#ifndef VC5_FAST_H
#define VC5_FAST_H

/* As the general parser would find it: TCP that doesn't end, or UDP, all there. */
static __always_inline bool fast_content(const struct iphdr *ip, u32 bytes)
{
	const struct tcphdr *tcp = (void *)(ip + 1);
	const struct udphdr *udp = (void *)(ip + 1);

	if (ip->protocol == IPPROTO_TCP)
		return tcp->doff >= sizeof(*tcp) / 4 && tcp->doff * 4U <= bytes && !tcp->fin && !tcp->rst;
	return ip->protocol == IPPROTO_UDP && bpf_ntohs(udp->len) >= sizeof(*udp) && bpf_ntohs(udp->len) <= bytes;
}

/* `end` is at least 54 bytes behind the start of the frame. */
static __always_inline bool fast_readable(const struct ethhdr *eth, const struct iphdr *ip, void *end)
{
	u32 total = bpf_ntohs(ip->tot_len);

	if (eth->h_proto != bpf_htons(ETH_P_IP) || *(const u8 *)ip != 0x45 || ip->ttl <= 1)
		return false;
	if (ip->frag_off & bpf_htons(IPV4_OFFSET | IPV4_MORE_FRAGMENTS))
		return false;
	return total >= sizeof(*ip) && (void *)ip + total <= end && fast_content(ip, total - sizeof(*ip));
}

/* The service of the packet, if all of its flows are in their slots and the frame is for us. */
static __always_inline struct service *fast_service(const struct ethhdr *eth, const struct iphdr *ip, u32 ports,
						    u32 ifindex)
{
	u64 key = service_key(ports >> 16, ip->protocol) | ip->daddr;
	u64 hash = service_hash_end(hash_mix(0, key));
	struct service_entry4 *entry = service_find_in4(service_first_set(hash, SERVICE_SETS4), key);
	struct interface *interface = interface_at(ifindex);
	struct service *service;

	if (!entry || !interface)
		return NULL;
	if (mac_word(interface->mac) != (mac_of_frame(eth->h_dest) | (u64)INTERFACE_OURS << 48))
		return NULL;
	service = service_at(entry->value);
	return service && !service->flags ? service : NULL;
}

#define FAST_FLAGS (BACKEND_UP | BACKEND_REACHABLE | BACKEND_SET_TAGS)

/* Whether the frame needs no more than other MAC addresses and a smaller TTL to get there. */
static __always_inline bool fast_reachable(const struct backend *backend, u64 link, const struct ethhdr *eth,
					   u32 ifindex)
{
	if ((link >> 48 & FAST_FLAGS) != (BACKEND_UP | BACKEND_REACHABLE))
		return false;
	if (backend->mode != MODE_L2 || leaves_by(backend->ifindex, ifindex) != ifindex)
		return false;
	return !(link >> 48 & BACKEND_ON_LINK) || mac_of_frame(eth->h_source) != (link & MAC_MASK);
}

static __always_inline bool fast_forward(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = (void *)(eth + 1);
	u32 ports, slot, index, sum;
	struct service *service;
	struct backend *backend;
	u64 hash, link, backends;

	if ((void *)(ip + 1) + sizeof(struct tcphdr) > end || !fast_readable(eth, ip, end))
		return false;
	ports = *(u32 *)(ip + 1);
	service = fast_service(eth, ip, ports, ctx->ingress_ifindex);
	if (!service)
		return false;
	hash = hash_end(hash_mix(FLOW_KEY, (u64)ip->daddr << 32 | ip->saddr), ports, ip->protocol);
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
	mac_write(eth->h_source, mac_of_frame(eth->h_dest));
	mac_write(eth->h_dest, link);
	sum = (u32)ip->check + bpf_htons(0x0100);
	ip->check = sum + (sum >= 0xffff);
	ip->ttl--;
	count_backend(index, end - (void *)eth);
	count_verdict(VERDICT_FORWARDED_STABLE);
	return true;
}

#endif
