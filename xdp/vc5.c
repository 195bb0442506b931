// SPDX-License-Identifier: GPL-2.0-only
/*
 * The data plane. `vc5_ingress` (XDP) takes clients' packets for a VIP and sends them on to a real;
 * `vc5_egress` (TC) steers our own probes along the same backend records, with the same outer headers.
 *
 * Read in this order: verdicts.h (how a packet can end), types.h (what is in the maps), parse.h, choose.h
 * with flow.h (which real), rewrite.h, tunnel.h and icmp.h (what becomes of the frame), forward.h. Decide
 * first, then act in one switch with one exit.
 */
#include <linux/bpf.h>
#include <linux/icmp.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "verdicts.h"
#include "types.h"
#include "maps.h"
#include "hash.h"
#include "parse.h"
#include "flow.h"
#include "services.h"
#include "share.h"
#include "choose.h"
#include "learn.h"
#include "checksum.h"
#include "rewrite.h"
#include "tunnel.h"
#include "icmp.h"
#include "forward.h"
#include "probe.h"
#include "fast.h"

/* Not one of the verdicts: the next step decides. */
#define UNDECIDED ((enum verdict)VERDICT_SLOTS)

static __always_inline bool addressed_to_us(const struct packet *p, u32 ifindex)
{
	struct interface *interface = interface_at(ifindex);

	/* address and flags, which are the only ones there are, in one comparison */
	return interface && mac_word(interface->mac) == (p->dmac | (u64)INTERFACE_OURS << 48);
}

/* The verdict on a packet that can't be forwarded, if it is for a VIP and for us at all. */
static __always_inline enum verdict refuse(const struct packet *p, u32 ifindex, enum verdict verdict)
{
	u32 flags;

	if (!service_find(p->daddr, p->ipv6, 0, 0, &flags))
		return VERDICT_NOT_VIP;
	if (!addressed_to_us(p, ifindex))
		return VERDICT_NOT_OUR_MAC;
	if (flags & VIP_PASS_UNKNOWN && (verdict == VERDICT_NO_SERVICE || verdict == VERDICT_UNSUPPORTED_PROTOCOL))
		return VERDICT_UNKNOWN_PASSED;
	return verdict;
}

/* Reads all headers into *p. */
static __always_inline enum verdict read_packet(struct cursor *c, struct packet *p)
{
	__be16 proto;

	if (!parse_ethernet(c, p, &proto))
		return VERDICT_UNREADABLE;
	if (is_tag(proto) && !parse_tags(c, p, &proto))
		return VERDICT_UNREADABLE;
	if (proto == bpf_htons(ETH_P_IP)) {
		if (!read_ipv4_addresses(c, p))
			return VERDICT_UNREADABLE;
		if (!parse_ipv4(c, p))
			return VERDICT_BAD_IP_HEADER;
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		if (!read_ipv6_addresses(c, p))
			return VERDICT_UNREADABLE;
		if (!parse_ipv6(c, p))
			return VERDICT_BAD_IP_HEADER;
		if (!skip_extensions(c, p) || !within_packet(c, p))
			return VERDICT_BAD_EXTENSION;
	} else {
		return is_tag(proto) ? VERDICT_TOO_MANY_TAGS : VERDICT_NOT_IP;
	}
	if (!parse_content(c, p))
		return VERDICT_BAD_L4_HEADER;
	return p->content == CONTENT_OTHER ? VERDICT_UNSUPPORTED_PROTOCOL : UNDECIDED;
}

/* Whether to tell the client. No error about an error, nor about a later IPv4 fragment (RFC 1122, 3.2.2). */
static __always_inline enum verdict too_big(const struct packet *p)
{
	if (p->content == CONTENT_ICMP || (p->content == CONTENT_LATER_FRAGMENT && !p->ipv6))
		return VERDICT_TOO_BIG;
	if (!source_is_host(p))
		return VERDICT_BAD_SOURCE;
	return icmp_allowed() ? VERDICT_TOO_BIG_ANSWERED : VERDICT_TOO_BIG;
}

/* Notes the chosen backend. */
static __always_inline enum verdict choose_route(const struct choice *choice, u64 hash, enum verdict verdict,
						 struct route *route)
{
	way_read(&route->way, choice->backend);
	route->hash = hash;
	route->index = choice->index;
	return verdict;
}

/* Whether the chosen backend can be reached by this packet. */
static __always_inline enum verdict check_route(struct route *route, const struct packet *p, u32 ifindex,
						enum verdict verdict)
{
	const struct way *way = &route->way;
	u32 around = is_tunnel(way_mode(way)) ? tunnel_bytes(way) : 0;
	u32 largest;

