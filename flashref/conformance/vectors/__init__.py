"""Conformance vectors: the published cases, their files, and a result beside what a case expects."""
