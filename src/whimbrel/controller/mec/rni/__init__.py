"""ETSI GS MEC 012 v2.2.1, the Radio Network Information Service: ``/rni/v2``."""
