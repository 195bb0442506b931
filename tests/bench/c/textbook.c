// SPDX-License-Identifier: GPL-2.0-only
/*
 * The usual design of an L4 balancer in BPF, for comparison: a hash look-up for the service, an LRU hash of
 * 5-tuples for the flow, a consistent-hash ring for new ones, an array of reals, per-CPU counters. L2 DSR,
 * IPv4, TCP and UDP; everything else it leaves out speaks in its favour.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

struct vip_key {
	__be32 vip;
	__be16 port;
	u8 protocol;
	u8 zero;
};

struct vip_value {
	u32 number;
	u32 flags;
};

struct flow_key {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	u32 protocol;
};

struct flow_value {
	u32 real;
	u32 unused;
	u64 last_seen_ns;
};

struct real {
	u8 mac[6];
	u16 flags;
};

struct counter {
	u64 packets;
	u64 bytes;
};

#define LOOKUP(map, key) bpf_map_lookup_elem_(bpf_pseudo_fd(1, FD_##map), key)

static __always_inline u32 mix(const struct flow_key *k)
{
	u64 h = ((u64)k->daddr << 32 | k->saddr) * 0xff51afd7ed558ccdULL;

	h = ((h ^ h >> 32) + ((u64)k->dport << 16 | k->sport)) * 0xc4ceb9fe1a85ec53ULL;
	return h >> 33;
}

int textbook(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	struct vip_key vip = {};
	struct flow_key key = {};
	struct vip_value *service;
	struct flow_value *flow, fresh = {};
	struct counter *counter;
	struct real *real;
	u32 number, slot, *picked;

	if ((void *)(tcp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	vip.vip = ip->daddr;
	vip.port = tcp->dest;
	vip.protocol = ip->protocol;
	service = LOOKUP(vips, &vip);
	if (!service)
		return XDP_PASS;
	key.saddr = ip->saddr;
	key.daddr = ip->daddr;
	key.sport = tcp->source;
	key.dport = tcp->dest;
	key.protocol = ip->protocol;
	flow = LOOKUP(lru, &key);
	if (flow) {
		number = flow->real;
	} else {
		slot = mix(&key) % 65537 + service->number * 65537;
		picked = LOOKUP(ring, &slot);
		if (!picked)
			return XDP_DROP;
		number = *picked;
		fresh.real = number;
		bpf_map_update_elem_(bpf_pseudo_fd(1, FD_lru), &key, &fresh, BPF_ANY);
	}
	real = LOOKUP(reals, &number);
	if (!real)
		return XDP_DROP;
	counter = LOOKUP(counters, &number);
	if (counter) {
		counter->packets++;
		counter->bytes += end - data;
	}
	ip->ttl--;
	ip->check += bpf_htons(0x0100);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, real->mac, ETH_ALEN);
	return XDP_TX;
}
