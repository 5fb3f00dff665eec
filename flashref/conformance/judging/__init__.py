"""From a check to a verdict: cases drawn and made small, deviations known, results counted."""
