// SPDX-License-Identifier: GPL-2.0-only
/* Tells the control plane the kernel's jiffies, from which it learns HZ: run once, on a frame of its own. */
#include <linux/bpf.h>

int vc5_jiffies(struct xdp_md *ctx)
{
	u64 *out = (void *)(long)ctx->data;

	if ((void *)(out + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	*out = bpf_jiffies64();
	return XDP_PASS;
}
