"""What a model on flash would cost: traces, shapes, policies, costs, sweeps; the paper's tables, derived."""
