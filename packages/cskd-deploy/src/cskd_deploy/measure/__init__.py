"""Latency, memory and what they were measured on."""
