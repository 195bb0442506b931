/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps. The control plane creates or adopts them (vc5py/dataplane/maps.py) and compiles their file
 * descriptors in, as FD_<name>; sizes that depend on the configuration come as macros beside them, so that
 * the compiler can fold them.
 */
#ifndef VC5_MAPS_H
#define VC5_MAPS_H

#define MAP(name) bpf_pseudo_fd(1, FD_##name)

static __always_inline void *map_lookup(u64 map, const void *key)
{
	return bpf_map_lookup_elem_(map, (void *)key);
}

static __always_inline struct flow_set *flow_set_at(u32 index)
{
	return map_lookup(MAP(flows), &index);
}

static __always_inline struct service *service_at(u32 index)
{
	return map_lookup(MAP(services), &index);
}

static __always_inline struct backend *backend_at(u32 index)
{
	return map_lookup(MAP(backends), &index);
}

static __always_inline struct slot_line *slot_line_at(u32 index)
{
	return map_lookup(MAP(slots), &index);
}

static __always_inline struct interface *interface_at(u32 ifindex)
{
	return map_lookup(MAP(interfaces), &ifindex);
}

static __always_inline struct settings *settings_get(void)
{
	u32 zero = 0;

	return map_lookup(MAP(settings), &zero);
}

/* Counters are striped by CPU inside plain arrays, so that the control plane reads them without a syscall. */
static __always_inline void count_verdict(enum verdict verdict)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct verdict_counts *counts = map_lookup(MAP(verdict_counts), &cpu);

	if (counts)
		counts->packets[verdict & (VERDICT_SLOTS - 1)]++;
}

static __always_inline void count_backend(u32 index, u32 bytes)
{
	u32 key = bpf_get_smp_processor_id() * BACKEND_CAPACITY + index;
	struct backend_count *count = map_lookup(MAP(backend_counts), &key);

	if (count) {
		count->packets++;
		count->bytes += bytes;
	}
}

static __always_inline struct icmp_budget *icmp_budget_here(void)
{
	u32 cpu = bpf_get_smp_processor_id();

	return map_lookup(MAP(icmp_budgets), &cpu);
}

#endif
