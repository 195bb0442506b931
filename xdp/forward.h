/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Carrying out a decision on an XDP frame: the only place where the packet changes size. Pointers into the
 * frame are good until it does.
 */
#ifndef VC5_FORWARD_H
#define VC5_FORWARD_H

/* Where a packet goes. */
struct route {
	struct way way;
	u64 hash; /* for entropy in outer headers */
	u32 index;
	u32 ifindex;
	enum xdp_action action;
	u16 inner_mtu; /* for an answer that says so */
};

/* The frame keeps its size and its tags: only the addresses change. */
static __always_inline bool l2_rewrite(const struct cursor *frame, u64 destination, u64 source)
{
	struct ethhdr *eth = frame_at(frame, 0, sizeof(*eth));

	if (!eth)
		return false;
	mac_write(eth->h_dest, destination);
	mac_write(eth->h_source, source);
	return true;
}

/* The L2 header, or more, has another size than before. */
static __always_inline enum verdict resize(struct xdp_md *ctx, struct packet *p, const struct route *route,
					   u64 source, const struct tags *tags, enum verdict verdict)
{
	const struct way *way = &route->way;
	bool tunnel = is_tunnel(way_mode(way)), summed = false;
	bool outer6 = tunnel ? way_outer6(way) : p->ipv6;
	int grow = l2_bytes(tags) + (tunnel ? tunnel_bytes(way) : 0) - l2_bytes(&p->tags);
	struct cursor c = frame_of(ctx);
	u64 sum = 0;

	if (tunnel)
		summed = inner_sum(&c, p, &sum);
	if (bpf_xdp_adjust_head(ctx, -grow))
		return VERDICT_NO_HEADROOM;
	c = frame_of(ctx);
	c.pos = l2_write(&c, way->link, source, tags, bpf_htons(outer6 ? ETH_P_IPV6 : ETH_P_IP));
	if (!c.pos)
		return VERDICT_NO_HEADROOM;
	if (tunnel && !tunnel_write(&c, p, way, route->hash, summed, sum))
		return VERDICT_NO_HEADROOM;
	return verdict;
}

/* Where a packet to a real on `ifindex` leaves: if that is a bond, by the member of it that it came in by. */
static __always_inline u32 leaves_by(u32 ifindex, u32 ingress)
{
	const struct interface *in;

	if (ifindex == ingress)
		return ingress;
	in = interface_at(ingress);
	return in && in->bond == ifindex ? ingress : ifindex;
}

#define NO_LIMIT 0xffffffff

/*
 * The largest packet, outer headers included, that gets to the real. Of a link the MTU counts where the packet
 * leaves by another one than it came in by, or is in a tunnel; others have come through it. One tag is beside the
 * MTU, but the kernel redirects no frame with more than that.
 */
static __always_inline u32 largest_packet(const struct route *route, const struct packet *p, u32 ingress)
{
	bool tunnel = is_tunnel(way_mode(&route->way)), away = route->ifindex != ingress;
	u32 largest = tunnel ? way_mtu(&route->way) : NO_LIMIT;
	const struct interface *out;
	struct tags tags;
	u32 mtu;

	if (!tunnel && !away)
		return largest;
	out = interface_at(route->ifindex);
	mtu = out ? out->mtu : 0;
	tags = tags_towards(&route->way, &p->tags);
	if (mtu && away && tags.count == MAX_TAGS)
		mtu -= sizeof(struct vlan_tag);
	return mtu && mtu < largest ? mtu : largest;
}

/* Rewrites the frame for its way to the real; the verdict, or why it can't be done. */
static __always_inline enum verdict rewrite(struct xdp_md *ctx, struct packet *p, struct route *route,
					    enum verdict verdict)
{
	const struct way *way = &route->way;
	struct cursor frame = frame_of(ctx);
	u64 source = p->dmac;
	struct interface *out;
	struct tags tags;

	if (!decrement_ttl(&frame, p))
		return VERDICT_BAD_IP_HEADER;
	if (route->ifindex != ctx->ingress_ifindex) {
		out = interface_at(route->ifindex);
		if (!out || !(out->flags & INTERFACE_OURS))
			return VERDICT_NO_EXIT;
		source = mac_word(out->mac);
	}
	if (way_mode(way) == MODE_DSCP && !dscp_rewrite(&frame, p, way))
		return VERDICT_MODE_UNSUPPORTED;
	if (!is_tunnel(way_mode(way)) && !(way_flags(way) & BACKEND_SET_TAGS))
		return l2_rewrite(&frame, way->link, source) ? verdict : VERDICT_BAD_IP_HEADER;
	tags = tags_towards(way, &p->tags);
	return resize(ctx, p, route, source, &tags, verdict);
}

/*
 * Whether the frame can leave: by the link it came in by, or by the one that the devmap has for the real's. A bond
 * of which no member is running has none. Asked before anything is counted.
 */
static __always_inline bool find_exit(struct xdp_md *ctx, struct route *route)
{
	if (route->ifindex == ctx->ingress_ifindex)
		route->action = XDP_TX;
	else
		route->action = bpf_redirect_map((void *)MAP(ports), route->ifindex, 0);
	return route->action != XDP_ABORTED;
}

#endif
