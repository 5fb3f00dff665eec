"""Judging with the kit: cases are drawn and made small, verdicts given, deviations known, results counted."""
