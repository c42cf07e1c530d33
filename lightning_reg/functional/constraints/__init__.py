"""Projections onto the sets of constraints, in place: `norms` of units, `pattern` of zeros among neighbours."""
