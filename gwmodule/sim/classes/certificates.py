"""Certificates and keys that the device keeps: the one of its TLS ports."""

from __future__ import annotations

import base64

from gwmodule.sim.machine import Machine
from gwmodule.sim.wsman import Properties, Resource


def classes(machine: Machine) -> list[Resource]:
    return [_certificates(machine), _key_pairs(machine)]


def _certificates(machine: Machine) -> Resource:
    def instances() -> list[Properties]:
        if machine.certificate is None:
            return []
        return [
            {
                "ElementName": "Intel(r) AMT Certificate",
                "InstanceID": "Intel(r) AMT Certificate: Handle: 0",
                "Issuer": machine.certificate.subject,
                "ReadOnlyCertificate": True,
                "Subject": machine.certificate.subject,
                "TrustedRootCertificate": False,
                "X509Certificate": base64.b64encode(machine.certificate.der).decode(),
            }
        ]

    return Resource("AMT_PublicKeyCertificate", instances)


def _key_pairs(machine: Machine) -> Resource:
    def instances() -> list[Properties]:
        if machine.certificate is None:
            return []
        return [
            {
                "DERKey": base64.b64encode(machine.certificate.key).decode(),
                "ElementName": "Intel(r) AMT Key",
                "InstanceID": "Intel(r) AMT Key: Handle: 0",
            }
        ]

    return Resource("AMT_PublicPrivateKeyPair", instances)
