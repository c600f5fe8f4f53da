"""The ETSI MEC interfaces of a region: MEC 021 (application mobility), MEC 012 (radio network information) and MEC 013
(location), see docs/mec.md. They observe and tell; what they know comes from the planner, the services and the
migrations, and nothing of those imports from here."""
