// SPDX-License-Identifier: GPL-2.0-only
/* A link that loses PER_MILLE of a thousand UDP datagrams over IPv4, each for itself; all else passes. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>

int lossy(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);

	if ((void *)(ip + 1) > end || eth->h_proto != __constant_htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	return bpf_get_prandom_u32() % 1000 < PER_MILLE ? XDP_DROP : XDP_PASS;
}
