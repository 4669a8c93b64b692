#!/bin/sh
# Installs gateway and MSP service below $DESTDIR$PREFIX: modules, commands, units, and from $PAGES
# manual pages and completion, if `make man` made them. Nothing outside is written, so packages are
# made with it as well. The libraries that pyproject.toml names must be known to $PYTHON.
set -eu
cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-/usr/local}
PYTHON=${PYTHON:-/usr/bin/python3}
PAGES=${PAGES:-build}
root=${DESTDIR:-}$PREFIX
library=$PREFIX/lib/gwmodule
umask 022

put() { # MODE FILE TARGET
	install -D -m "$1" "$2" "$root/$3"
}

# The simulator is for developers, and axe for the tests of the console.
find gwmodule \( -path gwmodule/sim -o -path '*/node_modules/axe-core' \) -prune -o \
	-type f ! -name '*.pyc' -print | while read -r file; do
	put 644 "$file" "lib/gwmodule/$file"
done

program() { # NAME MODULE
	sed "s|@PYTHON@|$PYTHON|; s|@LIBRARY@|$library|; s|@COMMAND@|$1|; s|@MODULE@|$2|" \
		systemd/launcher >"$root/launcher.new"
	put 755 "$root/launcher.new" "bin/$1"
	rm "$root/launcher.new"
}
program gwmodule gwmodule.cli
program gwmodule-msp gwmodule.msp.cli

for file in systemd/*.service systemd/*.socket systemd/*.timer systemd/*.path systemd/*.target; do
	[ ! -e "$file" ] || put 644 "$file" "lib/systemd/system/${file##*/}"
done
for kind in sysusers tmpfiles; do
	for file in systemd/*."$kind".conf; do
		name=${file##*/}
		put 644 "$file" "lib/$kind.d/${name%."$kind".conf}.conf"
	done
done
put 644 systemd/gwmodule.toml share/doc/gwmodule/examples/gwmodule.toml
for file in "$PAGES"/man/*.[1-8]; do
	case "$file" in
		*gwmodule-sim*) ;;
		*) [ ! -e "$file" ] || put 644 "$file" "share/man/man${file##*.}/${file##*/}" ;;
	esac
done
for file in "$PAGES"/completion/*; do
	[ -e "$file" ] || continue
	name=${file##*/}
	case "$name" in
		*gwmodule-sim*) ;;
		_*) put 644 "$file" "share/zsh/site-functions/$name" ;;
		*) put 644 "$file" "share/bash-completion/completions/${name%.bash}" ;;
	esac
done
