"""What the gateway knows about its own interfaces and its LAN neighbours.

model    pure: interfaces, addresses, routes and neighbours, kept from typed changes
netlink  keeps a model in step with the kernel (rtnetlink)
facts    the same facts once, synchronously, before an event loop exists (netifaces)
"""
