# `make dump` prints each package's fields, `make build` fills PKG_INSTALL_DIR, `make install-NAME`
# runs the package's install recipe into DESTDIR. What a Makefile leaves undefined is empty.

PKG_BUILD_DIR := $(BUILD_DIR)/$(PKG_NAME)-$(PKG_VERSION)
PKG_INSTALL_DIR := $(PKG_BUILD_DIR)/ipkg-install
FIELDS := TITLE SECTION DEPENDS EXTRA_DEPENDS USERID PKGARCH URL
TEXTS := description conffiles preinst postinst prerm postrm

# The SDK unpacks the source archive here; VENDOR holds the same modules.
define Build/Prepare
	$(INSTALL_DIR) $(PKG_BUILD_DIR)
	$(CP) $(VENDOR)/. $(PKG_BUILD_DIR)/
endef

define Dump/field
$(info $(1) $($(1)))$(eval $(1) :=)
endef

define Dump/text
$(if $(value Package/$(1)/$(2)),$(info <$(2)>)$(info $(Package/$(1)/$(2)))$(info </$(2)>))
endef

# The packages of sources are the SDK's.
define BuildPackage
$(if $(filter %-src,$(1)),,$(call BuildPackage/known,$(1)))
endef

define BuildPackage/known
  $(eval $(Package/$(1)))
  $(info Package $(1))
  $(info PKG_VERSION $(PKG_VERSION)-r$(PKG_RELEASE))
  $(info PKG_NAME $(PKG_NAME))
  $(info PKG_LICENSE $(PKG_LICENSE))
  $(info PYPI_NAME $(PYPI_NAME))
  $(info PKG_MAINTAINER $(PKG_MAINTAINER))
  $(foreach field,$(FIELDS),$(call Dump/field,$(field)))
  $(foreach text,$(TEXTS),$(call Dump/text,$(1),$(text)))
  $(info <filespec>)$(info $(Py3Package/$(1)/filespec))$(info </filespec>)

.PHONY: install-$(1)
install-$(1):
	$$(INSTALL_DIR) $$(DESTDIR)
	$$(call Py3Package/$(1)/install,$$(DESTDIR))
endef

.PHONY: dump build
dump:
	@:

build:
	$(Build/Prepare)
	$(Build/Compile)
