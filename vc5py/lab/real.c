// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the lab's kernel may lack: the receiving end of a tunnel (XDP, on the real behind the router), and a VLAN
 * interface (TC, on the real in the VLAN and on the router). Written independently of xdp/, to be a witness.
 *
 * Macros: GUE_PORT, VLAN.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

struct gue_header {
	u8 version_and_length;
	u8 protocol;
	__be16 flags;
};

/* The protocol in a GUE packet without options; 0 where the UDP packet is another one. */
static __always_inline u8 gue_protocol(const struct udphdr *udp, const void *end)
{
	const struct gue_header *gue = (const void *)(udp + 1);

	if ((const void *)(gue + 1) > end || udp->dest != bpf_htons(GUE_PORT) || gue->version_and_length)
		return 0;
	return gue->protocol;
}

/* Takes the outer headers (IPv4 or IPv6, with or without GUE) off; leaves all other packets alone. */
int lab_decapsulate(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = start, saved;
	u32 outer;
	u8 protocol;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->ihl != 5)
			return XDP_PASS;
		outer = sizeof(*ip);
		protocol = ip->protocol;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		outer = sizeof(*ip);
		protocol = ip->nexthdr;
	} else {
		return XDP_PASS;
	}
	if (protocol == IPPROTO_UDP) {
		protocol = gue_protocol((void *)(eth + 1) + outer, end);
		outer += sizeof(struct udphdr) + sizeof(struct gue_header);
	}
	if (protocol != IPPROTO_IPIP && protocol != IPPROTO_IPV6)
		return XDP_PASS;
	saved = *eth;
	saved.h_proto = bpf_htons(protocol == IPPROTO_IPIP ? ETH_P_IP : ETH_P_IPV6);
	if (bpf_xdp_adjust_head(ctx, outer))
		return XDP_DROP;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	*eth = saved;
	return XDP_PASS;
}

static __always_inline int untag(struct __sk_buff *skb)
{
	if (!skb->vlan_present || (skb->vlan_tci & 0xfff) != VLAN || bpf_skb_vlan_pop(skb))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

/* Ingress of a host that is in the VLAN and nowhere else. */
int lab_untag_only(struct __sk_buff *skb)
{
	return untag(skb);
}

/* Ingress of a host that is also in the VLAN. */
int lab_untag(struct __sk_buff *skb)
{
	return skb->vlan_present ? untag(skb) : TC_ACT_OK;
}

int lab_tag(struct __sk_buff *skb)
{
	return bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), VLAN) ? TC_ACT_SHOT : TC_ACT_OK;
}
