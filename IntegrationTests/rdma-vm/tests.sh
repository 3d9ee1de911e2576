#!/usr/bin/env bash
# Runs in a guest: the tests of a place, one after the other.
#
# tests.sh one|two [WORDS]    runs them, of which names contain WORDS; results also go to /out/results
# tests.sh plan [WORDS]       prints place, kind of guest, deadline in seconds, and name of each
#
# A test is a function and its arguments. It succeeds by returning 0 before its deadline; it runs in a session of its own,
# and what it leaves behind - processes, faults of the wire - is removed before the next one.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
clone=$(readlink -f "$here/../..")
# shellcheck source=guest.sh
. "$here/guest.sh"

# Place (one guest with four pairs of NICs, or two guests with two NICs each), kind of guest, deadline, function and arguments.
# rxm is libfabric's "verbs;ofi_rxm". On user-mode Linux it takes longer to connect than the provider has patience; so does
# te demo, whose four processes never sleep, on QEMU's two slow processors.
plan() { # [WORDS]
  awk -v kind="$(rdma_kind)" '$2 == "any" || $2 == kind' << 'PLAN' | grep -e "^[a-z]* *[a-z]* *[0-9]* .*${1:-}"
one any   20 devices 8
one any   60 pingpong
one any   40 perftest
one uml  240 conformance verbs rxa0
one uml  240 conformance verbs rxa0,rxb0
one any  240 conformance verbs rxa0,rxb0,rxa1,rxb1
one any  120 conformance verbsLists rxa0,rxb0 /(barriers|badDescriptors|countAfterData|immediates|messages)
one qemu 120 conformance verbsRxm 10.1.0.10,10.1.0.20 /(barriers|badDescriptors|countAfterData|immediates|messages)
one uml   90 demo 1,2
one any   40 transfer verbs 1 1
one any   40 transfer verbs 4 4
one any   40 transfer verbs 1 4
one any   40 transfer verbs 4 2
one qemu  60 transfer rxm 2 2
one any   60 faulty ok verbs loss 0.1%
one any   60 faulty ok verbs loss 1%
one any   60 faulty either verbs loss 5%
one any   60 faulty ok verbs delay 5ms
one any   60 faulty either verbs delay 2ms reorder 90%
one qemu  60 faulty ok rxm loss 1%
one any   60 cable verbs plugged
one any   60 cable verbs pulled
one any   60 killed verbs receiver
one any   60 killed verbs sender
one qemu  60 killed rxm receiver
one any   40 wrong_key verbs
one qemu  60 wrong_key rxm
two any   60 transfer verbs 1 1
two any   60 transfer verbs 2 2
two any   60 transfer verbs 1 2
two qemu  60 transfer rxm 1 1
two any   60 wire_fault verbs drop 50
two any   60 wire_fault verbs swap 50
two any   60 wire_fault verbs delay 50
two any   60 wire_fault verbs corrupt 50
two any   60 wire_fault verbs duplicate 50
two any   60 wire_fault verbs lose-ack
two any   60 silence verbs
two any   60 host verbs freeze
two any   60 host verbs kill
PLAN
}

# ---- What tests are made of

transports="verbs rxm"

# libfabric's verbs asks for longer queues than soft-RoCE has, unless told otherwise. And unless its cache of registrations
# is off, peers can write into memory after it was deregistered.
export FI_UNIVERSE_SIZE=16 FI_OFI_RXM_MSG_TX_SIZE=64 FI_OFI_RXM_MSG_RX_SIZE=64

# The options that name the NICs of side a or b for te-peer: nics TRANSPORT SIDE FIRST COUNT
nics() {
  local number
  for ((number = $3; number < $3 + $4; number++)); do
    case $1 in
      verbs) if [ "$place" = one ]; then echo "--nic verbs@rx$2$number"; else echo "--nic verbs@rxe$number"; fi ;;
      rxm) echo "--nic verbs;ofi_rxm@10.1.0.$([ "$2" = a ] && echo 1 || echo 2)$number" ;;
    esac
  done
}

# Where the second of two guests has a receiver: standing TRANSPORT NICS
standing() { echo "10.1.0.20:7$(($([ "$1" = verbs ] && echo 40 || echo 50) + $2))0"; }

# receive PORT TRANSPORT SIDE FIRST COUNT OPTIONS...     in the background; its process is $receiver
receive() {
  # shellcheck disable=SC2046
  "$clone/.build/release/te-peer" receive --at "0.0.0.0:$1" $(nics "${@:2:4}") "${@:6}" &
  receiver=$!
}

