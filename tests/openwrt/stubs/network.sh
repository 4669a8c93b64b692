# A stand-in for OpenWrt's /lib/functions/network.sh: $ADDRESS is the LAN's, if it has one.

network_get_ipaddr() {
	[ -n "$ADDRESS" ] && eval "$1=\$ADDRESS"
}
