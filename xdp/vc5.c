// SPDX-License-Identifier: GPL-2.0-only
/*
 * The data plane. `vc5_ingress` (XDP) takes clients' packets for a VIP and sends them on to a real;
 * `vc5_egress` (TC) steers our own probes along the same backend records.
 *
 * Read in this order: verdicts.h (how a packet can end), types.h (what is in the maps), parse.h, choose.h
 * with flow.h (which real), rewrite.h. Decide first, then act in one switch with one exit.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "verdicts.h"
#include "types.h"
#include "maps.h"
#include "hash.h"
#include "parse.h"
#include "flow.h"
#include "choose.h"
#include "rewrite.h"

#define IPV4_FRAGMENT 0x3fff /* more fragments, or an offset */

/* Not one of the verdicts: the next step decides. */
#define UNDECIDED ((enum verdict)VERDICT_SLOTS)

/* Where a packet goes once it is decided that it is forwarded. */
struct route {
	u64 mac;
	u32 ifindex;
	u32 backend;
};

static __always_inline u32 *service_find4(__be32 vip, __be16 port, u8 protocol)
{
	struct service_key4 key = { .vip = vip, .port = port, .protocol = protocol };

	return map_lookup(MAP(services4), &key);
}

/* The verdict on a packet that can't be forwarded, if its destination is a VIP at all. */
static __always_inline enum verdict refuse4(__be32 daddr, enum verdict verdict)
{
	return service_find4(daddr, 0, 0) ? verdict : VERDICT_NOT_VIP;
}

/* Reads the headers into *p. */
static __always_inline enum verdict read_packet(struct cursor *c, struct packet *p)
{
	p->eth = parse_ethernet(c);
	if (!p->eth)
		return VERDICT_UNREADABLE;
	if (p->eth->h_proto != bpf_htons(ETH_P_IP))
		return VERDICT_NOT_IP;
	p->ip = parse_ipv4(c);
	if (!p->ip)
		return VERDICT_UNREADABLE;
	p->saddr = p->ip->saddr;
	p->daddr = p->ip->daddr;
	p->protocol = p->ip->protocol;
	if (!skip_ipv4_header(c, p))
		return refuse4(p->daddr, VERDICT_BAD_IP_HEADER);
	if (p->ip->frag_off & bpf_htons(IPV4_FRAGMENT))
		return refuse4(p->daddr, VERDICT_FRAGMENT);
	if (p->protocol == IPPROTO_TCP)
		return parse_tcp(c, p) ? UNDECIDED : refuse4(p->daddr, VERDICT_BAD_L4_HEADER);
	if (p->protocol == IPPROTO_UDP)
		return parse_udp(c, p) ? UNDECIDED : refuse4(p->daddr, VERDICT_BAD_L4_HEADER);
	return refuse4(p->daddr, VERDICT_UNSUPPORTED_PROTOCOL);
}

/* Whether the chosen backend can be reached by this packet, and where it goes then. */
static __always_inline enum verdict route_to(const struct choice *choice, const struct packet *p,
					     enum verdict verdict, struct route *route)
{
	u64 word = mac_word(choice->backend->mac);

	if (!(word >> 48 & BACKEND_REACHABLE))
		return VERDICT_NO_NEIGHBOUR;
	if (mac_of_frame(p->eth->h_source) == (word & MAC_MASK))
		return VERDICT_LOOPED;
	route->mac = word;
	route->ifindex = choice->backend->ifindex;
	route->backend = choice->index;
	return verdict;
}

static __always_inline bool addressed_to_us(const struct ethhdr *eth, u32 ifindex)
{
	struct interface *interface = interface_at(ifindex);

	return interface && interface->flags & INTERFACE_OURS &&
	       mac_of_frame(eth->h_dest) == (mac_word(interface->mac) & MAC_MASK);
}

static __always_inline enum verdict decide(struct xdp_md *ctx, struct packet *p, struct route *route)
{
	struct cursor c = { .pos = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end };
	struct choice choice = {};
	struct service *service;
	enum verdict verdict;
	u32 *service_index;
	u64 hash;

	verdict = read_packet(&c, p);
	if (verdict != UNDECIDED)
		return verdict;
	service_index = service_find4(p->daddr, p->dport, p->protocol);
	if (!service_index)
		return refuse4(p->daddr, VERDICT_NO_SERVICE);
	if (!addressed_to_us(p->eth, ctx->ingress_ifindex))
		return VERDICT_NOT_OUR_MAC;
	if (p->ip->ttl <= 1)
		return VERDICT_TTL_EXPIRED;
	service = service_at(*service_index);
	if (!service)
		return VERDICT_NO_BACKEND;
	hash = flow_hash4(p->saddr, p->daddr, p->sport, p->dport, p->protocol);
	verdict = choose_backend(service, *service_index, hash, p, &choice);
	if (verdict == VERDICT_NO_BACKEND)
		return verdict;
	return route_to(&choice, p, verdict, route);
}

/* Sends the frame out of the interface that the real is on. */
static __always_inline int forward(struct xdp_md *ctx, struct packet *p, const struct route *route)
{
	struct interface *out;

	count_backend(route->backend, ctx->data_end - ctx->data);
	ipv4_decrement_ttl(p->ip);
	if (route->ifindex == ctx->ingress_ifindex) {
		__builtin_memcpy(p->eth->h_source, p->eth->h_dest, ETH_ALEN);
		mac_write(p->eth->h_dest, route->mac);
		return XDP_TX;
	}
	out = interface_at(route->ifindex);
	if (!out)
		return XDP_DROP;
	mac_write(p->eth->h_source, mac_word(out->mac));
	mac_write(p->eth->h_dest, route->mac);
	return bpf_redirect_map((void *)MAP(ports), route->ifindex, 0);
}

int vc5_ingress(struct xdp_md *ctx)
{
	struct packet packet = {};
	struct route route = {};
	enum verdict verdict = decide(ctx, &packet, &route);

	count_verdict(verdict);
	switch (verdict) {
#define V(number, name, action, description) case VERDICT_##name: goto action;
	VERDICTS(V)
#undef V
	}
	return XDP_ABORTED;
PASS:
	return XDP_PASS;
DROP:
	return XDP_DROP;
FORWARD:
	return forward(ctx, &packet, &route);
}

/* Our own packets with a probe's mark go to the backend that the mark names; all others are left alone. */
int vc5_egress(struct __sk_buff *skb)
{
	struct interface *out;
	struct backend *backend;
	u64 source, word;

	if ((skb->mark & PROBE_MARK_MASK) != PROBE_MARK)
		return TC_ACT_OK;
	backend = backend_at(skb->mark & ~PROBE_MARK_MASK);
	word = backend ? mac_word(backend->mac) : 0;
	out = backend ? interface_at(backend->ifindex) : NULL;
	if (!out || !(word >> 48 & BACKEND_REACHABLE)) {
		count_verdict(VERDICT_PROBE_NO_BACKEND);
		return TC_ACT_SHOT;
	}
	count_verdict(VERDICT_PROBE);
	source = mac_word(out->mac);
	bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_dest), &word, ETH_ALEN, 0);
	bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_source), &source, ETH_ALEN, 0);
	return backend->ifindex == skb->ifindex ? TC_ACT_OK : bpf_redirect(backend->ifindex, 0);
}
