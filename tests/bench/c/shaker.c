// SPDX-License-Identifier: GPL-2.0-only
/*
 * The harness around a program under test: makes each repetition of BPF_PROG_TEST_RUN a fresh packet, then
 * tail-calls the program. With repeat the kernel doesn't restore the frame, so this does: its length, its
 * headers, and one client's address and port after another.
 */
#include <linux/bpf.h>

#define HEAD_IPV4 54 /* Ethernet, IP, TCP */
#define HEAD_IPV6 74

enum order {
	RANDOM = 0,     /* one of `flows` picked at random */
	SEQUENTIAL = 1, /* one of `flows` after another */
	ENDLESS = 2,    /* a new one each time */
};

/* Mirrored by tests/bench/rig.py. */
struct shake {
	u8 head[80];
	u32 head_bytes;  /* HEAD_IPV4 or HEAD_IPV6 */
	u32 frame_bytes;
	u32 source;      /* offset of the 32 bits of the client's address that vary */
	u32 ports;       /* offset of both ports */
	u32 mask;        /* flows - 1 */
	u32 order;       /* enum order */
	u64 next;
};

#define COPY(type, at) (*(type *)(data + (at)) = *(type *)(head + (at)))

/* The finaliser of SplitMix64, in short. */
static __always_inline u64 scramble(u64 x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	return x ^ x >> 31;
}

static __always_inline u32 next_flow(struct shake *shake)
{
	if (shake->order == RANDOM)
		return bpf_get_prandom_u32() & shake->mask;
	if (shake->order == SEQUENTIAL)
		return shake->next++ & shake->mask;
	return scramble(shake->next++);
}

/*
 * Writes as wide as programs read: what reads across two fresh writes waits for both to get to the cache,
 * which no packet from a network card makes anybody do.
 */
static __always_inline bool write_head(void *data, void *end, const struct shake *shake)
{
	const void *head = shake->head;

	if (data + HEAD_IPV4 > end)
		return false;
	COPY(u32, 0);
	COPY(u16, 4);
	COPY(u32, 6);
	COPY(u16, 10);
	COPY(u16, 12);
#pragma unroll
	for (u32 at = 14; at < HEAD_IPV4; at += 4)
		COPY(u32, at);
	if (shake->head_bytes == HEAD_IPV4)
		return true;
	if (data + HEAD_IPV6 > end)
		return false;
#pragma unroll
	for (u32 at = HEAD_IPV4; at < HEAD_IPV6; at += 4)
		COPY(u32, at);
	return true;
}

int shake(struct xdp_md *ctx)
{
	u32 zero = 0, flow, source, ports, bytes = ctx->data_end - ctx->data;
	struct shake *shake = bpf_map_lookup_elem_(bpf_pseudo_fd(1, FD_shake), &zero);
	void *data, *end;

	if (!shake)
		return XDP_ABORTED;
	if (bytes != shake->frame_bytes && bpf_xdp_adjust_head(ctx, (int)(bytes - shake->frame_bytes)))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (!write_head(data, end, shake))
		return XDP_ABORTED;
	flow = next_flow(shake);
	source = shake->source & 63;
	ports = shake->ports & 63;
	if (data + source + 4 > end || data + ports + 4 > end)
		return XDP_ABORTED;
	*(u32 *)(data + source) = *(u32 *)(shake->head + source) + flow;
	*(u32 *)(data + ports) = (*(u32 *)(shake->head + ports) & 0xffff0000) | (1024 + (flow >> 16) + flow & 0xffff);
	bpf_tail_call_(bpf_pseudo_fd(1, FD_stage), ctx, 0);
	return XDP_ABORTED;
}

/* The harness by itself. */
int nothing(struct xdp_md *ctx)
{
	return XDP_TX;
}

/* The harness where it has to shorten the frame again. */
int grow(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, -32) ? XDP_DROP : XDP_TX;
}

/* The least that any balancer does: swap the MAC addresses and send. */
int mac_swap(struct xdp_md *ctx)
{
	u16 *eth = (void *)(long)ctx->data;
	u16 a, b, c;

	if ((void *)(eth + 7) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	a = eth[0];
	b = eth[1];
	c = eth[2];
	eth[0] = eth[3];
	eth[1] = eth[4];
	eth[2] = eth[5];
	eth[3] = a;
	eth[4] = b;
	eth[5] = c;
	return XDP_TX;
}
