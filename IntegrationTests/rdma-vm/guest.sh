# Sourced in a guest: soft-RoCE NICs and their wires, all in one network namespace, in which soft-RoCE works.
#
# rdma_pairs 2 makes the NICs rxa0, rxb0, rxa1 and rxb1 on the network devices a0, b0, a1 and b1 with the addresses
# 10.1.0.10, 10.1.0.20, 10.1.0.11, 10.1.0.21. All of them can talk to each other, through the bridge `wire`; GID 1 is
# the IPv4 one. The other end of a device's cable is its port, pa0 for a0: what leaves by a port arrives at the NIC, so that
#   tc qdisc add dev pb0 root netem loss 1%       loses what is sent to b0,
#   ip link set pb0 down                          pulls the cable of b0.

# Between two addresses of one host the kernel would take the loopback device, where soft-RoCE hears nothing. So what
# comes from a NIC's address leaves by that NIC, except to itself, and what comes in by a NIC is for this host.
rdma_nic() { # DEVICE ADDRESS NIC
  local table
  table=$((1000 + $(cat "/sys/class/net/$1/ifindex")))
  ip link set "$1" mtu 4200
  ip addr add "$2/24" dev "$1"
  ip link set "$1" up
  echo 0 > "/proc/sys/net/ipv4/conf/$1/rp_filter"
  echo 1 > "/proc/sys/net/ipv4/conf/$1/accept_local"
  ip rule add pref 10 iif "$1" lookup local
  ip rule add pref 20 from "$2" to "$2" lookup local
  ip rule add pref 30 from "$2" lookup "$table"
  rdma_route "$1" "$2"
  rdma link add "$3" type rxe netdev "$1"
}

# Needed again after the device, not its port, was down: DEVICE ADDRESS
rdma_route() { ip route replace 10.1.0.0/24 dev "$1" src "$2" table $((1000 + $(cat "/sys/class/net/$1/ifindex"))); }

rdma_policy() {
  echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
  echo 1 > /proc/sys/net/ipv4/conf/all/accept_local
  echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore
  echo 2 > /proc/sys/net/ipv4/conf/all/arp_announce
  ip rule add pref 100 lookup local
  ip rule del pref 0
}

rdma_pairs() { # COUNT
  local number side
  [ "$1" -gt 0 ] || return 0
  rdma_policy
  ip link add wire mtu 4200 type bridge
  ip link set wire up
  for ((number = 0; number < $1; number++)); do
    for side in a b; do
      ip link add "$side$number" mtu 4200 type veth peer name "p$side$number" mtu 4200
      ip link set "p$side$number" master wire up
      rdma_nic "$side$number" "10.1.0.$([ $side = a ] && echo 1 || echo 2)$number" "rx$side$number"
    done
  done
}

# In one of two guests on a wire: all network devices become NICs, rxe0, rxe1, ...
rdma_host() { # 1 or 2
  local number=0 device
  rdma_policy
  for device in /sys/class/net/eth* /sys/class/net/vec*; do
    [ -e "$device" ] || continue
    rdma_nic "${device##*/}" "10.1.0.$1$number" "rxe$number"
    number=$((number + 1))
  done
}

# The kind of this guest, or, on the host, of those to be started.
rdma_kind() {
  case $(< /proc/cmdline) in
    *rig_out=*) echo uml ;;
    *) echo "${RIG:-qemu}" ;;
  esac
}

# Commands the wire of two guests (see `pair`), and prints its answer.
wire() {
  echo "$*" > /out/wire.new
  mv /out/wire.new /out/wire
  while [ -e /out/wire ]; do sleep 0.05; done
  cat /out/wire.answer
}