# send TRANSPORT SIDE FIRST COUNT OPTIONS...
send() {
  # shellcheck disable=SC2046
  "$clone/.build/release/te-peer" send $(nics "${@:1:4}") "${@:5}"
}

# The same in the background, from the moment on when the first round has been checked; its process is $sender.
send_on() {
  # shellcheck disable=SC2046
  "$clone/.build/release/te-peer" send $(nics "${@:1:4}") "${@:5}" > sending &
  sender=$!
  until grep -q running sending; do
    kill -0 $sender 2> /dev/null || { cat sending; return 1; }
    sleep 0.1
  done
}

ended() { # PROCESS
  local status=0
  wait "$1" || status=$?
  [ ! -f sending ] || cat sending
  return $status
}

listening() { until ss -Hltn "sport = :$1" | grep -q .; do sleep 0.1; done; }

on_wire() { tc qdisc add dev "$1" root netem limit 10000 "${@:2}"; }

# ---- Tests

devices() {
  [ "$(ibv_devices | grep -c ' rx[ab][0-9]')" = "$1" ]
  [ "$(ibv_devinfo | grep -c PORT_ACTIVE)" = "$1" ]
}

# Between NICs of a pair, across pairs, and from a NIC to itself.
pingpong() {
  local server nic
  for nic in rxb0 rxb1 rxa1 rxa0; do
    ibv_rc_pingpong -d "$nic" -g 1 -n 100 -c > server &
    server=$!
    listening 18515
    ibv_rc_pingpong -d rxa0 -g 1 -n 100 -c 127.0.0.1
    wait $server
  done
}

perftest() {
  local server
  ib_write_bw -F -d rxb0 -x 1 -n 200 > server &
  server=$!
  listening 18515
  ib_write_bw -F -d rxa0 -x 1 -n 200 127.0.0.1
  wait $server
}

# The suite that every provider has to pass, in one process: all engines have the NICs named here. Sixty-four peers reserve
# more than the 512 GiB of addresses that a process has on user-mode Linux.
conformance() { # verbs|verbsLists|verbsRxm DEVICES|ADDRESSES [TESTS]
  local skipped=()
  [ "$(rdma_kind)" = qemu ] || skipped=(--skip sixtyFourPeers)
  TE_CONFORMANCE=$1 TE_REQUIRE_VERBS=1 TE_VERBS_DEVICES=$2 TE_RXM_ADDRESSES=$2 \
    "$clone/.build/debug/transfer-enginePackageTests.xctest" --testing-library swift-testing \
    --filter "ConformanceTests${3:-}" "${skipped[@]}" 2>&1 | grep -v -e ' started\.' -e ' passed after .* seconds\.$'
}

# The program that everybody can run: a file to three other processes, its digest compared.
demo() { # NICS
  head -c 4M /dev/urandom > file
  "$clone/.build/release/te" demo --quick --transports verbs --nics "$1" --file "$PWD/file"
}

# Every byte and every count, with some NICs here and some there; twice with the same engines.
transfer() { # TRANSPORT NICS NICS
  local to=127.0.0.1:7300
  if [ "$place" = one ]; then receive 7300 "$1" b 0 "$3" --sessions 2; else to=$(standing "$1" "$3"); fi
  send "$1" a 0 "$2" --to "$to" --to "$to"
}

# A wire that does what wires do: all arrives, only later; or, on a wire that is bad enough for it, there is an error.
faulty() { # ok|either TRANSPORT NETEM...
  local expected=$1 patience=()
  shift
  # A connection of librdmacm waits for seconds before it sends again what was lost (the test takes 10 s where ours takes 5): whoever
  # is asked for a sign of life meanwhile must not count as lost after 3 s. docs/rdma-rig.md says it to users.
  [ "$1" != rxm ] || patience=(--heartbeat 4)
  receive 7300 "$1" b 0 1 "${patience[@]}"
  send_on "$1" a 0 1 --to 127.0.0.1:7300 --seconds 2 --deadline 20 --expect "$expected" "${patience[@]}"
  on_wire pb0 "${@:2}"
  on_wire pa0 "${@:2}"
  ended $sender
  ended $receiver
}

# A cable is pulled while data moves. Plugged in again soon or not, the transfer ends well or with an error, and the sender
# goes on with another receiver on another NIC.
cable() { # TRANSPORT pulled|plugged
  receive 7300 "$1" b 0 1
  receive 7301 "$1" b 1 1
  send_on "$1" a 0 1 --to 127.0.0.1:7300 --to 127.0.0.1:7301 --seconds 2 --expect either
  ip link set pb0 down
  sleep 0.3
  [ "$2" = pulled ] || ip link set pb0 up
  ended $sender
}

