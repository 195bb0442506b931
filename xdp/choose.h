/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which backend of a service gets a packet: the one that the flow table names while it is up, else the one
 * that the Maglev table names, which is then recorded.
 */
#ifndef VC5_CHOOSE_H
#define VC5_CHOOSE_H

struct choice {
	struct backend *backend;
	u32 index; /* of the backend, among all */
};

static __always_inline bool choose_local(const struct service *service, u32 local, struct choice *choice)
{
	u64 backends = READ_ONCE(service->backends);

	if (local >= backends >> BACKEND_ROOM_SHIFT)
		return false;
	choice->index = (u32)backends + local;
	choice->backend = backend_at(choice->index);
	return choice->backend && choice->backend->flags & BACKEND_UP;
}

/* The Maglev table's backend, counted from the service's first; SLOT_NONE where no real is up. */
static __always_inline u32 maglev_lookup(const struct service *service, u64 hash)
{
	u64 table = READ_ONCE(service->table);
	u32 slot = hash_slot(hash) & ((1U << (table >> TABLE_LOG2_SHIFT & 31)) - 1);
	u32 line_index = (u32)table + slot / SLOTS_PER_LINE;
	struct slot_line *line = map_lookup(MAP(slots), &line_index);

	return line ? line->slot[slot % SLOTS_PER_LINE] : SLOT_NONE;
}

/* Writes back what one more packet of a known flow changes: at most once a tick, and at its end. */
static __always_inline void flow_refresh(struct flow_entry *entry, u64 hash, u64 value, const struct packet *p,
					 u16 now)
{
	enum flow_state old = flow_state(value);
	bool later = flow_tick(value) != now;
	enum flow_state state = flow_next_state(old, p->starts, p->ends, later);

	if (later || state != old)
		flow_write(entry, hash, flow_value(flow_service(value), flow_local(value), state, now));
}

static __always_inline enum verdict choose_backend(const struct service *service, u32 service_index, u64 hash,
						   const struct packet *p, struct choice *choice)
{
	struct flow_set *first = flow_set_at(flow_first_set(hash));
	struct flow_set *second = NULL;
	struct flow_entry *entry;
	u16 now = flow_now();
	u64 value = 0;
	u32 local;

	if (!first)
		return VERDICT_NO_BACKEND;
	entry = flow_find_in(first, hash, &value);
	if (!entry) {
		second = flow_set_at(flow_second_set(hash));
		if (!second)
			return VERDICT_NO_BACKEND;
		entry = flow_find_in(second, hash, &value);
	}
	if (entry && flow_service(value) == service_index && choose_local(service, flow_local(value), choice)) {
		flow_refresh(entry, hash, value, p, now);
		return VERDICT_FORWARDED_FLOW;
	}

	local = maglev_lookup(service, hash);
	if (!choose_local(service, local, choice))
		return VERDICT_NO_BACKEND;
	value = flow_value(service_index, local, FLOW_UNPROVEN, now);
	if (entry) {
		flow_write(entry, hash, value);
		return VERDICT_FORWARDED_REHASHED;
	}
	if (p->ends)
		return VERDICT_FORWARDED_ENDING;
	if (!flow_insert(first, second, hash, value, now))
		return VERDICT_FORWARDED_UNRECORDED;
	return VERDICT_FORWARDED_NEW;
}

#endif
