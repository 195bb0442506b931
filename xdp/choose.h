/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which backend of a service gets a packet.
 *
 * A stable slot of the Maglev table names the backend of every live flow in it, so that most packets need
 * no look at the flow table. The exceptions: the last packet of a connection, and those in one tick out of
 * SAMPLE_TICKS, which make the flow's entry and keep it alive. The first packet is none: what the table doesn't
 * know of when the slot changes is still known to be where the slot led, and a flood costs no more than other
 * packets.
 *
 * In an unstable slot, and where a service's slots say nothing of its flows, the flow table decides, and every
 * packet is recorded. What the table doesn't know goes where the slot led before it changed, unless it is a new
 * connection.
 *
 * Invariant: a connection's packets never change backend while that backend is up.
 */
#ifndef VC5_CHOOSE_H
#define VC5_CHOOSE_H

#define SAMPLE_TICKS 64

/* A datagram doesn't say that it is the first of its flow. After so long a silence it is: longer than a changed
 * slot stays unstable, so that what was recorded there meanwhile holds for as long as anything does.
 */
#define UDP_OVER_TICKS 768

struct choice {
	struct backend *backend;
	u32 index; /* of the backend, among all */
	u32 local; /* the same, counted from its service's first */
};

/* What is needed to choose: the service, and the flow's names. */
struct flow {
	const struct service *service;
	u32 service_index;
	u64 hash;      /* the flow's name */
	u64 slot_hash; /* the same, or for a sticky service that of the client's address */
};

static __always_inline bool choose_local(const struct service *service, u32 local, struct choice *choice)
{
	u64 backends = READ_ONCE(service->backends);

	if (local >= backends >> BACKEND_ROOM_SHIFT)
		return false;
	choice->index = (u32)backends + local;
	choice->local = local;
	choice->backend = backend_at(choice->index);
	return choice->backend && choice->backend->flags & BACKEND_UP;
}

/* A slot of a table, with its SLOT_UNSTABLE. */
static __always_inline u32 slot_lookup(u64 table, u32 number)
{
	u32 slot = number & ((1U << (table >> TABLE_LOG2_SHIFT & 31)) - 1);
	struct slot_line *line = slot_line_at((u32)table + slot / SLOTS_PER_LINE);

	return line ? line->slot[slot % SLOTS_PER_LINE] : SLOT_NONE;
}

static __always_inline bool sampled(u64 hash, u16 now)
{
	return !((now + (hash >> 56)) & (SAMPLE_TICKS - 1));
}

/*
 * Writes back what one more packet of a known flow changes: at most once a tick, and at its end. An entry that
 * is closing tells when its end was seen.
 */
static __always_inline void flow_refresh(const struct flow_place *place, u64 hash, const struct packet *p, u16 now)
{
	enum flow_state old = flow_state(place->value);
	s16 age = now - flow_tick(place->value);
	enum flow_state state = flow_next_state(old, p, age);

	u64 value = flow_value(flow_service(place->value), flow_local(place->value), state, now);

	if (state != old || (age && (p->ends || old != FLOW_CLOSING)))
		flow_write(place->entry, hash, value);
	if (state != old)
		flow_log(hash, value);
}

/*
 * Whether the packet is the first of a flow that only has its name in common with the one that the entry tells
 * of: clients use their ports again. A SYN alone doesn't prove it, or a stranger could move a connection with a
 * FIN and a SYN; the silence of the flow before it must have lasted for longer than its entry is kept.
 */
static __always_inline bool flow_is_another(u64 value, const struct packet *p, u16 now)
{
	const struct settings *settings;

	if (p->protocol != IPPROTO_UDP && (!p->starts || p->ends))
		return false;
	settings = settings_get();
	if (!settings || !flow_expired(value, now, settings))
		return false;
	return p->protocol != IPPROTO_UDP || flow_age(value, now) > UDP_OVER_TICKS + CLOCK_SLACK;
}

/* Of the slot's backend and the one of another slot the less loaded one. */
static __always_inline u32 less_loaded(const struct flow *f, u32 local)
{
	u32 other = slot_lookup(READ_ONCE(f->service->table), hash_other_slot(f->hash)) & SLOT_NONE;
	struct choice a = {}, b = {};

	if (!choose_local(f->service, other, &b))
		return local;
	if (!choose_local(f->service, local, &a))
		return other;
	return b.backend->load < a.backend->load ? other : local;
}

/* Where a flow goes that is not in the table: false where no real is up. */
static __always_inline bool choose_unknown(const struct flow *f, u32 slot, const struct packet *p,
					   u32 *local, enum verdict *verdict, struct choice *choice)
{
	*verdict = VERDICT_FORWARDED_NEW;
	*local = slot & SLOT_NONE;
	if (slot & SLOT_UNSTABLE && !p->starts) {
		*local = slot_lookup(READ_ONCE(f->service->previous), hash_slot(f->slot_hash)) & SLOT_NONE;
		if (choose_local(f->service, *local, choice)) {
			*verdict = VERDICT_FORWARDED_PREVIOUS;
			return true;
		}
		*local = slot & SLOT_NONE;
	}
	if (f->service->flags & SERVICE_LEAST_CONNS)
		*local = less_loaded(f, *local);
	return choose_local(f->service, *local, choice);
}