	if (!way_open(way))
		return VERDICT_NO_NEIGHBOUR;
	if (way_flags(way) & BACKEND_ON_LINK && p->smac == (way->link & MAC_MASK))
		return VERDICT_LOOPED;
	route->ifindex = leaves_by(way_ifindex(way), ifindex);
	largest = largest_packet(route, p, ifindex);
	if (p->total + around > largest) {
		route->inner_mtu = largest - around;
		return too_big(p);
	}
	return verdict;
}

/* The flow's names, as seen from the client. */
static __always_inline void name_flow(struct flow *f, const u64 saddr[2], const u64 daddr[2], u64 ports,
				      u8 protocol, bool ipv6)
{
	f->hash = hash_end(hash_addresses(saddr, daddr, ipv6), ports, protocol);
	f->slot_hash = f->hash;
	if (f->service->flags & SERVICE_STICKY) {
		u64 nobody[2] = {};

		f->slot_hash = hash_end(hash_addresses(saddr, nobody, ipv6), 0, 0);
	}
}

/* All fragments of a packet have this in common. */
static __always_inline u64 name_fragment(const struct packet *p)
{
	return hash_end(hash_addresses(p->saddr, p->daddr, p->ipv6), p->identification,
			p->ipv6 ? IPPROTO_FRAGMENT : 0);
}

static __always_inline bool fragments_dropped(void)
{
	const struct settings *settings = settings_get();

	return settings && settings->flags & SETTING_DROP_FRAGMENTS;
}

static __always_inline enum verdict decide_flow(struct packet *p, u32 ifindex, struct route *route)
{
	struct choice choice = {};
	struct flow f = {};
	enum verdict verdict;

	if (!service_find(p->daddr, p->ipv6, packet_dport(p), p->protocol, &f.service_index))
		return refuse(p, ifindex, VERDICT_NO_SERVICE);
	if (!addressed_to_us(p, ifindex))
		return VERDICT_NOT_OUR_MAC;
	if (p->ttl <= 1)
		return VERDICT_TTL_EXPIRED;
	if (p->first_fragment && fragments_dropped())
		return VERDICT_FRAGMENT;
	f.service = service_at(f.service_index);
	if (!f.service)
		return VERDICT_NO_BACKEND;
	name_flow(&f, p->saddr, p->daddr, p->ports, p->protocol, p->ipv6);
	verdict = choose_backend(&f, p, &choice);
	if (verdict == VERDICT_NO_BACKEND)
		return verdict;
	if (p->first_fragment)
		fragment_record(name_fragment(p), f.service_index, choice.local);
	return choose_route(&choice, f.hash, verdict, route);
}

static __always_inline enum verdict decide_later_fragment(struct packet *p, u32 ifindex, struct route *route)
{
	u64 hash = name_fragment(p);
	struct choice choice = {};
	enum verdict verdict = refuse(p, ifindex, UNDECIDED);

	if (verdict != UNDECIDED)
		return verdict;
	if (p->ttl <= 1)
		return VERDICT_TTL_EXPIRED;
	if (fragments_dropped())
		return VERDICT_FRAGMENT;
	if (!choose_for_fragment(hash, &choice))
		return VERDICT_FRAGMENT_UNKNOWN;
	return choose_route(&choice, hash, VERDICT_FORWARDED_FRAGMENT, route);
}

static __always_inline enum verdict decide_icmp_error(struct cursor *c, struct packet *p, struct route *route)
{
	struct packet quoted = {};
	struct choice choice = {};
	struct flow f = {};

	if (!parse_quoted(c, p, &quoted))
		return VERDICT_BAD_ICMP;
	if (!service_find(quoted.saddr, p->ipv6, quoted.ports & 0xffff, quoted.protocol, &f.service_index))
		return VERDICT_BAD_ICMP;
	f.service = service_at(f.service_index);
	if (!f.service)
		return VERDICT_NO_BACKEND;
	name_flow(&f, quoted.daddr, quoted.saddr, quoted.ports >> 16 | (quoted.ports & 0xffff) << 16,
		  quoted.protocol, p->ipv6);
	if (!choose_for_error(&f, &choice))
		return VERDICT_NO_BACKEND;
	return choose_route(&choice, f.hash, VERDICT_FORWARDED_ICMP, route);
}

static __always_inline enum verdict decide_icmp(struct cursor *c, struct packet *p, u32 ifindex,
						struct route *route)
{
	struct icmphdr *icmp = frame_at(c, p->l4, sizeof(*icmp));
	enum verdict verdict = refuse(p, ifindex, icmp ? UNDECIDED : VERDICT_BAD_L4_HEADER);

