# What the Makefiles of this feed use of OpenWrt's rules.mk, for mkipk.py. Written for this purpose;
# the real one comes with the SDK. BUILD_DIR, VENDOR and PYTHON3_VERSION are set by the caller.

INCLUDE_DIR := $(TOPDIR)/include
INSTALL_DIR := install -d -m0755
INSTALL_BIN := install -m0755
INSTALL_DATA := install -m0644
INSTALL_CONF := install -m0600
CP := cp -fR
FIND := find

.DEFAULT_GOAL := build
