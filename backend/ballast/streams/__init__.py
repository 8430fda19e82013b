"""Sockets that carry file descriptors, eventfds, and the asyncio around them."""