# One side dies while data moves. The sender sees an error and goes on with another receiver; a receiver waits for another
# sender.
killed() { # TRANSPORT receiver|sender
  local first
  receive 7300 "$1" b 0 1 --sessions 2
  first=$receiver
  receive 7301 "$1" b 0 1
  send_on "$1" a 0 1 --to 127.0.0.1:7300 --to 127.0.0.1:7301 --seconds 20 --expect error
  case $2 in
    receiver)
      kill -9 "$first"
      ended $sender
      ;;
    sender)
      kill -9 $sender
      send "$1" a 0 1 --to 127.0.0.1:7300
      ended "$first"
      ;;
  esac
}

# A wrong key is refused, changes nothing, and the next receiver is reached.
wrong_key() { # TRANSPORT
  receive 7300 "$1" b 0 1
  receive 7301 "$1" b 0 1
  send "$1" a 0 1 --to 127.0.0.1:7300 --to 127.0.0.1:7301 --wrong-key --expect error
  ended $receiver
}

# Chosen packets are treated badly; all arrives, once.
wire_fault() { # TRANSPORT FAULT [EVERY]
  wire "${@:2}"
  send "$1" a 0 1 --to "$(standing "$1" 1)" --deadline 20
  [ "$(wire clear)" -gt 0 ] || { echo "the wire saw no such packet"; return 1; }
}

# The data of the last write is there and counted, but the sender cannot know: an error, and nothing is counted twice.
silence() { # TRANSPORT
  wire lose-acks
  send "$1" a 0 1 --to "$(standing "$1" 1)" --expect error
  [ "$(wire clear)" -gt 0 ] || { echo "the wire saw no such packet"; return 1; }
  send "$1" a 0 1 --to "$(standing "$1" 1)"
}

# The other host stops, for a while or for good. The sender sees an error and goes on with another receiver; a host that
# comes back is reached again.
host() { # TRANSPORT freeze|kill
  receive 7300 "$1" a 1 1
  send_on "$1" a 0 1 --to "$(standing "$1" 1)" --to 127.0.0.1:7300 --seconds 30 --expect error
  wire "$2" b
  ended $sender
  [ "$2" = kill ] && return
  wire thaw b
  send "$1" a 0 1 --to "$(standing "$1" 1)"
}

# ---- How they are run

# Runs one test by itself, prints how it went, and cleans up: attempt DEADLINE NAME
attempt() {
  local start=$EPOCHREALTIME status=0 leader verdict
  # shellcheck disable=SC2086
  setsid timeout -k 2 "$1" bash "$here/tests.sh" test "$place" $2 > /tmp/log 2>&1 &
  leader=$!
  wait $leader || status=$?
  kill -KILL -- -$leader 2> /dev/null || true
  if [ "$place" = one ]; then
    for port in /sys/class/net/p[ab]*; do
      tc qdisc del dev "${port##*/}" root 2> /dev/null || true
      ip link set "${port##*/}" up
    done
  else
    wire clear > /dev/null
  fi
  [ $status = 0 ] && verdict=ok || verdict=FAIL
  awk -v "verdict=$verdict" -v "start=$start" -v "end=$EPOCHREALTIME" -v "name=$2" \
    'BEGIN { printf "%-5s %6.1f s  %s\n", verdict, end - start, name }' | tee -a /out/results
  [ $status = 0 ] && return
  [ $status != 124 ] && [ $status != 137 ] || echo "  did not end within $1 s"
  tail -n 25 /tmp/log | sed 's/^/  /'
}

# In the second of two guests: receivers on one NIC and on both, of each transport, for as many senders as come.
serve() {
  local transport count
  for transport in $transports; do
    for count in 1 2; do
      while true; do
        receive "$(standing "$transport" "$count" | cut -d : -f 2)" "$transport" b 0 "$count" --sessions 1000
        wait $receiver || true
      done > /dev/null 2>&1 &
    done
  done
  wait
}

case ${1:-} in
  plan) plan "${2:-}" ;;
  serve)
    place=two
    serve
    ;;
  test)
    place=$2
    cd "$(mktemp -d)"
    "${@:3}"
    ;;
  one | two)
    place=$1
    while read -r where _ deadline name; do
      [ "$where" != "$place" ] || attempt "$deadline" "$name"
    done < <(plan "${2:-}")
    ;;
  *) exit 2 ;;
esac
