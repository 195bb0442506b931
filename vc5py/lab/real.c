// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the lab's kernel may lack: the receiving end of tunnels and of DSCP marks (XDP, on the real behind the
 * router), and a VLAN interface (TC, on the real in the VLAN and on the router). Written independently of xdp/, to
 * be a witness.
 *
 * Macros: GUE_PORT, FOU_PORT, VLAN, OUTER_VLAN; DSCP_VIP, DSCP_VIP6: the VIPs of DSCP 0, as the last four bytes of
 * an IPv4 and the first four of an IPv6 address whose others are 0, in host order. A DSCP is added to them.
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

/* The protocol number of an IP packet that begins there, by its version; 0 where it is none. */
static __always_inline u8 protocol_of_version(const u8 *packet, const void *end)
{
	if ((const void *)(packet + 1) > end)
		return 0;
	return *packet >> 4 == 4 ? IPPROTO_IPIP : *packet >> 4 == 6 ? IPPROTO_IPV6 : 0;
}

struct gre_header {
	__be16 flags;
	__be16 protocol;
};

/* The protocol number of the IP packet in a GRE packet without options; 0 where there is none. */
static __always_inline u8 gre_protocol(const struct gre_header *gre, const void *end)
{
	if ((const void *)(gre + 1) > end || gre->flags)
		return 0;
	if (gre->protocol == bpf_htons(ETH_P_IP))
		return IPPROTO_IPIP;
	return gre->protocol == bpf_htons(ETH_P_IPV6) ? IPPROTO_IPV6 : 0;
}

/* Looks into what an IP header of `*outer` bytes is followed by, and adds tunnel headers to that number. */
static __always_inline u8 tunnelled(const void *header, const void *end, u8 protocol, u32 *outer)
{
	const struct udphdr *udp = header;

	if (protocol == IPPROTO_GRE) {
		*outer += sizeof(struct gre_header);
		return gre_protocol(header, end);
	}
	if (protocol != IPPROTO_UDP)
		return protocol;
	if ((const void *)(udp + 1) > end)
		return 0;
	*outer += sizeof(*udp);
	if (udp->dest == bpf_htons(FOU_PORT))
		return protocol_of_version((const u8 *)(udp + 1), end);
	*outer += sizeof(struct gue_header);
	return udp->dest == bpf_htons(GUE_PORT) ? gue_protocol(udp, end) : protocol;
}

/* Corrects a TCP or UDP checksum by the difference of what it covers. */
static __always_inline void correct(void *l4, const void *end, u8 protocol, __wsum difference)
{
	u16 *check = protocol == IPPROTO_TCP ? l4 + 16 : l4 + 6;
	u32 sum;

	if ((protocol != IPPROTO_TCP && protocol != IPPROTO_UDP) || (const void *)(check + 1) > end)
		return;
	sum = (u16)~*check + (difference & 0xffff) + (difference >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*check = ~(u16)((sum & 0xffff) + (sum >> 16));
}

/* A mark says which VIP the real's own address stands for. */
static __always_inline void unmark4(struct iphdr *ip, const void *end)
{
	__be32 vip = bpf_htonl(DSCP_VIP + (ip->tos >> 2)), old = ip->daddr;
	__wsum difference;
	u32 sum;

	if (ip->tos >> 2 == 0)
		return;
	difference = bpf_csum_diff(&old, 4, &vip, 4, 0);
	ip->daddr = vip;
	sum = (u16)~ip->check + (difference & 0xffff) + (difference >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~(u16)((sum & 0xffff) + (sum >> 16));
	correct(ip + 1, end, ip->protocol, difference);
}

static __always_inline void unmark6(struct ipv6hdr *ip, const void *end)
{
	u8 dscp = (ip->priority << 2) | (ip->flow_lbl[0] >> 6);
	__be32 vip[4] = {bpf_htonl(DSCP_VIP6), 0, 0, bpf_htonl(dscp)}, old[4];
	__wsum difference;

	if (!dscp)
		return;
	__builtin_memcpy(old, &ip->daddr, sizeof(old));
	difference = bpf_csum_diff(old, sizeof(old), vip, sizeof(vip), 0);
	__builtin_memcpy(&ip->daddr, vip, sizeof(vip));
	correct(ip + 1, end, ip->nexthdr, difference);
}

/* The protocol number of the IP packet within an IP packet, and the length of all before it; unmarks others. */
static __always_inline u8 opened(struct ethhdr *eth, const void *end, u32 *outer)
{
	struct iphdr *ip = (void *)(eth + 1);
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	u8 protocol = 0;

	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if ((const void *)(ip + 1) > end || ip->ihl != 5)
			return 0;
		*outer = sizeof(*ip);
		protocol = tunnelled(ip + 1, end, ip->protocol, outer);
		if (protocol == ip->protocol)
			unmark4(ip, end);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if ((const void *)(ip6 + 1) > end)
			return 0;
		*outer = sizeof(*ip6);
		protocol = tunnelled(ip6 + 1, end, ip6->nexthdr, outer);
		if (protocol == ip6->nexthdr)
			unmark6(ip6, end);
	}
	return protocol;
}

/* Takes the outer headers (IPv4 or IPv6, with or without GRE, FOU or GUE) off; turns marks back into VIPs. */
int lab_decapsulate(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = start, saved;
	u32 outer = 0;
	u8 protocol;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	protocol = opened(eth, end, &outer);
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

/* Takes the tag off, and the outer tag before it where there is one. */
static __always_inline int untag(struct __sk_buff *skb)
{
	if (skb->vlan_present && skb->vlan_proto == bpf_htons(ETH_P_8021AD)) {
		if ((skb->vlan_tci & 0xfff) != OUTER_VLAN || bpf_skb_vlan_pop(skb))
			return TC_ACT_SHOT;
	}
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

/* Ingress of a host that is in the VLAN within the outer one and nowhere else. */
int lab_untag_both_only(struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_proto == bpf_htons(ETH_P_8021AD) ? untag(skb) : TC_ACT_SHOT;
}

int lab_tag_both(struct __sk_buff *skb)
{
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), VLAN))
		return TC_ACT_SHOT;
	return bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD), OUTER_VLAN) ? TC_ACT_SHOT : TC_ACT_OK;
}
