/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading a frame: one cursor, one small bounds-checked function per header. Each returns its header and
 * moves the cursor behind it, or returns NULL where the frame is too short.
 */
#ifndef VC5_PARSE_H
#define VC5_PARSE_H

struct cursor {
	void *pos;
	void *end;
};

/* What the forwarding decision needs to know of a packet. */
struct packet {
	struct ethhdr *eth;
	struct iphdr *ip;
	__be32 saddr;
	__be32 daddr;
	u32 l4_bytes; /* what the IP header says follows it; padding lies behind */
	__be16 sport;
	__be16 dport;
	u8 protocol;
	bool starts; /* TCP SYN without ACK: a new connection */
	bool ends;   /* TCP FIN or RST */
};

static __always_inline struct ethhdr *parse_ethernet(struct cursor *c)
{
	struct ethhdr *eth = c->pos;

	if ((void *)(eth + 1) > c->end)
		return NULL;
	c->pos = eth + 1;
	return eth;
}

/* The fixed part of the header only: its length field is not believed yet. */
static __always_inline struct iphdr *parse_ipv4(struct cursor *c)
{
	struct iphdr *ip = c->pos;

	if ((void *)(ip + 1) > c->end)
		return NULL;
	return ip;
}

/* Moves behind the header and its options. False where the header contradicts itself or the frame. */
static __always_inline bool skip_ipv4_header(struct cursor *c, struct packet *p)
{
	u32 header_bytes = p->ip->ihl * 4;
	u32 total_bytes = bpf_ntohs(p->ip->tot_len);

	if (p->ip->version != 4 || header_bytes < sizeof(*p->ip) || total_bytes < header_bytes)
		return false;
	if (c->pos + total_bytes > c->end)
		return false;
	c->pos += header_bytes;
	p->l4_bytes = total_bytes - header_bytes;
	return true;
}

static __always_inline bool parse_tcp(struct cursor *c, struct packet *p)
{
	struct tcphdr *tcp = c->pos;

	if ((void *)(tcp + 1) > c->end || tcp->doff < sizeof(*tcp) / 4 || tcp->doff * 4U > p->l4_bytes)
		return false;
	p->sport = tcp->source;
	p->dport = tcp->dest;
	p->starts = tcp->syn && !tcp->ack;
	p->ends = tcp->fin || tcp->rst;
	return true;
}

static __always_inline bool parse_udp(struct cursor *c, struct packet *p)
{
	struct udphdr *udp = c->pos;

	if ((void *)(udp + 1) > c->end)
		return false;
	if (bpf_ntohs(udp->len) < sizeof(*udp) || bpf_ntohs(udp->len) > p->l4_bytes)
		return false;
	p->sport = udp->source;
	p->dport = udp->dest;
	return true;
}

#endif
