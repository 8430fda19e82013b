"""The vhost-user shell: sockets, eventfds and ring life cycle around the balloon device."""
