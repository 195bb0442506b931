/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tells the control plane which flows are new or have changed, so that it can share them with other balancers:
 * each CPU writes them into a ring of its own, one after the other. Cheaper than marking where in the flow
 * table they are: nothing that CPUs share is written, and the reader reads what has changed and no more.
 *
 * Whoever is too slow loses the oldest ones; what he misses is told again by a look through the whole table. So is
 * what is lost where two CPUs write into one ring, because one of them came after the maps were made.
 */
#ifndef VC5_SHARE_H
#define VC5_SHARE_H

/* FLOW_LOG: entries of a CPU's ring, a power of two; 0 where nothing is shared. */
static __always_inline void flow_log(u64 hash, u64 value)
{
	u32 cpu = stripe();
	struct flow_log_head *head;
	struct flow_entry *entry;
	u64 written;

	if (!FLOW_LOG)
		return;
	head = ELEMENT(flow_log_heads, struct flow_log_head, cpu);
	if (!head)
		return;
	written = head->written;
	entry = ELEMENT(flow_log, struct flow_entry, cpu * FLOW_LOG + (u32)(written & (FLOW_LOG - 1)));
	if (!entry)
		return;
	WRITE_ONCE(entry->value, value);
	WRITE_ONCE(entry->tag, hash ^ value);
	WRITE_ONCE(head->written, written + 1);
}

#endif
