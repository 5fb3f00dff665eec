"""The conformance kit: any implementation, in any language, judged against specs/.

Needs the `test` extra (Hypothesis, mpmath). An implementation is reached through an adapter (chapter 96);
each requirement has one check; expected values come from definitions, never from flashref's own functions.
"""
