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

/*
 * An element of an array. A map of one single value, which is the whole array, can be addressed like memory:
 * no key on the stack, no call; the verifier allows it for values up to DIRECT_MAX_BYTES (maps.py).
 */
#define ELEMENT(name, type, index)                                                                             \
	({                                                                                                     \
		u32 number = (index);                                                                          \
		DIRECT_##name ? (type *)element_of(bpf_pseudo_fd(2, FD_##name), number, COUNT_##name,          \
						   sizeof(type)) :                                             \
				(type *)map_lookup(MAP(name), &number);                                        \
	})

static __always_inline void *element_of(u64 array, u64 number, u64 count, u64 bytes)
{
	void *at;

	asm volatile("" : "+r"(number)); /* or the compiler checks one copy of it and uses another */
	if (number >= count)
		return NULL;
	at = (void *)(array + number * bytes);
	__builtin_assume(at != NULL);
	return at;
}

static __always_inline struct flow_set *flow_set_at(u32 index)
{
	return ELEMENT(flows, struct flow_set, index);
}

static __always_inline struct service *service_at(u32 index)
{
	return ELEMENT(services, struct service, index);
}

static __always_inline struct backend *backend_at(u32 index)
{
	return ELEMENT(backends, struct backend, index);
}

static __always_inline struct slot_line *slot_line_at(u32 index)
{
	return ELEMENT(slots, struct slot_line, index);
}

static __always_inline struct interface *interface_at(u32 ifindex)
{
	return ELEMENT(interfaces, struct interface, ifindex);
}

static __always_inline struct settings *settings_get(void)
{
	return ELEMENT(settings, struct settings, 0);
}

/*
 * Counters are striped by CPU inside plain arrays, so that the control plane reads them without a syscall. There
 * is a stripe for each CPU that was running when the maps were made; one that comes later may share another's, and
 * now and then one of the two loses a packet in the count.
 */
static __always_inline u32 stripe(void)
{
	return bpf_get_smp_processor_id() & STRIPE_MASK;
}

static __always_inline void count_verdict(enum verdict verdict)
{
	struct verdict_counts *counts = ELEMENT(verdict_counts, struct verdict_counts, stripe());

	if (counts)
		counts->packets[verdict & (VERDICT_SLOTS - 1)]++;
}

static __always_inline void count_backend(u32 index, u32 bytes)
{
	u32 key = stripe() * BACKEND_CAPACITY + index;
	struct backend_count *count = ELEMENT(backend_counts, struct backend_count, key);

	if (count) {
		count->packets++;
		count->bytes += bytes;
	}
}

static __always_inline struct icmp_budget *icmp_budget_here(void)
{
	return ELEMENT(icmp_budgets, struct icmp_budget, stripe());
}

#endif
