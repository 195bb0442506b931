// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes each repetition of BPF_PROG_TEST_RUN the packet of another client, by chance, and tail-calls the
 * program under test: floods of millions in seconds. With repeat the kernel doesn't restore the frame.
 */
#include <linux/bpf.h>

#define HEAD_BYTES 54 /* Ethernet, IPv4, TCP */
#define SOURCE     26 /* offset of the client's address */
#define PORT       34 /* of its port */

struct flood {
	u8 head[64];
	u32 mask; /* of the bits of the client's address and port that vary */
	u32 reserved;
};

int flood(struct xdp_md *ctx)
{
	u32 zero = 0;
	struct flood *flood = bpf_map_lookup_elem_(bpf_pseudo_fd(1, FD_flood), &zero);
	u8 *frame = (void *)(long)ctx->data;
	u32 chance = bpf_get_prandom_u32(), other = bpf_get_prandom_u32();

	if (!flood || frame + HEAD_BYTES > (u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(frame, flood->head, HEAD_BYTES);
	*(u32 *)(frame + SOURCE) ^= chance & flood->mask;
	*(u16 *)(frame + PORT) ^= other & (flood->mask >> 16);
	bpf_tail_call_(bpf_pseudo_fd(1, FD_stage), ctx, 0);
	return XDP_ABORTED;
}