/* A flow for which there is no room: one that starts in an unstable slot must go where its next packets will. */
static __always_inline enum verdict choose_unrecorded(const struct flow *f, u32 slot, const struct packet *p,
						      struct choice *choice)
{
	struct choice previous = {};
	u32 local;

	if (slot & SLOT_UNSTABLE && p->starts) {
		local = slot_lookup(READ_ONCE(f->service->previous), hash_slot(f->slot_hash)) & SLOT_NONE;
		if (choose_local(f->service, local, &previous))
			*choice = previous;
	}
	return VERDICT_FORWARDED_UNRECORDED;
}

/* Whether the slot's backend is that of every live flow in it. */
static __always_inline bool slot_is_sure(const struct flow *f, u32 slot)
{
	return !(slot & SLOT_UNSTABLE) && !(f->service->flags & SERVICE_BY_FLOW);
}

static __always_inline enum verdict choose_by_flow(const struct flow *f, u32 slot, const struct packet *p, u16 now,
						   struct choice *choice)
{
	struct flow_place place = {};
	enum verdict verdict;
	bool another;
	u32 local;
	u64 value;

	if (!flow_find(&place, f->hash))
		return VERDICT_NO_BACKEND;
	another = place.entry && flow_is_another(place.value, p, now);
	if (place.entry && !another && flow_service(place.value) == f->service_index) {
		if (choose_local(f->service, flow_local(place.value), choice)) {
			flow_refresh(&place, f->hash, p, now);
			return VERDICT_FORWARDED_FLOW;
		}
		slot &= ~SLOT_UNSTABLE; /* its real is down: the table's present choice, for good */
	}
	if (!choose_unknown(f, slot, p, &local, &verdict, choice))
		return VERDICT_NO_BACKEND;
	if (p->ends)
		return VERDICT_FORWARDED_ENDING;
	value = flow_value(f->service_index, local, FLOW_UNPROVEN, now);
	if (place.entry) {
		flow_write(place.entry, f->hash, value);
		flow_log(f->hash, value);
		return another ? verdict : VERDICT_FORWARDED_REHASHED;
	}
	if (flow_insert(&place, f->hash, value, now, true)) {
		flow_log(f->hash, value);
		return verdict;
	}
	return choose_unrecorded(f, slot, p, choice);
}

static __always_inline enum verdict choose_backend(const struct flow *f, const struct packet *p,
						   struct choice *choice)
{
	u32 slot = slot_lookup(READ_ONCE(f->service->table), hash_slot(f->slot_hash));
	u16 now = flow_now();

	if (slot_is_sure(f, slot) && !p->ends && !sampled(f->hash, now) && choose_local(f->service, slot, choice))
		return VERDICT_FORWARDED_STABLE;
	return choose_by_flow(f, slot, p, now, choice);
}

/* The backend that an ICMP error about a flow concerns: as for the flow's next packet, but nothing is recorded. */
static __always_inline bool choose_for_error(const struct flow *f, struct choice *choice)
{
	struct flow_place place = {};
	u32 slot, previous;

	if (flow_find(&place, f->hash) && place.entry && flow_service(place.value) == f->service_index &&
	    choose_local(f->service, flow_local(place.value), choice))
		return true;
	slot = slot_lookup(READ_ONCE(f->service->table), hash_slot(f->slot_hash));
	if (slot & SLOT_UNSTABLE) {
		previous = slot_lookup(READ_ONCE(f->service->previous), hash_slot(f->slot_hash)) & SLOT_NONE;
		if (choose_local(f->service, previous, choice))
			return true;
	}
	return choose_local(f->service, slot & SLOT_NONE, choice);
}

/* Remembers, or finds out, where the fragments of one packet go: an entry of the flow table of its own kind. */
static __always_inline void fragment_record(u64 hash, u32 service, u32 local)
{
	struct flow_place place = {};
	u16 now = flow_now();
	u64 value = flow_value(service, local, FLOW_FRAGMENT, now);

	if (!flow_find(&place, hash))
		return;
	if (place.entry)
		flow_write(place.entry, hash, value);
	else
		flow_insert(&place, hash, value, now, false);
}

/* An expired entry tells of another packet: identifications are used again. */
static __always_inline bool choose_for_fragment(u64 hash, struct choice *choice)
{
	const struct settings *settings = settings_get();
	struct flow_place place = {};
	struct service *service;

	if (!flow_find(&place, hash) || !place.entry || flow_state(place.value) != FLOW_FRAGMENT)
		return false;
	if (!settings || flow_expired(place.value, flow_now(), settings))
		return false;
	service = service_at(flow_service(place.value));
	return service && choose_local(service, flow_local(place.value), choice);
}

#endif
