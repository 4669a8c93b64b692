"""How a gateway gets its identity: enrolled once with a token, renewed by itself, given back.

One-shot commands, run by root; the services never import this package. Standard library and the
`openssl` command line only.
"""
