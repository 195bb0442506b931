/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What bcc expects of kernel headers, for machines that have none. XDP and TC programs need only the
 * user-space API headers (linux-libc-dev); bcc force-includes this file before everything else, and brings
 * its own bpf.h.
 */
#ifndef VC5_SHIM_KCONFIG_H
#define VC5_SHIM_KCONFIG_H

#define __LINUX_BPF_H__
#define CONFIG_BPF_SYSCALL 1

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef signed short s16;
typedef signed int s32;
typedef signed long long s64;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)
#define offsetof(type, member) __builtin_offsetof(type, member)

#endif
