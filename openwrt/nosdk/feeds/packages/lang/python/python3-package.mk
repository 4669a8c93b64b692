PYTHON3_PKG_DIR := /usr/lib/python$(PYTHON3_VERSION)/site-packages

define Py3Package
  Py3Package/$(1)/filespec ?= +|$$(PYTHON3_PKG_DIR)
endef
