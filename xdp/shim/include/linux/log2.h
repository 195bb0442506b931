/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty on purpose: bcc includes it and uses nothing of it here. */
