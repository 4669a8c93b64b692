"""The gateway's dealings with its LAN on behalf of the MSP.

policy  pure: which targets are allowed
dial    the only way to open a connection into the LAN
probe   asks known hosts whether they have AMT
"""
