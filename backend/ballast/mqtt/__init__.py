"""Operators' other door: a fleet's targets, states and events over an MQTT 5 broker.

The parts that decide (`topics`, `payloads`, `command`, `discovery`, `outbox`, `backoff`) do no I/O
and read no clock. `session` is a connection to a broker, `bridge` keeps one for as long as the
daemon lives. No VM ever waits for any of them.
"""
