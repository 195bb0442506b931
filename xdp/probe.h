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
					      const struct way *way, u64 hash)
{
	u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO |
		    (way_outer6(way) ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
	struct cursor c = frame_of_skb(skb);
	u64 sum = 0;
	bool summed = inner_sum(&c, p, &sum);
	struct ethhdr *eth;

	if (way_mode(way) == MODE_GRE)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_GRE;
	else if (way_mode(way) != MODE_IPIP)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	if (bpf_skb_adjust_room(skb, tunnel_bytes(way), BPF_ADJ_ROOM_MAC, flags))
		return false;
	c = frame_of_skb(skb);
	eth = c.pos;
	c.pos = eth + 1;
	if (c.pos > c.end)
		return false;
	eth->h_proto = bpf_htons(way_outer6(way) ? ETH_P_IPV6 : ETH_P_IP);
	return tunnel_write(&c, p, way, hash, summed, sum);
}

/* L3 DSR on a packet whose checksum the device may yet have to finish. */
static __always_inline bool probe_mark_dscp(struct __sk_buff *skb, const struct packet *p,
					    const struct way *way)
{
	u32 l3 = p->l3, l4 = p->l4, offset = l4_csum_offset(p);
	u32 bytes = p->ipv6 ? 16 : 4;
	u64 flags = BPF_F_PSEUDO_HDR | (p->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	u16 marked = bpf_htons(p->ipv6 ? way_dscp(way) << 6 : way_dscp(way) << 2);
	u16 kept = bpf_htons(p->ipv6 ? 0xf03f : 0xff03); /* version, length, ECN, flow label */
	s64 diff = bpf_csum_diff((void *)p->daddr, bytes, (void *)way->backend->destination, bytes, 0);
	u16 before, word;

	if (bpf_skb_load_bytes(skb, l3, &before, 2))
		return false;
	word = (before & kept) | marked;
	if (offset && bpf_l4_csum_replace(skb, l4 + offset, 0, diff, flags))
		return false;
	if (p->ipv6)
		return !bpf_skb_store_bytes(skb, l3 + offsetof(struct ipv6hdr, daddr), (void *)way->backend->destination, 16, 0) &&
		       !bpf_skb_store_bytes(skb, l3, &word, 2, 0);
	return !bpf_l3_csum_replace(skb, l3 + offsetof(struct iphdr, check), 0, diff, 0) &&
	       !bpf_l3_csum_replace(skb, l3 + offsetof(struct iphdr, check), before, word, 2) &&
	       !bpf_skb_store_bytes(skb, l3 + offsetof(struct iphdr, daddr), (void *)way->backend->destination, 4, 0) &&
	       !bpf_skb_store_bytes(skb, l3, &word, 2, 0);
}

static __always_inline bool probe_tag(struct __sk_buff *skb, const struct way *way)
{
	if (!(way_flags(way) & BACKEND_SET_TAGS) || !way_vlan(way))
		return true;
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), way_vlan(way)))
		return false;
	return !way_svlan(way) || !bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD), way_svlan(way));
}

/* Everything but the tags, which come last: they hide the L3 header. */
static __always_inline bool probe_rewrite(struct __sk_buff *skb, const struct way *way, u64 source)
{
	struct packet packet = {};
	u64 hash;

	if (way_mode(way) != MODE_L2) {
		/* a socket's payload lies in page fragments, and lengths are checked against what is linear */
		if (bpf_skb_pull_data(skb, skb->len) || !probe_parse(skb, &packet))
			return false;
		hash = hash_end(hash_addresses(packet.saddr, packet.daddr, packet.ipv6), packet.ports,
				packet.protocol);
		if (is_tunnel(way_mode(way)) ? !probe_encapsulate(skb, &packet, way, hash) :
					       !probe_mark_dscp(skb, &packet, way))
			return false;
	}
	return !bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_dest), (void *)&way->link, ETH_ALEN, 0) &&
	       !bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_source), &source, ETH_ALEN, 0);
}

/* Where the marked packet is to leave, as an ifindex; 0 where it can't. */
static __always_inline u32 probe_send(struct __sk_buff *skb)
{
	struct backend *backend = backend_at(skb->mark & ~PROBE_MARK_MASK);
	struct interface *out;
	struct way way;

	if (!backend)
		return 0;
	way_read(&way, backend);
	out = interface_at(way_ifindex(&way));
	if (!out || !way_open(&way) || !probe_rewrite(skb, &way, mac_word(out->mac)) || !probe_tag(skb, &way))
		return 0;
	return way_ifindex(&way);
}

static __always_inline int probe_steer(struct __sk_buff *skb)
{
	u32 ifindex;

	if ((skb->mark & PROBE_MARK_MASK) != PROBE_MARK)
		return TC_ACT_OK;
	ifindex = probe_send(skb);
	if (!ifindex) {
		count_verdict(VERDICT_PROBE_NO_BACKEND);
		return TC_ACT_SHOT;
	}
	count_verdict(VERDICT_PROBE);
	return ifindex == skb->ifindex ? TC_ACT_OK : bpf_redirect(ifindex, 0);
}

#endif
