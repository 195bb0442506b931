/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Our own probes on their way out (TC egress): a mark names the backend, and the packet leaves as a client's
 * packet to that backend would. All other packets are left alone.
 */
#ifndef VC5_PROBE_H
#define VC5_PROBE_H

static __always_inline struct cursor frame_of_skb(struct __sk_buff *skb)
{
	struct cursor c = { .start = (void *)(long)skb->data, .end = (void *)(long)skb->data_end };

	c.pos = c.start;
	return c;
}

static __always_inline bool probe_parse(struct __sk_buff *skb, struct packet *p)
{
	struct cursor c = frame_of_skb(skb);
	__be16 proto;

	if (!parse_ethernet(&c, p, &proto))
		return false;
	if (proto == bpf_htons(ETH_P_IP))
		return read_ipv4_addresses(&c, p) && parse_ipv4(&c, p) && parse_content(&c, p);
	if (proto == bpf_htons(ETH_P_IPV6))
		return read_ipv6_addresses(&c, p) && parse_ipv6(&c, p) && parse_content(&c, p);
	return false;
}

/* Puts the outer headers in front; the kernel keeps the checksum offload of what is inside right. */
static __always_inline bool probe_encapsulate(struct __sk_buff *skb, const struct packet *p,
					      const struct backend *backend, u64 hash)
{
	u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO |
		    (backend->flags & BACKEND_OUTER6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
	struct cursor c = frame_of_skb(skb);
	u64 sum = 0;
	bool summed = inner_sum(&c, p, &sum);
	struct ethhdr *eth;

	if (backend->mode == MODE_GRE)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_GRE;
	else if (backend->mode != MODE_IPIP)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	if (bpf_skb_adjust_room(skb, tunnel_bytes(backend), BPF_ADJ_ROOM_MAC, flags))
		return false;
	c = frame_of_skb(skb);
	eth = c.pos;
	c.pos = eth + 1;
	if (c.pos > c.end)
		return false;
	eth->h_proto = bpf_htons(backend->flags & BACKEND_OUTER6 ? ETH_P_IPV6 : ETH_P_IP);
	return tunnel_write(&c, p, backend, hash, summed, sum);
}

/* L3 DSR on a packet whose checksum the device may yet have to finish. */
static __always_inline bool probe_mark_dscp(struct __sk_buff *skb, const struct packet *p,
					    const struct backend *backend)
{
	u32 l3 = p->l3, l4 = p->l4, offset = l4_csum_offset(p);
	u32 bytes = p->ipv6 ? 16 : 4;
	u64 flags = BPF_F_PSEUDO_HDR | (p->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	u16 marked = bpf_htons(p->ipv6 ? backend->dscp << 6 : backend->dscp << 2);
	u16 kept = bpf_htons(p->ipv6 ? 0xf03f : 0xff03); /* version, length, ECN, flow label */
	s64 diff = bpf_csum_diff((void *)p->daddr, bytes, (void *)backend->destination, bytes, 0);
	u16 before, word;

	if (bpf_skb_load_bytes(skb, l3, &before, 2))
		return false;
	word = (before & kept) | marked;
	if (offset && bpf_l4_csum_replace(skb, l4 + offset, 0, diff, flags))
		return false;
	if (p->ipv6)
		return !bpf_skb_store_bytes(skb, l3 + offsetof(struct ipv6hdr, daddr), (void *)backend->destination, 16, 0) &&
		       !bpf_skb_store_bytes(skb, l3, &word, 2, 0);
	return !bpf_l3_csum_replace(skb, l3 + offsetof(struct iphdr, check), 0, diff, 0) &&
	       !bpf_l3_csum_replace(skb, l3 + offsetof(struct iphdr, check), before, word, 2) &&
	       !bpf_skb_store_bytes(skb, l3 + offsetof(struct iphdr, daddr), (void *)backend->destination, 4, 0) &&
	       !bpf_skb_store_bytes(skb, l3, &word, 2, 0);
}

static __always_inline bool probe_tag(struct __sk_buff *skb, const struct backend *backend)
{
	if (!(backend->flags & BACKEND_SET_TAGS) || !backend->vlan)
		return true;
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), backend->vlan))
		return false;
	return !backend->svlan || !bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD), backend->svlan);
}

/* Everything but the tags, which come last: they hide the L3 header. */
static __always_inline bool probe_rewrite(struct __sk_buff *skb, const struct backend *backend, u64 link, u64 source)
{
	struct packet packet = {};
	u64 hash;

	if (backend->mode != MODE_L2) {
		/* a socket's payload lies in page fragments, and lengths are checked against what is linear */
		if (bpf_skb_pull_data(skb, skb->len) || !probe_parse(skb, &packet))
			return false;
		hash = hash_end(hash_addresses(packet.saddr, packet.daddr, packet.ipv6), packet.ports,
				packet.protocol);
		if (is_tunnel(backend->mode) ? !probe_encapsulate(skb, &packet, backend, hash) :
					       !probe_mark_dscp(skb, &packet, backend))
			return false;
	}
	return !bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_dest), &link, ETH_ALEN, 0) &&
	       !bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_source), &source, ETH_ALEN, 0);
}

static __always_inline int probe_steer(struct __sk_buff *skb)
{
	struct interface *out;
	struct backend *backend;
	u64 link;

	if ((skb->mark & PROBE_MARK_MASK) != PROBE_MARK)
		return TC_ACT_OK;
	backend = backend_at(skb->mark & ~PROBE_MARK_MASK);
	link = backend ? mac_word(backend->mac) : 0;
	out = backend ? interface_at(backend->ifindex) : NULL;
	if (!out || !(link >> 48 & BACKEND_REACHABLE) ||
	    !probe_rewrite(skb, backend, link, mac_word(out->mac)) || !probe_tag(skb, backend)) {
		count_verdict(VERDICT_PROBE_NO_BACKEND);
		return TC_ACT_SHOT;
	}
	count_verdict(VERDICT_PROBE);
	return backend->ifindex == skb->ifindex ? TC_ACT_OK : bpf_redirect(backend->ifindex, 0);
}

#endif
