# A stand-in for OpenWrt's /lib/functions.sh, as far as our scripts use it.

# Like the real one, it does not forget the options of the file before.
config_load() {
	eval "$(UCI_CONFIG_DIR="$UCI_CONFIG_DIR" uci shell "$1")"
}

config_get() {
	if [ -n "$3" ]; then
		eval "$1=\"\${CONFIG_${2}_${3}:-\$4}\""
	else
		eval "echo \"\${CONFIG_${1}_${2}}\""
	fi
}

config_get_bool() {
	config_get "$@"
	eval "case \"\$$1\" in 1|on|true|yes|enabled) $1=1 ;; 0|off|false|no|disabled) $1=0 ;; esac"
}

config_foreach() {
	local function="$1" kind="$2" section type

	shift 2
	for section in $CONFIG_SECTIONS; do
		config_get type "$section" TYPE
		[ "$type" = "$kind" ] && "$function" "$section" "$@"
	done
}

config_list_foreach() {
	local section="$1" option="$2" function="$3" length item number=1

	shift 3
	config_get length "$section" "${option}_LENGTH" 0
	while [ "$number" -le "$length" ]; do
		config_get item "$section" "${option}_ITEM$number"
		"$function" "$item" "$@"
		number=$((number + 1))
	done
}

append() {
	[ -z "$2" ] || eval "$1=\"\${$1:+\$$1 }\$2\""
}
