#!/bin/sh
# Builds the Debian packages: build.sh OUTPUT. With dpkg-deb alone: everything is pure Python, there
# is nothing to configure, and the build needs neither root nor a network; shtab (python3-shtab)
# writes the completion. The same tree and shtab give the same bytes.
#
# The MSP service is not packaged: it needs a newer aiohttp and msgspec than Debian 12 has.
set -eu
umask 022
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
mkdir -p "$1"
output=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$tree/gwmodule/__init__.py")
day=$(sed -n 's/^BUILD_DATE = datetime.date(\(.*\), \(.*\), \(.*\))/\1-\2-\3/p' \
	"$tree/gwmodule/__init__.py")
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(date -u -d "$day" +%s)}
export SOURCE_DATE_EPOCH

"${PYTHON:-python3}" -B "$tree/docs/generate.py" "$work/pages" gwmodule
DESTDIR=$work/gwmodule PREFIX=/usr PAGES=$work/pages PYTHON=/usr/bin/python3 "$tree/systemd/install.sh"
cd "$work/gwmodule"
rm usr/bin/gwmodule-msp
find usr -name '*gwmodule-msp*' -delete
# Where Debian's zsh looks for those of packages.
mv usr/share/zsh/site-functions usr/share/zsh/vendor-completions

move() {
	for path; do
		mkdir -p "$work/gwmodule-capture/${path%/*}"
		mv "$path" "$work/gwmodule-capture/$path"
	done
}
# The division is the one of the OpenWrt packages, and what they leave out is the MSP's.
listed() { # PACKAGE SIGN
	sed -n "/^define Py3Package\\/$1\\/filespec/,/^endef/s/^$2|.*DIR)\\/gwmodule\\///p" \
		"$tree/openwrt/gwmodule/Makefile"
}
for module in $(listed gwmodule-capture +); do
	move "usr/lib/gwmodule/gwmodule/$module"
done
for module in $(listed gwmodule -); do
	rm -rf "usr/lib/gwmodule/gwmodule/$module"
done
move usr/lib/systemd/system/gwmodule-capture.service

package() { # NAME UNITS SETUP
	root=$work/$1
	units=$2
	doc=$root/usr/share/doc/$1
	install -D -m 644 "$here/copyright" "$doc/copyright"
	printf '%s (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md of the sources.\n\n -- %s  %s\n' \
		"$1" "$version" "gwmodule developers <gwmodule@example.net>" \
		"$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
	find "$root/usr/share/man" -type f -exec gzip -9n {} + 2>/dev/null || true
	mkdir -p "$root/DEBIAN"
	size=$(find "$root/usr" -type f -printf '%s\n' | awk '{s += int(($1 + 1023) / 1024)} END {print s}')
	sed "s|@VERSION@|$version|; s|@SIZE@|$size|" "$here/$1.control" |
		sed "s|@VERSION@|$version|" >"$root/DEBIAN/control"
	for script in postinst prerm postrm; do
		sed "s|@PACKAGE@|$1|; s|@UNITS@|$units|g; s|@SETUP@|$3|" "$here/$script" \
			>"$root/DEBIAN/$script"
		chmod 755 "$root/DEBIAN/$script"
	done
	(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
	dpkg-deb --root-owner-group -Zxz --build "$root" "$output/${1}_${version}_all.deb"
}
relay_units="gwmodule.target gwmodule-relay.service"
for timer in usr/lib/systemd/system/*.timer; do
	[ ! -e "$timer" ] || relay_units="$relay_units ${timer##*/}"
done
package gwmodule "$relay_units" \
	"systemd-sysusers gwmodule.conf\n\tsystemd-tmpfiles --create gwmodule.conf\n\t"
package gwmodule-capture gwmodule-capture.service ""
