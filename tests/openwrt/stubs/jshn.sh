# A stand-in for libubox's jshn.sh, as far as the rpcd plugin uses it.

json_init() {
	JSON=
}

json_add_boolean() {
	JSON="$JSON${JSON:+,}\"$1\":$([ "$2" = 1 ] && echo true || echo false)"
}

json_add_string() {
	JSON="$JSON${JSON:+,}\"$1\":\"$2\""
}

json_dump() {
	echo "{$JSON}"
}

json_load() {
	JSON_INPUT="$1"
	case "$1" in "{"*"}") ;; *) return 1 ;; esac
}

# Strings and numbers alike.
json_get_var() {
	eval "$1=\"\$(echo \"\$JSON_INPUT\" | sed -n \
		-e 's/.*\"$2\":\"\([^\"]*\)\".*/\1/p' -e 's/.*\"$2\":\(-*[0-9][^,}]*\)[,}].*/\1/p')\""
}
