#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Sets up whatever vc5py needs on a Debian machine, then does what it is told. `./vc5.sh help` says what.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv
vc5py=$venv/bin/vc5py

run_packages=(python3-bpfcc python3-venv libbpf1 linux-libc-dev iproute2)
lab_packages=(bird2 nginx-light curl openssl)
test_packages=(frr gobgpd)

usage() {
	cat <<-'EOF'
	./vc5.sh lab [up|down|exec NODE COMMAND]   show the balancer at work in namespaces on this machine
	./vc5.sh test [--long] [PYTEST ARGUMENTS]  run all tests; --long: those too that take many minutes
	./vc5.sh bench [--quick|--profile|--json]  measure what a packet costs (docs/performance.md)
	./vc5.sh bench scale|checks|sync [--json]  measure what size and what probes cost the control plane
	./vc5.sh bench bfd [--json]                measure BFD while all cores are busy
	./vc5.sh bench bfd --long|--sessions       ten minutes of what balancers use; how many sessions there can be
	./vc5.sh setup                             only install what is needed; leaves .venv/bin/vc5py
	./vc5.sh ADDRESS INTERFACE...              vc5py run -c vc5.yaml --address ADDRESS INTERFACE...
	./vc5.sh COMMAND ...                       any other command of vc5py: run, check, --version
	EOF
}

say() { printf 'vc5.sh: %s\n' "$*" >&2; }

die() { say "$*"; exit 1; }

# Installs the Debian packages of the list that are missing. Services that they bring (bird, nginx) are not
# started: the lab starts its own, in namespaces.
need_packages() {
	local missing=() package policy=/usr/sbin/policy-rc.d
	for package in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "these Debian packages are missing, and installing them takes root: ${missing[*]}"
	say "installing ${missing[*]}"
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' RETURN
		printf '#!/bin/sh\nexit 101\n' > "$policy"
		chmod 755 "$policy"
	fi
	apt-get update -qq || say "apt-get update failed; trying with the package lists as they are"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
}

# The virtual environment, made anew whenever what it is made of changes. It must be the system's python3,
# and see the system's packages: bcc is Debian's.
need_venv() {
	local extras=$1 stamp=$venv/stamp-$1 made_of
	made_of=$(cat "$here/pyproject.toml" "$here/constraints.txt" | sha256sum)
	[ "$(cat "$stamp" 2>/dev/null)" != "$made_of" ] || return 0
	say "making the virtual environment ($extras) in $venv: takes a minute or so"
	[ -x "$venv/bin/python" ] || /usr/bin/python3 -m venv --system-site-packages "$venv"
	"$venv/bin/pip" install --quiet --disable-pip-version-check --constraint "$here/constraints.txt" \
		--editable "$here$([ "$extras" = run ] || echo "[$extras]")"
	echo "$made_of" > "$stamp"
}

need_bpffs() {
	[ "$(stat -f -c %T /sys/fs/bpf 2>/dev/null)" = bpf_fs ] && return 0
	[ "$(id -u)" = 0 ] || die "/sys/fs/bpf is not mounted, and mounting it takes root"
	mount -t bpf bpf /sys/fs/bpf
}

setup() {
	need_packages "${run_packages[@]}"
	need_venv run
	need_bpffs
}

run_tests() {
	local which=()
	if [ "${1:-}" = --long ]; then
		which=(-m "long or not long")
		shift
	fi
	[ "$(id -u)" = 0 ] || die "the tests load programs into the kernel and make namespaces: run them as root"
	cd "$here"
	need_packages "${run_packages[@]}" "${lab_packages[@]}" "${test_packages[@]}"
	need_venv test
	need_bpffs
	"$venv/bin/ruff" check .
	"$venv/bin/ruff" format --check .
	"$venv/bin/mypy"
	# The differential fuzz of the data plane is part of the whole; its seed changes, and is printed.
	[ $# -gt 0 ] || "$venv/bin/python" -m tests.fuzz.differential --executions 1000000 --seed "$RANDOM"
	"$venv/bin/python" -m pytest "${which[@]}" "$@"
}

case ${1:-help} in
help | -h | --help)
	usage
	;;
setup)
	setup
	say "ready: $vc5py"
	;;
test)
	shift
	run_tests "$@"
	;;
bench)
	shift
	setup
	[ "$(id -u)" = 0 ] || die "the benchmark loads programs into the kernel: run it as root"
	cd "$here"
	what=dataplane
	case ${1:-} in
	scale | checks | sync | bfd)
		what=$1
		shift
		[ -e "tests/bench/$what.py" ] || die "there is no benchmark of that name yet: $what"
		;;
	esac
	exec "$venv/bin/python" -m "tests.bench.$what" "$@"
	;;
lab)
	setup
	need_packages "${lab_packages[@]}"
	exec "$vc5py" "$@"
	;;
[0-9]*.[0-9]*.[0-9]*.[0-9]*)
	[ $# -ge 2 ] || die "an interface is missing: ./vc5.sh ADDRESS INTERFACE..."
	setup
	exec "$vc5py" run --config "${VC5_CONFIG:-vc5.yaml}" --address "$@"
	;;
*:* | eth[0-9]* | en[opsx][0-9]* | bond[0-9]*)
	die "$1: our own IPv4 address (BGP's router id) comes first: ./vc5.sh ADDRESS INTERFACE..."
	;;
*)
	[ ! -e "/sys/class/net/$1" ] || die "$1: our own IPv4 address comes first: ./vc5.sh ADDRESS INTERFACE..."
	setup
	exec "$vc5py" "$@"
	;;
esac