	if (verdict == VERDICT_NOT_VIP && icmp && addressed_to_us(p, ifindex) && is_about_tunnel(c, p, icmp))
		return VERDICT_PATH_TOO_SMALL;
	if (verdict != UNDECIDED || !icmp)
		return verdict;
	if (p->first_fragment)
		return VERDICT_FRAGMENT;
	if (is_echo_request(p, icmp)) /* at its destination: the TTL does not matter (RFC 1122, 3.2.1.7) */
		return source_is_host(p) ? VERDICT_ECHO_ANSWERED : VERDICT_BAD_SOURCE;
	if (p->ttl <= 1)
		return VERDICT_TTL_EXPIRED;
	c->pos = icmp;
	return is_icmp_error(p, icmp) ? decide_icmp_error(c, p, route) : VERDICT_BAD_ICMP;
}

static __always_inline enum verdict decide_packet(struct xdp_md *ctx, struct packet *p, struct route *route)
{
	struct cursor c = frame_of(ctx);
	enum verdict verdict = read_packet(&c, p);
	u32 ifindex = ctx->ingress_ifindex;

	if (verdict == UNDECIDED && p->content == CONTENT_FLOW)
		return decide_flow(p, ifindex, route);
	if (verdict == UNDECIDED && p->content == CONTENT_LATER_FRAGMENT)
		return decide_later_fragment(p, ifindex, route);
	if (verdict == UNDECIDED)
		return decide_icmp(&c, p, ifindex, route);
	return p->l3 ? refuse(p, ifindex, verdict) : verdict;
}

static __always_inline enum verdict decide(struct xdp_md *ctx, struct packet *p, struct route *route)
{
	enum verdict verdict = decide_packet(ctx, p, route);

	return route->way.backend ? check_route(route, p, ctx->ingress_ifindex, verdict) : verdict;
}

enum action { PASS, DROP, ANSWER, FORWARD };

static __always_inline enum action verdict_action(enum verdict verdict)
{
	switch (verdict) {
#define V(number, name, action, description) case VERDICT_##name: return action;
	VERDICTS(V)
#undef V
	}
	return DROP;
}

/* Makes of the frame what was decided; a verdict of its own where that can't be done. */
static __always_inline enum verdict carry_out(struct xdp_md *ctx, struct packet *p, struct route *route,
					      enum verdict verdict)
{
	struct cursor frame = frame_of(ctx);

	if (verdict == VERDICT_ECHO_ANSWERED)
		return echo_answer(&frame, p) ? verdict : VERDICT_BAD_ICMP;
	else if (verdict == VERDICT_TOO_BIG_ANSWERED)
		return too_big_answer(ctx, p, route->inner_mtu) ? verdict : VERDICT_TOO_BIG;
	else if (verdict_action(verdict) == FORWARD && route->way.backend) {
		u32 bytes = frame_bytes(ctx);
		enum verdict done = rewrite(ctx, p, route, verdict);

		if (done == verdict && !find_exit(ctx, route))
			done = VERDICT_NO_EXIT;
		if (done == verdict)
			count_backend(route->index, bytes);
		return done;
	}
	return verdict;
}

int vc5_ingress(struct xdp_md *ctx)
{
	struct packet packet;
	struct route route;
	enum verdict verdict;

	if (fast_forward(ctx))
		return XDP_TX;
	__builtin_memset(&packet, 0, sizeof(packet));
	__builtin_memset(&route, 0, sizeof(route));
	verdict = decide(ctx, &packet, &route);
	verdict = carry_out(ctx, &packet, &route, verdict);
	count_verdict(verdict);
	switch (verdict_action(verdict)) {
	case PASS:
		return XDP_PASS;
	case ANSWER:
		return XDP_TX;
	case FORWARD:
		return route.action;
	default:
		return XDP_DROP;
	}
}

int vc5_egress(struct __sk_buff *skb)
{
	return probe_steer(skb);
}

/*
 * One record of the batch at each run; what `skb` points to means nothing. For TC, because the kernel waits for
 * all CPUs before and after every test run of an XDP program that is repeated.
 */
int vc5_learn(struct __sk_buff *skb)
{
	struct learn_control *control = ELEMENT(learn_control, struct learn_control, 0);
	struct learned *record;

	if (!control)
		return TC_ACT_OK;
	record = ELEMENT(learn_batch, struct learned, control->next);
	if (!record)
		return TC_ACT_OK;
	record->result = learn_one(record);
	control->next++;
	return TC_ACT_OK;
}
