/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From (VIP, port, protocol) to the service: sets of one cache line in a plain array, which the compiler
 * inlines, where a look-up in a BPF hash map costs as much as all the rest. An entry is in one of two sets;
 * the control plane (vc5py/dataplane/servicemap.py) finds the places, so that no set ever overflows.
 */
#ifndef VC5_SERVICES_H
#define VC5_SERVICES_H

static __always_inline u64 service_key(__be16 port, u8 protocol)
{
	return KEY_VALID | (u64)protocol << 48 | (u64)port << 32;
}

static __always_inline struct service_entry4 *service_find_in4(u32 index, u64 key)
{
	struct service_set4 *set = ELEMENT(services4, struct service_set4, index);

	if (!set)
		return NULL;
#pragma unroll
	for (int i = 0; i < SERVICE_WAYS4; i++) {
		if (READ_ONCE(set->way[i].key) == key)
			return &set->way[i];
	}
	return NULL;
}

static __always_inline struct service_entry6 *service_find_in6(u32 index, const u64 vip[2], u64 key)
{
	struct service_set6 *set = ELEMENT(services6, struct service_set6, index);

	if (!set)
		return NULL;
#pragma unroll
	for (int i = 0; i < SERVICE_WAYS6; i++) {
		if (READ_ONCE(set->way[i].key) == key && set->way[i].vip[0] == vip[0] && set->way[i].vip[1] == vip[1])
			return &set->way[i];
	}
	return NULL;
}

/*
 * The two sets of a key. One more round, for in the last word's product the bits that make the sets do not yet
 * depend on its high bits, where port and protocol are; and bits apart, or the second set would follow the first.
 */
static __always_inline u64 service_hash_end(u64 hash)
{
	return hash_mix(hash, 0);
}

static __always_inline u32 service_first_set(u64 hash, u32 sets)
{
	return hash & (sets - 1);
}

static __always_inline u32 service_second_set(u64 hash, u32 sets)
{
	return hash >> 40 & (sets - 1);
}

static __always_inline u64 service_hash4(u64 key)
{
	return service_hash_end(hash_mix(0, key));
}

static __always_inline u64 service_hash6(const u64 vip[2], u64 key)
{
	return service_hash_end(hash_mix(hash_mix(hash_mix(0, vip[0]), vip[1]), key));
}

static __always_inline bool service_find4(u32 vip, u64 key, u32 *value)
{
	u64 hash = service_hash4(key | vip);
	struct service_entry4 *entry = service_find_in4(service_first_set(hash, SERVICE_SETS4), key | vip);

	if (!entry)
		entry = service_find_in4(service_second_set(hash, SERVICE_SETS4), key | vip);
	if (entry)
		*value = entry->value;
	return entry;
}

static __always_inline bool service_find6(const u64 vip[2], u64 key, u32 *value)
{
	u64 hash = service_hash6(vip, key);
	struct service_entry6 *entry = service_find_in6(service_first_set(hash, SERVICE_SETS6), vip, key);

	if (!entry)
		entry = service_find_in6(service_second_set(hash, SERVICE_SETS6), vip, key);
	if (entry)
		*value = entry->value;
	return entry;
}

/* The service's index; with port and protocol 0 the VIP's flags. False where there is none. */
static __always_inline bool service_find(const u64 vip[2], bool ipv6, __be16 port, u8 protocol, u32 *value)
{
	u64 key = service_key(port, protocol);

	return ipv6 ? service_find6(vip, key, value) : service_find4(vip[0], key, value);
}

#endif
