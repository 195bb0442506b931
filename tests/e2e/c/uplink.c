// SPDX-License-Identifier: GPL-2.0-only
/*
 * Egress of a router whose way to the VIPs is a VLAN: packets to them get its tag, nothing else does.
 *
 * Macros: UPLINK_VLAN; VIPS, VIPS6: the first three bytes of the VIPs of IPv4 and the first four of those of IPv6, as
 * numbers in host order.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

int tag_uplink(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = (void *)(long)skb->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	int wanted = 0;

	if ((void *)(eth + 1) > end)
		return TC_ACT_OK;
	if (eth->h_proto == bpf_htons(ETH_P_IP) && (void *)(ip + 1) <= end)
		wanted = bpf_ntohl(ip->daddr) >> 8 == VIPS;
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6) && (void *)(ip6 + 1) <= end)
		wanted = bpf_ntohl(ip6->daddr.s6_addr32[0]) == VIPS6;
	if (wanted && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), UPLINK_VLAN))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}
