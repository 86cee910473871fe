# server (10.9.0.1, fd09::1) - neighbour (10.9.0.2, 10.9.0.130, fd09::2, fd09::3, fd09:0:0:1::2) - far (10.10.0.2)
for name in neighbour far; do
  ip netns list | grep -q "$name" || ip netns add "$name"
  ip netns exec "$name" sysctl -q -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0
done
ip link show wire >/dev/null 2>&1 && exit
sysctl -q -w net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0
ip link add wire type veth peer name wire netns neighbour
ip -n neighbour link add far type veth peer name near netns far
ip -n neighbour link set far mtu 1280
ip -n far link set near mtu 1280
ip link set wire up
for way in "neighbour lo" "neighbour wire" "neighbour far" "far lo" "far near"; do
  ip -n "${way% *}" link set "${way#* }" up
done
ip address add 10.9.0.1/24 dev wire
ip address add fd09::1/64 dev wire nodad
ip address add fd09:0:0:1::1/64 dev wire nodad
ip -n neighbour address add 10.9.0.2/24 dev wire
ip -n neighbour address add 10.9.0.130/24 dev wire
for address in fd09::2 fd09::3 fd09:0:0:1::2; do
  ip -n neighbour address add "$address/64" dev wire nodad
done
ip -n neighbour address add 10.10.0.1/24 dev far
ip -n neighbour address add fd10::1/64 dev far nodad
ip -n far address add 10.10.0.2/24 dev near
ip -n far address add fd10::2/64 dev near nodad
ip -n far route add default via 10.10.0.1
ip -n far -6 route add default via fd10::1
# Where a cloud tells its servers about themselves. The last one, as of Azure's load balancer, is not on the server.
ip address add 169.254.169.254/32 dev wire
ip address add 100.100.100.200/32 dev wire
# Never where something comes from: the router knows no way back there.
ip address add fd00:ec2::254/128 dev wire nodad preferred_lft 0
ip address add fd20:ce::254/128 dev wire nodad preferred_lft 0
ip -n neighbour address add 168.63.129.16/32 dev lo
ip route add 168.63.129.16 via 10.9.0.2
ip netns exec neighbour sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip route add 10.10.0.0/24 via 10.9.0.2
ip -6 route add fd10::/64 via fd09::2
