"""Closes a server: TLS, keys, rates. Imported only where one of them is asked for."""
